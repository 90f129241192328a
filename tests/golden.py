"""What stands in tests/vectors/*.json, apart from the proof bundles (see `tampering.py`).

Each function returns one file's contents. Expected verdicts are written here by hand; digests and
signatures come from the code and are then frozen by the files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from blake3 import blake3
from msgspec import to_builtins

from ledger import merkle
from ledger.authorities import hash_authority_set
from ledger.block import VoteKind, build_vote_message, hash_genesis
from ledger.chat import MAX_MESSAGES, ChatMessage, build_chat_prompt
from ledger.checkpoint import (
    Checkpoint,
    build_origin,
    cosign_checkpoint,
    log_key,
    sign_checkpoint,
    verify_checkpoint,
    witness_key,
)
from ledger.encoding import encode, encode_base64url
from ledger.hashing import build_receipt_id, hash_text, hash_tokens
from ledger.keys import decode_account, encode_account
from ledger.note import Note, NoteSignature, encode_note, parse_note
from ledger.tiles import TilePlace, encode_entries
from ledger.transaction import build_signed_message
from tests import edwards
from tests.builders import (
    PROMPT,
    TOKEN_IDS,
    build_certificate,
    build_chain,
    build_genesis,
    build_job_id,
    build_key,
    build_members,
    build_receipt,
    build_salt,
)
from tests.golden_audits import build_audits
from tests.golden_authorities import build_authorities
from tests.sampling_reference import build_sampling

Vectors = dict[str, Any]

MODEL_FILES = {
    "tokenizer.json": b'{"model":{}}',
    "onnx/model.onnx": b"weights",
    "config.json": b"{}",
    "onnx.txt": b"",
}
WITNESS_TIME_S = 1_767_225_660
TILE_INDEXES = (0, 7, 999, 1000, 1_234_067, 10**9, 35_184_372_088_831)
TREE_SIZES = range(71)
CONSISTENCY_SIZES = [(1, 1), (1, 2), (2, 3), (3, 7), (4, 7), (6, 8), (7, 8), (8, 64), (33, 70)]


def build_accounts() -> Vectors:
    """Accounts, and strings that are none."""
    keys = [bytes(32), b"\xff" * 32, *(decode_account(build_key(f"{i}").account) for i in range(4))]
    account = encode_account(keys[-1])
    bech32_not_m = "ait1" + account[4:56] + _bech32_checksum(account[4:56], 1)
    padded = account[4:55] + "p"
    invalid = [
        ("", "empty"),
        ("ait1", "no data"),
        (account[:-1], "too short"),
        (account + "q", "too long"),
        (account.upper(), "upper case"),
        ("A" + account[1:], "mixed case"),
        (" " + account[1:], "white space"),
        (account[:-1] + "\n", "line feed"),
        ("bit1" + account[4:], "other prefix"),
        ("ait2" + account[4:], "other separator"),
        (account[:10] + "b" + account[11:], "character outside the alphabet"),
        (account[:10] + "\u0131" + account[11:], "character outside ASCII"),
        (account[:10] + _other(account[10]) + account[11:], "one character changed"),
        (account[:20] + account[21] + account[20] + account[22:], "two characters swapped"),
        (bech32_not_m, "bech32 checksum instead of bech32m"),
        ("ait1" + padded + _bech32_checksum(padded, 0x2BC830A3), "padding bits not zero"),
    ]
    return {
        "valid": [{"public_key": key.hex(), "account": encode_account(key)} for key in keys],
        "invalid": [{"account": text, "why": why} for text, why in invalid],
    }


def _other(symbol: str) -> str:
    return "q" if symbol != "q" else "p"


def _bech32_checksum(data: str, constant: int) -> str:
    """Checksum of BIP 173 (constant 1) or BIP 350 for prefix `ait`, written out here."""
    alphabet = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
    generator = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
    values = [3, 3, 3, 0, 1, 9, 20, *(alphabet.index(symbol) for symbol in data), *[0] * 6]
    checksum = 1
    for value in values:
        top, checksum = checksum >> 25, (checksum & 0x1FFFFFF) << 5 ^ value
        for i in range(5):
            checksum ^= generator[i] if top >> i & 1 else 0
    checksum ^= constant
    return "".join(alphabet[checksum >> 5 * (5 - i) & 31] for i in range(6))


def build_canonical() -> Vectors:
    """JSON texts with their canonical form, and texts that are not canonical."""
    texts = [
        "{}",
        "[]",
        ' { "b" : 1 , "a" : [ true , false , "" ] } ',
        '{"Z":1,"a":2,"A":3,"_":4,"0":5}',
        '"\\u0000\\u0001\\u0008\\u0009\\u000a\\u000b\\u000c\\u000d\\u001f\\u007f\\u0080"',
        '"\\"\\\\\\/"',
        '"\\u20ac \\u00e9 \\u2028 \\u2029 \\ud83d\\ude00"',
        "[0,-1,9007199254740991,-9007199254740991]",
    ]
    not_canonical = [
        ('{"a":1,"a":1}', "a key twice"),
        ('{"b":1,"a":2}', "keys out of order"),
        ('{"a": 1}', "white space"),
        ('{"a":1} ', "white space behind"),
        ('["\\u0061"]', "an escape that is not needed"),
        ('["\\/"]', "an escape that is not needed"),
        ('["\\u001F"]', "an escape in upper case"),
        ('["\\u000a"]', "the long escape of a line feed"),
        ("[-0]", "minus zero"),
        ("[1.0]", "a float"),
        ("[1e2]", "a float"),
        ("[01]", "a leading zero"),
        ("[NaN]", "not a number"),
        ("[9007199254740992]", "an integer that is not below 2^53"),
        ('["\\ud800"]', "a lone surrogate"),
        ("[1]]", "text behind the document"),
        ("[1", "a truncated document"),
        ("", "no document"),
        ("\ufeff[]", "a byte order mark"),
    ]
    return {
        "canonical": [{"text": t, "canonical": encode(json.loads(t)).decode()} for t in texts],
        "not_canonical": [{"text": text, "why": why} for text, why in not_canonical],
    }


def build_chats() -> Vectors:
    """Conversations with their prompts, and prompts that look like a chat and are none."""
    user = ChatMessage(role="user", content="Why is the sky blue?")
    system = ChatMessage(role="system", content="Answer in one word.")
    answer = ChatMessage(
        role="assistant", content='Air.\n\t"\u2028\u007f\u0001" Gr\u00fc\u00dfe \U0001f600'
    )
    chats = [
        [user],
        [ChatMessage(role="user", content="")],
        [system],
        [answer],
        [system, user],
        [system, user, answer, user],
        [system, system],
        [ChatMessage(role="user", content=build_chat_prompt([system, user]))],
        [ChatMessage(role="user", content=build_chat_prompt([system])), answer],
        [ChatMessage(role="user", content=build_chat_prompt([user, user]) + " ")],
    ]
    one = '{"content":"x","role":"user"}'
    texts = [
        ("[]", "no message"),
        (one, "no array"),
        (f"[{one}] ", "white space"),
        (f"[ {one}]", "white space"),
        (f"[{one},]", "no JSON"),
        ('[{"role":"user","content":"x"}]', "keys out of order"),
        ('[{"content":"\\u0078","role":"user"}]', "an escape that is not needed"),
        ('[{"content":"x","role":"user","role":"system"}]', "a key twice"),
        ('[{"content":"x","name":"y","role":"user"}]', "another key"),
        ('[{"content":"x"}]', "no role"),
        ('[{"content":"x","role":"tool"}]', "another role"),
        ('[{"content":"x","role":"User"}]', "a role in upper case"),
        ('[{"content":null,"role":"user"}]', "content that is no text"),
        (f"[{','.join([one] * (MAX_MESSAGES + 1))}]", "too many messages"),
    ]
    return {
        "chats": [
            {"messages": to_builtins(chat), "prompt": build_chat_prompt(chat)} for chat in chats
        ],
        "not_chats": [{"prompt": text, "why": why} for text, why in texts],
    }


def build_signatures() -> Vectors:
    """Ed25519 signatures on which implementations are known to differ."""
    message = b"aitbc/test/v1\n"
    secret, nonce = 0x1234567890ABCDEF << 100, 0xFEDCBA0987654321 << 90

    def forge(key_torsion: edwards.Point, nonce_torsion: edwards.Point) -> tuple[bytes, bytes, int]:
        return edwards.forge(
            message,
            secret=secret,
            nonce=nonce,
            key_torsion=key_torsion,
            nonce_torsion=nonce_torsion,
        )

    def search(wanted: Callable[[int], bool]) -> tuple[bytes, bytes]:
        """A mixed-order key verifies without cofactor only where its torsion cancels."""
        for step in range(200):
            key, sig, k = edwards.forge(
                message,
                secret=secret,
                nonce=nonce + step,
                key_torsion=edwards.TORSION,
                nonce_torsion=edwards.IDENTITY,
            )
            if wanted(k):
                return key, sig
        raise AssertionError("no nonce of 200 fits")

    public_key, signature, _ = forge(edwards.IDENTITY, edwards.IDENTITY)
    s = int.from_bytes(signature[32:], "little")
    identity = edwards.encode(edwards.IDENTITY)
    k = edwards.challenge(identity, public_key, message)
    noncanonical_identity = (edwards.P + 1).to_bytes(32, "little")
    k_noncanonical = edwards.challenge(noncanonical_identity, public_key, message)
    zero = bytes(32)
    cases: list[tuple[bytes, bytes, bool, str]] = [
        (public_key, signature, True, "an ordinary signature"),
        (*search(lambda k: k % 8 == 0), True, "key of mixed order, equation holds as it stands"),
        (*search(lambda k: k % 8 == 1), False, "key of mixed order, holds only times 8"),
        (*forge(edwards.IDENTITY, edwards.TORSION)[:2], False, "R moved, holds only times 8"),
        (
            public_key,
            signature[:32] + (s + edwards.L).to_bytes(32, "little"),
            False,
            "S is not below L",
        ),
        (
            public_key,
            identity + (k * secret % edwards.L).to_bytes(32, "little"),
            False,
            "R is the identity, equation holds",
        ),
        (
            public_key,
            noncanonical_identity + (k_noncanonical * secret % edwards.L).to_bytes(32, "little"),
            False,
            "R is not canonical",
        ),
        *(
            (edwards.encode(point), identity + zero, False, f"key of small order {i}")
            for i, point in enumerate(edwards.SMALL_ORDER)
        ),
        (noncanonical_identity, identity + zero, False, "key is not canonical"),
        (bytes([1]) + bytes(30) + b"\x80", identity + zero, False, "key is minus zero"),
        (bytes([2]) + bytes(31), identity + zero, False, "key is not on the curve"),
        (public_key, signature[:32] + zero, False, "S is zero"),
        (public_key, bytes([signature[0] ^ 1]) + signature[1:], False, "one bit of R changed"),
    ]
    return {
        "message": message.decode(),
        "cases": [
            {
                "account": encode_account(key),
                "public_key": key.hex(),
                "signature": encode_base64url(sig),
                "accepted": accepted,
                "why": why,
            }
            for key, sig, accepted, why in cases
        ],
    }


def hash_model(files: dict[str, bytes]) -> str:
    """Model digest of docs/protocol.md, section 5."""
    lines = [
        f"{blake3(files[path]).hexdigest()} {len(files[path])} {path}\n"
        for path in sorted(files, key=str.encode)
    ]
    return blake3(b"aitbc/model/v1\n" + "".join(lines).encode()).hexdigest()


def build_registration() -> Vectors:
    """Proof of possession of a registering miner."""
    key, genesis = build_key("miner"), hash_genesis(build_genesis()).hex()
    message = f"aitbc/miner-registration/v1\n{genesis}\nminer-1\n{key.account}\n"
    return {"message": message, "account": key.account, "signature": key.sign(message.encode())}


def build_digests() -> Vectors:
    """Digests of private data, the model digest and the registration message."""
    salt, genesis = build_salt("prompt 1"), hash_genesis(build_genesis()).hex()
    coordinator = build_key("authority 0").account
    texts = ["", PROMPT, "Grüße, 世界 😀\n\u0000"]
    token_lists: list[tuple[int, ...]] = [(), (0,), TOKEN_IDS, (2**32 - 1,)]
    return {
        "salt": encode_base64url(salt),
        "texts": [{"text": text, "digest": hash_text(salt, text).hex()} for text in texts],
        "tokens": [{"ids": list(t), "digest": hash_tokens(salt, t).hex()} for t in token_lists],
        "model": {
            "files": {path: data.decode() for path, data in MODEL_FILES.items()},
            "digest": hash_model(MODEL_FILES),
        },
        "receipt_ids": [
            {
                "genesis": genesis,
                "coordinator": coordinator,
                "job_id": build_job_id(number),
                "receipt_id": build_receipt_id(
                    genesis=genesis, coordinator=coordinator, job_id=build_job_id(number)
                ),
            }
            for number in (0, 1, 31, 2**128 - 1)
        ],
        "registration": build_registration(),
    }


def build_transactions() -> Vectors:
    """Receipts with their message, id and envelope."""
    genesis = build_genesis()
    cases = {
        "provider with a key": build_receipt(genesis, 1),
        "provider without a key": build_receipt(genesis, 2, provider="old-miner.local"),
        "seconds of a GPU, unknown digests": build_receipt(
            genesis,
            3,
            unit_type="gpu_seconds",
            units_micros=830_000,
            model_digest="",
            tokens_digest="",
            sampler="",
            model="Modèle 😀",
        ),
    }
    return {
        "genesis": encode(genesis).decode(),
        "cases": [
            {
                "why": why,
                "signed_message": build_signed_message(transaction.payload).decode(),
                "transaction_id": transaction.id.hex(),
                "envelope": transaction.envelope.decode(),
                "leaf_hash": merkle.hash_leaf(transaction.envelope).hex(),
            }
            for why, transaction in cases.items()
        ],
    }


def build_blocks() -> Vectors:
    """Genesis, set, header and certificate of one and of four authorities, and vote messages."""
    return {"networks": [_build_network(count) for count in (1, 4)]}


def _build_network(count: int) -> Vectors:
    chain = build_chain(count, blocks=[2])
    block, header, members = chain.blocks[0], chain.blocks[0].header, build_members(count)
    kinds: list[tuple[VoteKind, bytes | None]] = [
        ("notarize", block.hash),
        ("nullify", None),
        ("finalize", block.hash),
    ]
    return {
        "genesis": encode(chain.genesis).decode(),
        "genesis_hash": hash_genesis(chain.genesis).hex(),
        "set_hash": hash_authority_set(chain.genesis.authority_set).hex(),
        "header": encode(header).decode(),
        "block_hash": block.hash.hex(),
        "envelopes": [transaction.envelope.decode() for transaction in block.transactions],
        "certificates": [
            encode(build_certificate(header, members, voters=voters, view=view)).decode()
            for voters, view in [(range(count), 0), (range(count - count // 4), 3)]
        ],
        "votes": [
            build_vote_message(
                genesis_hash=bytes.fromhex(header.genesis),
                kind=kind,
                height=header.height,
                view=2,
                block_hash=block_hash,
            ).decode()
            for kind, block_hash in kinds
        ],
    }


def build_tree(count: int) -> merkle.NodeReader:
    """Return a reader of the tree of the leaves `leaf 0`, `leaf 1`, …"""
    leaves = [merkle.hash_leaf(f"leaf {i}".encode()) for i in range(count)]
    nodes = merkle.append_leaves(0, leaves, lambda level, index: nodes[level, index])
    return lambda level, index: nodes[level, index]


def build_merkle() -> Vectors:
    """Roots, inclusion paths and consistency proofs over the leaves `leaf 0`, `leaf 1`, …"""
    read = build_tree(max(TREE_SIZES))
    spots = [(size, i) for size in (1, 2, 3, 7, 8, 70) for i in sorted({0, size // 2, size - 1})]
    return {
        "leaf": "leaf <index in decimal>",
        "roots": [merkle.compute_root(size, read).hex() for size in TREE_SIZES],
        "inclusion": [
            {
                "size": size,
                "index": index,
                "path": [node.hex() for node in merkle.build_inclusion_path(index, size, read)],
            }
            for size, index in spots
        ],
        "consistency": [
            {
                "old_size": old,
                "new_size": new,
                "path": [node.hex() for node in merkle.build_consistency_path(old, new, read)],
            }
            for old, new in CONSISTENCY_SIZES
        ],
    }


def build_cosigned(checkpoint: Checkpoint) -> bytes:
    """Return a checkpoint that authority 0 signed and the witness co-signed."""
    authority, witness = build_key("authority 0"), build_key("witness")
    signed = verify_checkpoint(
        sign_checkpoint(checkpoint, authority),
        origin=checkpoint.origin,
        keys=[log_key(checkpoint.origin, authority.account)],
    )
    return cosign_checkpoint(signed, witness, time_s=WITNESS_TIME_S)


def _shift_time(note: str) -> str:
    """Let the witness have signed a second later, with the same signature."""
    parsed = parse_note(note.encode())
    line = parsed.signatures[-1]
    data = (WITNESS_TIME_S + 1).to_bytes(8, "big") + line.data[8:]
    line = NoteSignature(name=line.name, key_id=line.key_id, data=data)
    signatures = (*parsed.signatures[:-1], line)
    return encode_note(Note(text=parsed.text, signatures=signatures)).decode()


def build_checkpoints() -> Vectors:
    """Checkpoints of a chain with and without a witness, notes to refuse, tiles and their names."""
    chain = build_chain(1, blocks=[3, 2])
    origin = build_origin(chain.genesis)
    authority, witness = build_key("authority 0"), build_key("witness")
    heads = [
        Checkpoint(origin=origin, size=size, root=merkle.compute_root(size, chain.read))
        for size in (0, 3, 5)
    ]
    note = build_cosigned(heads[2]).decode()
    changes = {
        "a larger size": note.replace("\n5\n", "\n6\n"),
        "a leading zero": note.replace("\n5\n", "\n05\n"),
        "an extension line": note.replace("=\n\n", "=\nextension\n\n"),
        "another origin": note.replace("test-net", "best-net"),
        "the cosignature with another time": _shift_time(note),
        "no signature": note.split("\n\n", maxsplit=1)[0] + "\n\n",
        "no line feed at its end": note.rstrip("\n"),
        "a carriage return": note.replace("\n5\n", "\r\n5\n"),
    }
    assert note not in changes.values()
    return {
        "genesis": encode(chain.genesis).decode(),
        "origin": origin,
        "keys": [
            {"account": key.account, "key": str(name)}
            for key, name in [
                (authority, log_key(origin, authority.account)),
                (witness, witness_key(witness.account)),
            ]
        ],
        "checkpoints": [
            {
                "size": head.size,
                "root": head.root.hex(),
                "signed_by": [authority.account],
                "cosigned_by": [witness.account] if is_cosigned else [],
                "note": (
                    build_cosigned(head) if is_cosigned else sign_checkpoint(head, authority)
                ).decode(),
            }
            for head in heads
            for is_cosigned in (False, True)
        ],
        "refused": [{"why": why, "note": text} for why, text in changes.items()],
        "places": [
            {"index": index, "width": width, "path": str(TilePlace(index=index, width=width))}
            for index in TILE_INDEXES
            for width in (1, 255, 256)
        ],
        "entries": encode_entries([t.envelope for t in chain.transactions]).hex(),
        "tile": b"".join(merkle.hash_leaf(t.envelope) for t in chain.transactions).hex(),
    }


def build_all() -> dict[str, Vectors]:
    """Return every file of this module by its name."""
    return {
        "accounts": build_accounts(),
        "canonical": build_canonical(),
        "chats": build_chats(),
        "signatures": build_signatures(),
        "digests": build_digests(),
        "transactions": build_transactions(),
        "blocks": build_blocks(),
        "audits": build_audits(),
        "authorities": build_authorities(),
        "merkle": build_merkle(),
        "sampling": build_sampling(),
        "checkpoints": build_checkpoints(),
    }
