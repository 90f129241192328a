"""Small builders of valid things from fixed seeds, for tests and for the golden vectors.

Nothing here is random and nothing reads a clock: the same call builds the same bytes for ever.
A test takes a valid thing and changes the one field it is about.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from blake3 import blake3

from ledger import merkle
from ledger.authorities import Authority, AuthoritySet
from ledger.block import (
    Block,
    Certificate,
    Genesis,
    Header,
    Limits,
    Tip,
    VoteKind,
    advance_tip,
    build_genesis_tip,
    build_vote_message,
    hash_genesis,
    hash_header,
)
from ledger.encoding import MAX_INTEGER, encode, encode_base64url
from ledger.hashing import build_receipt_id, hash_text, hash_tokens
from ledger.keys import KeyPair
from ledger.payloads import SignedVote
from ledger.proof import Disclosure, Epoch, ProofBundle
from ledger.rules import build_block
from ledger.statement import StatementBundle
from ledger.transaction import (
    MICROS,
    AuditPayload,
    AuthoritySetPayload,
    EvidencePayload,
    ReceiptPayload,
    Role,
    Signature,
    Transaction,
    build_transaction,
    sign_payload,
)

CREATED_MS = 1_767_225_600_000
"""2026-01-01T00:00:00Z."""
PROMPT = "Why is the sky blue?"
RESULT = "Air scatters blue light more than red light."
TOKEN_IDS = (17206, 1116, 1461, 4461, 1420, 540, 670, 2659, 1420, 30)

_ULID_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def build_key(name: str) -> KeyPair:
    """Return the key pair that `name` always has."""
    return KeyPair.from_seed(blake3(b"test key\n" + name.encode()).digest())


def build_salt(name: str) -> bytes:
    """Return the 32-byte salt that `name` always has."""
    return blake3(b"test salt\n" + name.encode()).digest()


def build_job_id(number: int) -> str:
    """Return the job id number `number`."""
    digits = ""
    while number:
        number, digit = divmod(number, 32)
        digits = _ULID_ALPHABET[digit] + digits
    return "job_" + digits.rjust(26, "0")


def build_authority_set(
    members: Sequence[KeyPair], *, epoch: int = 0, coordinators: Iterable[str] = ()
) -> AuthoritySet:
    """Return the set of `members`, named in their order."""
    return AuthoritySet(
        epoch=epoch,
        members=tuple(
            Authority(account=key.account, name=f"authority {i}", url="")
            for i, key in enumerate(members)
        ),
        coordinators=tuple(sorted(coordinators)),
    )


def build_members(count: int, *, epoch: int = 0) -> list[KeyPair]:
    """Return the keys of the authorities of an epoch; authority 0 stays in all of them."""
    names = ["authority 0", *(f"authority {i} of epoch {epoch}" for i in range(1, count))]
    return [build_key(name) for name in names]


def build_genesis(count: int = 1, *, network: str = "test-net", **limits: Any) -> Genesis:
    """Return the genesis of a network with `count` authorities (`build_members(count)`)."""
    return Genesis(
        network=network,
        created_ms=CREATED_MS,
        authority_set=build_authority_set(build_members(count)),
        limits=Limits(**limits),
        settlement="off_chain",
    )


def build_payload(genesis: Genesis, number: int = 1, /, **changes: Any) -> ReceiptPayload:
    """Return the payload of job `number`, with `changes` to its fields.

    The receipt id follows the changed coordinator and job, unless it is changed itself.
    """
    salt = build_salt(f"result {number}")
    fields: dict[str, Any] = {
        "genesis": hash_genesis(genesis).hex(),
        "job_id": build_job_id(number),
        "attempt": 1,
        "client": "client-1",
        "provider": build_key("miner").account,
        "coordinator": build_key("authority 0").account,
        "model": "smollm2:135m",
        "model_digest": blake3(b"test model").hexdigest(),
        "prompt_digest": hash_text(build_salt(f"prompt {number}"), PROMPT).hex(),
        "result_digest": hash_text(salt, RESULT).hex(),
        "tokens_digest": hash_tokens(salt, TOKEN_IDS).hex(),
        "max_tokens": 128,
        "temperature_micros": 700_000,
        "top_p_micros": 900_000,
        "seed": 7_000_000_000_000_000 + number,
        "sampler": "aitbc-gumbel-v1",
        "prompt_tokens": 36,
        "completion_tokens": len(TOKEN_IDS),
        "unit_type": "tokens",
        "units_micros": (36 + len(TOKEN_IDS)) * MICROS,
        "price_micros": 46,
        "started_at_ms": CREATED_MS + 1000 * number,
        "completed_at_ms": CREATED_MS + 1000 * number + 830,
        "metered_by": "provider",
    } | changes
    fields.setdefault(
        "receipt_id",
        build_receipt_id(
            genesis=fields["genesis"], coordinator=fields["coordinator"], job_id=fields["job_id"]
        ),
    )
    return ReceiptPayload(**fields)


def sign_receipt(
    payload: ReceiptPayload, *, coordinator: KeyPair | None = None, provider: KeyPair | None = None
) -> list[Signature]:
    """Sign as coordinator and, if the payload names the provider's account, as provider."""
    provider = provider or build_key("miner")
    signatures = [sign_payload(payload, coordinator or build_key("authority 0"), "coordinator")]
    if payload.provider == provider.account:
        signatures.append(sign_payload(payload, provider, "provider"))
    return signatures


def build_receipt(genesis: Genesis, number: int = 1, /, **changes: Any) -> Transaction:
    """Return the signed receipt of job `number`, with `changes` to its payload."""
    payload = build_payload(genesis, number, **changes)
    return build_transaction(payload, sign_receipt(payload))


def build_audit_payload(genesis: Genesis, number: int = 1, /, **changes: Any) -> AuditPayload:
    """Return an audit of the receipt of job `number`, with `changes` to its fields."""
    receipt = build_payload(genesis, number)
    fields: dict[str, Any] = {
        "genesis": receipt.genesis,
        "receipt_id": receipt.receipt_id,
        "auditor": build_key("auditor").account,
        "coordinator": receipt.coordinator,
        "model_digest": receipt.model_digest,
        "method": "aitbc-replay-v1",
        "prompt_tokens": receipt.prompt_tokens,
        "tokens": receipt.completion_tokens,
        "exact_tokens": 9,
        "outside_tokens": 0,
        "max_gap_micros": 31_400,
        "mean_gap_micros": 3_140,
        "ending": "end_token",
        "text_matches": True,
        "verdict": "pass",
        "audited_at_ms": receipt.completed_at_ms + 60_000,
    }
    return AuditPayload(**(fields | changes))


def sign_audit(
    payload: AuditPayload, *, auditor: KeyPair | None = None, coordinator: KeyPair | None = None
) -> list[Signature]:
    """Sign as auditor and as coordinator."""
    return [
        sign_payload(payload, auditor or build_key("auditor"), "auditor"),
        sign_payload(payload, coordinator or build_key("authority 0"), "coordinator"),
    ]


def build_audit(
    genesis: Genesis, number: int = 1, /, *, auditor: KeyPair | None = None, **changes: Any
) -> Transaction:
    """Return the signed audit of job `number`, with `changes` to its payload."""
    auditor = auditor or build_key("auditor")
    payload = build_audit_payload(genesis, number, **({"auditor": auditor.account} | changes))
    return build_transaction(payload, sign_audit(payload, auditor=auditor))


def build_change_payload(
    tip: Tip, following: AuthoritySet, /, *, valid_for: int = 100, **changes: Any
) -> AuthoritySetPayload:
    """Return the change to `following` that may stand in the `valid_for` blocks after `tip`."""
    fields: dict[str, Any] = {
        "genesis": tip.genesis_hash.hex(),
        "authority_set": following,
        "expires_height": tip.height + valid_for,
    }
    return AuthoritySetPayload(**(fields | changes))


def sign_change(
    payload: AuthoritySetPayload,
    authorities: Iterable[KeyPair],
    coordinators: Iterable[KeyPair] = (),
) -> Transaction:
    """Sign a change as `authority` and as `coordinator`; a key that is given twice signs once."""
    roles: dict[Role, Iterable[KeyPair]] = {
        "authority": authorities,
        "coordinator": coordinators,
    }
    signatures = {
        (role, key.account): sign_payload(payload, key, role)
        for role, keys in roles.items()
        for key in keys
    }
    return build_transaction(payload, signatures.values())


def build_evidence(
    genesis: Genesis | str,
    accused: KeyPair,
    /,
    *,
    height: int = 1,
    view: int = 0,
    votes: Sequence[tuple[VoteKind, str]] = (("notarize", "aa" * 32), ("notarize", "bb" * 32)),
    **changes: Any,
) -> Transaction:
    """Return the evidence that `accused` cast two `votes`, each (kind, block hash).

    The network is given by its genesis or by the hash of it in hex.
    """
    digest = genesis if isinstance(genesis, str) else hash_genesis(genesis).hex()
    first, second = (
        SignedVote(
            kind=kind,
            block_hash=block_hash,
            sig=accused.sign(
                build_vote_message(
                    genesis_hash=bytes.fromhex(digest),
                    kind=kind,
                    height=height,
                    view=view,
                    block_hash=bytes.fromhex(block_hash) or None,
                )
            ),
        )
        for kind, block_hash in votes
    )
    fields: dict[str, Any] = {
        "genesis": digest,
        "accused": accused.account,
        "height": height,
        "view": view,
        "first": first,
        "second": second,
    }
    return build_transaction(EvidencePayload(**(fields | changes)), [])


def build_disclosure(number: int = 1) -> Disclosure:
    """Return the private texts of job `number`."""
    return Disclosure(
        prompt=PROMPT,
        prompt_salt=encode_base64url(build_salt(f"prompt {number}")),
        result=RESULT,
        result_salt=encode_base64url(build_salt(f"result {number}")),
        output_token_ids=TOKEN_IDS,
    )


def build_certificate(
    header: Header,
    members: Sequence[KeyPair],
    *,
    voters: Iterable[int] | None = None,
    view: int = 0,
    kind: VoteKind = "finalize",
) -> Certificate:
    """Return the votes of `voters` (all members by default) for `header`, in the order given."""
    message = build_vote_message(
        genesis_hash=bytes.fromhex(header.genesis),
        kind=kind,
        height=header.height,
        view=view,
        block_hash=hash_header(header),
    )
    indexes = range(len(members)) if voters is None else voters
    return Certificate(view=view, votes=tuple((i, members[i].sign(message)) for i in indexes))


@dataclass
class Chain:
    """A chain in memory. It seals what it is given: whether that is valid is for tests to ask."""

    genesis: Genesis
    members: list[KeyPair]
    tip: Tip
    blocks: list[Block] = field(default_factory=list)
    certificates: list[Certificate] = field(default_factory=list)
    epochs: list[Epoch] = field(default_factory=list)
    nodes: dict[tuple[int, int], bytes] = field(default_factory=dict)

    @property
    def transactions(self) -> list[Transaction]:
        """Every transaction by its leaf index."""
        return [transaction for block in self.blocks for transaction in block.transactions]

    def read(self, level: int, index: int) -> bytes:
        """Return the hash of a full subtree."""
        return self.nodes[level, index]

    def propose(self, *transactions: Transaction) -> Block:
        """Build the next block without sealing it."""
        return build_block(
            self.tip,
            transactions,
            time_ms=self.tip.time_ms + 500,
            proposer=self.members[0].account,
            read=self.read,
        )

    def append(self, *transactions: Transaction) -> Block:
        """Seal one block under the current authorities."""
        return self._seal(self.propose(*transactions), self.members)

    def change_authorities(
        self,
        members: list[KeyPair],
        *transactions: Transaction,
        epoch_step: int = 1,
        coordinators: Iterable[KeyPair] = (),
    ) -> Block:
        """Seal one block after which `members` are the authorities.

        The change is its last transaction, signed by all members old and new and by all
        coordinators.
        """
        listed = {key.account: key for key in coordinators}
        following = build_authority_set(
            members, epoch=self.tip.authority_set.epoch + epoch_step, coordinators=listed
        )
        entering = set(listed) - set(self.tip.authority_set.coordinators)
        change = sign_change(
            build_change_payload(self.tip, following),
            [*self.members, *members],
            [key for account, key in listed.items() if account in entering],
        )
        block = self._seal(self.propose(*transactions, change), members)
        self.epochs.append(
            Epoch(header=block.header, certificate=self.certificates[-1], authority_set=following)
        )
        return block

    def _seal(self, block: Block, members: list[KeyPair]) -> Block:
        leaves = [merkle.hash_leaf(transaction.envelope) for transaction in block.transactions]
        self.nodes |= merkle.append_leaves(self.tip.tree_size, leaves, self.read)
        self.blocks.append(block)
        self.certificates.append(build_certificate(block.header, self.members))
        self.members = members
        self.tip = advance_tip(self.tip, block)
        return block

    def bundle(self, index: int) -> ProofBundle:
        """Return the proof of leaf `index` under the block that owns it."""
        height = next(b.header.height for b in self.blocks if b.header.tree_size > index)
        header = self.blocks[height - 1].header
        path = merkle.build_inclusion_path(index, header.tree_size, self.read)
        return msgspec.json.decode(
            encode(
                {
                    "v": 1,
                    "envelope": msgspec.Raw(self.transactions[index].envelope),
                    "index": index,
                    "path": [node.hex() for node in path],
                    "header": header,
                    "certificate": self.certificates[height - 1],
                    "epochs": [e for e in self.epochs if e.header.height < height],
                }
            ),
            type=ProofBundle,
        )

    def statement(
        self, account: str, *, from_ms: int = 0, to_ms: int = MAX_INTEGER
    ) -> StatementBundle:
        """Return the proof of an account's receipts in blocks of [from_ms, to_ms)."""
        leaves = [
            (block.header, block.header.tree_size - len(block.transactions) + i, transaction)
            for block in self.blocks
            if from_ms <= block.header.time_ms < to_ms
            for i, transaction in enumerate(block.transactions)
            if isinstance(transaction.payload, ReceiptPayload)
            and account in (transaction.payload.client, transaction.payload.provider)
        ]
        first, last = leaves[0][0], leaves[-1][0]
        return msgspec.json.decode(
            encode(
                {
                    "v": 1,
                    "account": account,
                    "from_ms": from_ms,
                    "to_ms": to_ms,
                    "entries": [
                        {
                            "envelope": msgspec.Raw(transaction.envelope),
                            "index": index,
                            "path": [
                                node.hex()
                                for node in merkle.build_inclusion_path(
                                    index, last.tree_size, self.read
                                )
                            ],
                        }
                        for _, index, transaction in leaves
                    ],
                    "opening": {
                        "header": first,
                        "certificate": self.certificates[first.height - 1],
                        "parent": [b.header for b in self.blocks[: first.height - 1][-1:]],
                    },
                    "header": last,
                    "certificate": self.certificates[last.height - 1],
                    "epochs": [e for e in self.epochs if e.header.height < last.height],
                }
            ),
            type=StatementBundle,
        )


def build_chain(count: int = 1, *, blocks: Iterable[int] = (), **limits: Any) -> Chain:
    """Return a chain of `count` authorities with one block of receipts per entry of `blocks`.

    Receipts are numbered from 1 in leaf order.
    """
    genesis = build_genesis(count, **limits)
    chain = Chain(genesis=genesis, members=build_members(count), tip=build_genesis_tip(genesis))
    number = 0
    for size in blocks:
        receipts = [build_receipt(genesis, number + i + 1) for i in range(size)]
        chain.append(*receipts)
        number += size
    return chain
