"""A chain in memory behind the explorer's two protocols, deterministic and quick to change.

It holds whatever a test puts in, also what no valid ledger could: names are not validated, so that
hostile text reaches every field a page shows.
"""

import asyncio
import hashlib
from collections import Counter
from dataclasses import dataclass, field

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from explorer_ui import ClosingError, build_error_handler, build_explorer
from ledger import merkle
from ledger.audits import AuditTotals
from ledger.authorities import Authority, AuthoritySet, hash_authority_set
from ledger.block import Certificate, Header, find_next_set, hash_header
from ledger.encoding import encode
from ledger.errors import MarketError
from ledger.jobs import Miner, MinerStanding, Queue
from ledger.keys import KeyPair
from ledger.payloads import find_receipt_id, name_type
from ledger.replay import is_suspect
from ledger.transaction import (
    AuthoritySetPayload,
    Envelope,
    Payload,
    ReceiptPayload,
    hash_payload,
    sign_payload,
)
from ledger.views import (
    AccountView,
    AuthoritiesView,
    AuthorityView,
    BlockView,
    EpochView,
    EvidenceView,
    HeadView,
    InclusionView,
    JobView,
    NodeView,
    PaceView,
    PeerView,
    ReceiptFilter,
    ReceiptView,
    SearchHit,
    StatsView,
    SyncProgress,
    TransactionView,
    UsageView,
    VoteView,
)
from tests.builders import build_audit_payload, build_evidence, build_genesis, build_key

START_MS = 1_785_000_000_000
GENESIS = hashlib.sha256(b"fake genesis").hexdigest()
PENDING_CURSOR = 1 << 52
COORDINATOR = KeyPair.from_seed(bytes([1]) * 32)
MINER = KeyPair.from_seed(bytes([2]) * 32)
AUTHORITIES = [KeyPair.from_seed(bytes([10 + n]) * 32) for n in range(4)]
JOINING = KeyPair.from_seed(bytes([20]) * 32)
NAMES = ["north", "east", "south", "west"]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def receipt_id(number: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz234567"
    return "rcp_" + "".join(letters[b % 32] for b in hashlib.sha256(b"%d" % number).digest()[:26])


def build_payload(number: int, **changes) -> ReceiptPayload:
    completion = 18 + number % 40
    values = {
        "genesis": GENESIS,
        "receipt_id": receipt_id(number),
        "job_id": f"job_01K1{number:022d}",
        "attempt": 1,
        "client": "demo",
        "provider": MINER.account,
        "coordinator": COORDINATOR.account,
        "model": "smollm2:135m",
        "model_digest": digest("model"),
        "prompt_digest": digest(f"prompt {number}"),
        "result_digest": digest(f"result {number}"),
        "tokens_digest": "",
        "max_tokens": 64,
        "temperature_micros": 700_000,
        "top_p_micros": 950_000,
        "seed": 4_503_599_627_370_495,
        "sampler": "top-p.v1",
        "prompt_tokens": 20,
        "completion_tokens": completion,
        "unit_type": "tokens",
        "units_micros": (20 + completion) * 1_000_000,
        "price_micros": (20 + completion) * 10,
        "started_at_ms": START_MS + number * 9_000,
        "completed_at_ms": START_MS + number * 9_000 + 1_240,
        "metered_by": "provider",
    }
    return ReceiptPayload(**values | changes)


@dataclass
class FakeMarket:
    """Implements `explorer_ui.Market`."""

    standings: list[MinerStanding] = field(default_factory=list)

    def add_miner(
        self, miner_id: str, *, active=True, running=0, completed=0, lost=0, **changes
    ) -> None:
        values = {
            "miner_id": miner_id,
            "account": MINER.account,
            "capabilities": ("smollm2:135m",),
            "gpu_name": "RTX 4090",
            "gpu_memory": "24 GB",
            "owner": "secretprefix",
            "registered_at_ms": START_MS,
            "last_seen_at_ms": START_MS,
        }
        miner = Miner(**values | changes)
        counts = {"running": running, "completed": completed, "lost": lost}
        self.standings.append(MinerStanding(miner=miner, active=active, **counts))
        self.standings.sort(key=lambda standing: standing.miner.miner_id)

    def miner(self, miner_id: str) -> MinerStanding:
        for standing in self.standings:
            if standing.miner.miner_id == miner_id:
                return standing
        raise MarketError("MINER_NOT_FOUND", "no such miner")

    def miners(self, *, after: str, limit: int) -> list[MinerStanding]:
        return [s for s in self.standings if s.miner.miner_id > after][:limit]


@dataclass
class FakeViews:
    """Implements `explorer_ui.Views`; also rings its bell as a `HeadWatch`."""

    network: str = "aitbc-local"
    authority_names: list[str] = field(default_factory=lambda: list(NAMES))
    signers: int = 3
    chain: list[BlockView] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    final: list[TransactionView] = field(default_factory=list)
    pending: list[TransactionView] = field(default_factory=list)
    miner_ids: dict[str, str] = field(default_factory=dict)
    jobs_24h: int = 7
    bell: asyncio.Condition = field(default_factory=asyncio.Condition)
    closing: bool = False
    others: tuple[PeerView, ...] = ()
    account_here: str = ""
    sync: SyncProgress | None = None
    market: FakeMarket | None = field(default_factory=FakeMarket)
    all_jobs: list[JobView] = field(default_factory=list)

    # --- filling it -----------------------------------------------------------------------------

    def add_receipt(self, number: int, *, miner_id: str | None = "miner-a", **changes) -> str:
        payload = build_payload(number, **changes)
        signatures = [sign_payload(payload, COORDINATOR, "coordinator")]
        if payload.provider == MINER.account:
            signatures.append(sign_payload(payload, MINER, "provider"))
        self.add(payload, signatures, number=number, time_ms=payload.completed_at_ms + 10)
        if miner_id is not None:
            self.miner_ids[payload.receipt_id] = miner_id
        return payload.receipt_id

    def add(self, payload: Payload, signatures, *, number: int, time_ms: int) -> str:
        """Let anything wait, valid or not; returns its id."""
        transaction = TransactionView(
            id=hash_payload(payload).hex(),
            type=name_type(payload),
            finality="pending",
            cursor=PENDING_CURSOR + number,
            leaf=None,
            height=None,
            time_ms=time_ms,
            size_bytes=len(encode(Envelope(payload=payload, signatures=tuple(signatures)))),
            payload=payload,
            signatures=tuple(signatures),
        )
        self.pending.append(transaction)
        return transaction.id

    def add_change(self, **changes) -> str:
        """West leaves, `new` joins, another one coordinates from then on, north is renamed."""
        old = self.authority_set(0).members
        joining = Authority(account=JOINING.account, name="new", url="http://127.0.0.1:9")
        members = (
            msgspec.structs.replace(old[0], name="far north", url="http://127.0.0.1:8"),
            *old[1:3],
            msgspec.structs.replace(joining, **changes),
        )
        payload = AuthoritySetPayload(
            genesis=GENESIS,
            authority_set=AuthoritySet(
                epoch=1, members=members, coordinators=(COORDINATOR.account,)
            ),
            expires_height=1_000,
        )
        deciding = (AUTHORITIES[0], AUTHORITIES[1], AUTHORITIES[3])
        signers = [(key, "authority") for key in (*deciding, JOINING)]
        signatures = [sign_payload(payload, *s) for s in [*signers, (COORDINATOR, "coordinator")]]
        return self.add(payload, signatures, number=500, time_ms=START_MS)

    def add_evidence(self, accused: KeyPair = AUTHORITIES[1], **changes) -> str:
        """The authority cast two notarize votes, or those given."""
        blamed = changes.pop("accused_account", accused.account)
        payload = build_evidence(GENESIS, accused, **changes).payload
        payload = msgspec.structs.replace(payload, accused=blamed)
        return self.add(payload, [], number=600, time_ms=START_MS)

    def add_audit(self, number: int = 0, **changes) -> str:
        """An audit of receipt `number`, by an auditor that has nothing else to do with it."""
        fields = {"receipt_id": receipt_id(number), "coordinator": COORDINATOR.account}
        payload = build_audit_payload(build_genesis(), **(fields | {"genesis": GENESIS} | changes))
        signers = [(build_key("auditor"), "auditor"), (COORDINATOR, "coordinator")]
        signatures = [sign_payload(payload, *signer) for signer in signers]
        return self.add(payload, signatures, number=700 + number, time_ms=START_MS)

    def seal(self) -> BlockView:
        height, first_leaf = len(self.chain) + 1, len(self.final)
        time_ms = max(START_MS + height * 9_000, self.pending[-1].time_ms + 40)
        for offset, transaction in enumerate(self.pending):
            leaf = first_leaf + offset
            changed = {"finality": "final", "cursor": leaf, "leaf": leaf, "height": height}
            self.final.append(replace(transaction, time_ms=time_ms, **changed))
        count, self.pending = len(self.pending), []
        header = Header(
            genesis=GENESIS,
            height=height,
            prev_hash=self.chain[-1].hash if self.chain else GENESIS,
            time_ms=time_ms,
            tree_size=len(self.final),
            tree_root=self.root(len(self.final)),
            set_hash=digest("set"),
            next_set_hash=digest("set"),
            proposer=AUTHORITIES[height % 4].account,
        )
        signed = [(n, AUTHORITIES[n].sign(encode(header))) for n in range(self.signers)]
        votes = dict(signed)
        block = BlockView(
            height=height,
            hash=hash_header(header).hex(),
            prev_hash=header.prev_hash,
            time_ms=time_ms,
            transactions=count,
            first_leaf=first_leaf,
            tree_size=header.tree_size,
            tree_root=header.tree_root,
            set_hash=header.set_hash,
            next_set_hash=header.next_set_hash,
            proposer=header.proposer,
            proposer_name=self.authority_names[height % 4],
            size_bytes=sum(t.size_bytes for t in self.final[first_leaf:]),
            view=0,
            votes=tuple(
                VoteView(index=n, account=key.account, name=name, signature=votes.get(n))
                for n, (key, name) in enumerate(zip(AUTHORITIES, self.authority_names, strict=True))
            ),
            quorum=3,
        )
        certificate = Certificate(view=0, votes=tuple(signed))
        self.chain.append(block)
        self.raw.append(encode({"certificate": certificate, "header": header}))
        return block

    async def announce(self) -> None:
        async with self.bell:
            self.bell.notify_all()

    async def close(self) -> None:
        self.closing = True
        await self.announce()

    async def wait(self, height: int) -> int:
        async with self.bell:
            await self.bell.wait_for(lambda: self.closing or len(self.chain) > height)
        if self.closing:
            raise ClosingError
        return len(self.chain)

    def add_job(self, number: int, state="pending", **changes) -> str:
        """Let there be a job in a state; a completed one has the receipt of the same number."""
        begun, ended = state != "pending", state not in {"pending", "running"}
        values = {
            "job_id": f"job_01K1{number:022d}",
            "cursor": number,
            "state": state,
            "reason": "queued" if state == "pending" else state,
            "client": "demo",
            "model": "smollm2:135m",
            "attempt": 1 if begun else 0,
            "miner_id": "miner-a" if begun else None,
            "created_at_ms": START_MS + number * 9_000 - 500,
            "started_at_ms": START_MS + number * 9_000 if begun else None,
            "completed_at_ms": START_MS + number * 9_000 + 1_240 if ended else None,
            "receipt_id": receipt_id(number) if state == "completed" else None,
            "texts_purged": False,
        }
        job = JobView(**values | changes)
        self.all_jobs = [known for known in self.all_jobs if known.cursor != number] + [job]
        return job.job_id

    # --- the tree -------------------------------------------------------------------------------

    def leaf_hash(self, leaf: int) -> bytes:
        return merkle.hash_leaf(self.final[leaf].id.encode())

    def tree_node(self, level: int, index: int) -> bytes:
        if level == 0:
            return self.leaf_hash(index)
        left, right = self.tree_node(level - 1, 2 * index), self.tree_node(level - 1, 2 * index + 1)
        return merkle.hash_children(left, right)

    def root(self, size: int) -> str:
        return merkle.compute_root(size, self.tree_node).hex()

    # --- reads ----------------------------------------------------------------------------------

    def node(self) -> NodeView:
        return NodeView(account=self.account_here, ledger_bytes=1_234_567)

    def peers(self):
        return self.others

    def head(self) -> HeadView:
        block = self.chain[-1] if self.chain else None
        return HeadView(
            network=self.network,
            genesis=GENESIS,
            height=block.height if block else 0,
            hash=block.hash if block else GENESIS,
            time_ms=block.time_ms if block else START_MS,
            votes=block.signed if block else 0,
            authorities=len(AUTHORITIES),
            pending_transactions=len(self.pending),
            sync=self.sync,
        )

    def stats(self, now_ms: int) -> StatsView:
        assert now_ms > START_MS
        receipts = [t for t in self.final if t.type == "receipt"]
        prices = sorted(t.payload.price_micros for t in receipts)
        return StatsView(
            total_jobs=len(self.final) + len(self.pending),
            jobs_24h=self.jobs_24h,
            active_miners=1,
            total_receipts=len(receipts),
            block_height=len(self.chain),
            median_price_micros=prices[len(prices) // 2] if prices else None,
            block_time_ms=9_000 if len(self.chain) > 1 else None,
        )

    def blocks(self, *, limit: int, before: int | None = None) -> list[BlockView]:
        rows = [b for b in reversed(self.chain) if before is None or b.height < before]
        return rows[:limit]

    def block(self, height: int) -> BlockView | None:
        return self.chain[height - 1] if 0 < height <= len(self.chain) else None

    def block_by_hash(self, hash_hex: str) -> BlockView | None:
        return next((b for b in self.chain if b.hash == hash_hex), None)

    def block_transactions(self, height, *, limit, after=None) -> list[TransactionView]:
        rows = [t for t in self.final if t.height == height and (after is None or t.leaf > after)]
        return rows[:limit]

    def transaction(self, id_hex: str) -> TransactionView | None:
        return next((t for t in self.final + self.pending if t.id == id_hex), None)

    def receipts(
        self, wanted: ReceiptFilter, /, *, limit, before=None, after=None
    ) -> list[ReceiptView]:
        rows = [
            self.view(t)
            for t in sorted(self.final + self.pending, key=lambda t: -t.cursor)
            if t.type == "receipt"
            and (before is None or t.cursor < before)
            and (after is None or t.cursor > after)
        ]
        chosen = [row for row in rows if matches(row, wanted)]
        return chosen[:limit] if after is None else chosen[max(0, len(chosen) - limit) :]

    def jobs(self, state, /, *, limit, before=None, after=None) -> list[JobView]:
        rows = [
            job
            for job in sorted(self.all_jobs, key=lambda job: -job.cursor)
            if state in (None, job.state)
            and (before is None or job.cursor < before)
            and (after is None or job.cursor > after)
        ]
        return rows[:limit] if after is None else rows[max(0, len(rows) - limit) :]

    def job(self, job_id: str, /) -> JobView | None:
        return next((job for job in self.all_jobs if job.job_id == job_id), None)

    def queue(self, job_id: str, /, *, now_ms: int) -> Queue | None:
        waiting = sorted(job.cursor for job in self.all_jobs if job.state == "pending")
        job = self.job(job_id)
        if job.state != "pending":
            return None
        return Queue(position=waiting.index(job.cursor) + 1, eligible_miners=1)

    def count_jobs(self, state, /) -> int:
        return sum(job.state == state for job in self.all_jobs)

    def usage(self, span_ms, /, *, from_ms, to_ms, model=None) -> list[UsageView]:
        sums: dict[int, list[int]] = {}
        for t in self.final:
            start = t.time_ms - t.time_ms % span_ms
            if (
                t.type == "receipt"
                and from_ms <= start < to_ms
                and model in (None, t.payload.model)
            ):
                row = sums.setdefault(start, [0, 0, 0])
                row[0] += 1
                row[1] += t.payload.units_micros
                row[2] += t.payload.price_micros
        return [
            UsageView(
                start_ms=start,
                receipts=row[0],
                tokens_micros=row[1],
                tokens_price_micros=row[2],
                gpu_seconds_micros=0,
                gpu_seconds_price_micros=0,
            )
            for start, row in sorted(sums.items())
        ]

    def top_models(self, span_ms, /, *, from_ms, to_ms, limit) -> list[str]:
        models = Counter(
            t.payload.model
            for t in self.final
            if t.type == "receipt" and from_ms <= t.time_ms - t.time_ms % span_ms < to_ms
        )
        return sorted(models, key=lambda model: (-models[model], model))[:limit]

    def pace(self, span_ms, /, *, from_ms, to_ms) -> list[PaceView]:
        sums: dict[int, list[int]] = {}
        for block, parent in zip(self.chain, [None, *self.chain], strict=False):
            start = block.time_ms - block.time_ms % span_ms
            if from_ms <= start < to_ms:
                row = sums.setdefault(start, [0, 0, 0])
                row[0] += 1
                row[1] += parent is not None
                row[2] += block.time_ms - parent.time_ms if parent else 0
        return [
            PaceView(start_ms=start, blocks=row[0], gaps=row[1], gap_ms=row[2])
            for start, row in sorted(sums.items())
        ]

    def audits(self, receipt_id: str, /, *, limit, before=None) -> list[TransactionView]:
        rows = [
            t
            for t in sorted(self.final + self.pending, key=lambda t: -t.cursor)
            if t.type == "audit"
            and t.payload.receipt_id == receipt_id
            and (before is None or t.cursor < before)
        ]
        return rows[:limit]

    def provider_audits(self, provider: str, /, *, limit, before=None) -> list[TransactionView]:
        rows = [
            t
            for t in reversed(self.final)
            if t.type == "audit"
            and self.receipt(t.payload.receipt_id).payload.provider == provider
            and (before is None or t.cursor < before)
        ]
        return rows[:limit]

    def audit_totals(self, provider: str, /) -> AuditTotals:
        payloads = [t.payload for t in self.provider_audits(provider, limit=1 << 30)]
        return AuditTotals(
            passed=sum(p.verdict == "pass" for p in payloads),
            failed=sum(p.verdict == "fail" for p in payloads),
            tokens=sum(p.tokens for p in payloads),
            exact_tokens=sum(p.exact_tokens for p in payloads),
            gap_micros=sum(p.mean_gap_micros for p in payloads),
            is_suspect=is_suspect([p.mean_gap_micros for p in payloads]),
        )

    def account(self, account: str, /) -> AccountView | None:
        payloads = [t.payload for t in self.final if t.type == "receipt"]
        earned = [p.price_micros for p in payloads if p.provider == account]
        spent = [p.price_micros for p in payloads if p.client == account]
        members = {member.account: member.name for member in self.authorities().members}
        former = {member.account: member.name for member in self.authority_set(0).members}
        waiting = any(
            account in (t.payload.client, t.payload.provider)
            for t in self.pending
            if t.type == "receipt"
        )
        coordinated = sum(p.coordinator == account for p in payloads)
        audited = any(t.type == "audit" and t.payload.auditor == account for t in self.final)
        known = earned or spent or coordinated or waiting or audited
        if not (known or account in members or account in former):
            return None
        return AccountView(
            account=account,
            earned_receipts=len(earned),
            earned_micros=sum(earned),
            spent_receipts=len(spent),
            spent_micros=sum(spent),
            coordinated_receipts=coordinated,
            authority=members.get(account),
            coordinates=account in members,
            is_auditor=audited,
            former_authority=None if account in members else former.get(account),
            miners=tuple(
                s.miner.miner_id
                for s in (self.market.standings if self.market else ())
                if s.miner.account == account
            ),
        )

    def receipt(self, receipt_id: str) -> ReceiptView | None:
        found = [t for t in self.final + self.pending if find_receipt_id(t.payload) == receipt_id]
        return self.view(found[0]) if found else None

    def view(self, transaction: TransactionView) -> ReceiptView:
        miner_id = self.miner_ids.get(transaction.payload.receipt_id)
        return ReceiptView(transaction=transaction, miner_id=miner_id)

    def inclusion(self, leaf: int, height: int) -> InclusionView:
        size = self.chain[height - 1].tree_size
        path = merkle.build_inclusion_path(leaf, size, self.tree_node)
        return InclusionView(
            leaf=leaf,
            leaf_hash=self.leaf_hash(leaf).hex(),
            path=tuple(node.hex() for node in path),
            tree_size=size,
            tree_root=self.root(size),
        )

    def authority_set(self, epoch: int) -> AuthoritySet | None:
        if epoch == 0:
            members = zip(AUTHORITIES, self.authority_names, strict=True)
            return AuthoritySet(
                epoch=0,
                members=tuple(Authority(account=k.account, name=n, url="") for k, n in members),
            )
        for transaction in self.final:
            following = find_next_set([transaction])
            if following is not None and following.epoch == epoch:
                return following
        return None

    def authorities(self) -> AuthoritiesView:
        changes = [t for t in self.final if t.type == "authority_set"]
        current = changes[-1].payload.authority_set if changes else self.authority_set(0)
        found = [t for t in reversed(self.final) if t.type == "evidence"]
        names = {member.account: member.name for member in current.members}
        sets = [
            (self.authority_set(0), 1, None),
            *((t.payload.authority_set, t.height + 1, t.id) for t in changes),
        ]
        return AuthoritiesView(
            height=len(self.chain),
            epoch=current.epoch,
            set_hash=hash_authority_set(current).hex(),
            from_height=sets[-1][1],
            quorum=current.quorum,
            members=tuple(
                AuthorityView(
                    index=index,
                    account=member.account,
                    name=member.name,
                    url=member.url,
                    evidence=sum(t.payload.accused == member.account for t in found),
                )
                for index, member in enumerate(current.members)
            ),
            coordinators=current.coordinators,
            epochs=tuple(
                EpochView(
                    epoch=authority_set.epoch,
                    set_hash=hash_authority_set(authority_set).hex(),
                    from_height=from_height,
                    members=len(authority_set.members),
                    quorum=authority_set.quorum,
                    transaction_id=transaction_id,
                )
                for authority_set, from_height, transaction_id in reversed(sets)
            ),
            evidence=tuple(
                EvidenceView(
                    transaction_id=t.id,
                    block_height=t.height,
                    accused=t.payload.accused,
                    name=names.get(t.payload.accused),
                    height=t.payload.height,
                    view=t.payload.view,
                )
                for t in found
            ),
        )

    def suggest(self, prefix: str, /) -> list[str]:
        hashes = {t.id for t in self.final} | {block.hash for block in self.chain}
        names = hashes if len(prefix) >= 4 else set()
        for t in self.final:
            if t.type == "receipt":
                names |= {t.payload.receipt_id, t.payload.client, t.payload.model}
        return sorted(name for name in names if name.startswith(prefix))[:4]

    def search(self, query: str) -> SearchHit | None:
        if query.isdigit():
            return SearchHit(kind="block", key=query) if self.block(int(query)) else None
        if block := self.block_by_hash(query):
            return SearchHit(kind="block", key=str(block.height))
        if self.transaction(query):
            return SearchHit(kind="transaction", key=query)
        if self.receipt(query):
            return SearchHit(kind="receipt", key=query)
        accounts = {key.account: "authority" for key in AUTHORITIES} | {MINER.account: "account"}
        return SearchHit(kind=accounts[query], key=query) if query in accounts else None

    def raw_block(self, height: int) -> bytes | None:
        return self.raw[height - 1] if 0 < height <= len(self.raw) else None


def matches(row: ReceiptView, wanted: ReceiptFilter) -> bool:
    return (
        wanted.model in (None, row.payload.model)
        and wanted.client in (None, row.payload.client)
        and wanted.provider in (None, row.payload.provider, row.miner_id)
        and (
            wanted.from_ms is None
            or row.transaction.finality == "pending"
            or row.transaction.time_ms >= wanted.from_ms
        )
        and (
            wanted.to_ms is None
            or (row.transaction.finality == "final" and row.transaction.time_ms < wanted.to_ms)
        )
    )


def replace(view: TransactionView, **changes) -> TransactionView:
    values = {name: getattr(view, name) for name in TransactionView.__slots__}
    return TransactionView(**values | changes)


def build_chain(blocks: int, *, per_block: int = 2, **changes) -> FakeViews:
    views, number = FakeViews(), 0
    for _ in range(blocks):
        for _ in range(per_block):
            views.add_receipt(number, **changes)
            number += 1
        views.seal()
    return views


def now_ms() -> int:
    return START_MS + 86_400_000


def build_app(views: FakeViews) -> Starlette:
    handler = build_error_handler(views, release="1.2.3")
    pages = build_explorer(
        views, market=views.market, clock_ms=now_ms, head_changed=views, release="1.2.3"
    )
    return Starlette(
        routes=pages,
        exception_handlers={HTTPException: handler, Exception: handler},
    )
