"""What both faces are shown: every row exactly once, final before pending, each with its proof."""

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import merkle
from ledger.authorities import hash_authority_set
from ledger.block import hash_genesis, parse_genesis
from ledger.encoding import encode
from ledger.proof import parse_bundle, verify_bundle
from ledger.store.chain import ChainStore
from ledger.store.market import open_market
from ledger.store.mempool import insert_transaction
from ledger.views import MAX_PAGE, LedgerViews, ReceiptFilter, SearchHit, lists
from ledger.views import authorities as authority_module
from ledger.views import reader as module
from tests.builders import build_chain, build_evidence, build_key, build_members
from tests.market_node import MINER, MarketNode, sign_report

ALL = ReceiptFilter()
SIZES = (1, 3, 2, 4)
PENDING = 3
MAX_PAGES = 20


class Ledger:
    """A node whose chain has blocks of 1, 3, 2 and 4 receipts, and 3 more that wait."""

    def __init__(self, root) -> None:
        self.node = MarketNode(root)
        self.receipts: list[str] = []
        self.jobs: list[str] = []
        self.key = build_key("miner")
        for size in SIZES:
            for _ in range(size):
                self._finish()
            self.node.now_ms += 1_000
            self.node.seal()
        for _ in range(PENDING):
            self._finish()

    def _finish(self) -> None:
        """By turns: miner m1 without a key for client-1, and m2 with one for client-2."""
        node, number = self.node, len(self.receipts)
        node.register("m1")
        node.register("m2", key=self.key)
        job = node.submit(model=("llama3.2", "mistral", "phi3")[number % 3])
        self.jobs.append(job.job_id)
        if number % 2:
            claim = node.claim(job, "m2")
            node.now_ms += 100
            report = sign_report(claim, self.key, now_ms=node.now_ms, result="r")
            receipt = node.do(node.coordinator.complete(MINER, job.job_id, report))
        else:
            node.claim(job, "m1")
            receipt = node.complete(job, prompt_tokens=number, completion_tokens=1)
        self.receipts.append(receipt.payload.receipt_id)

    @property
    def views(self) -> LedgerViews:
        return self.node.views


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    ledger = Ledger(tmp_path_factory.mktemp("views"))
    yield ledger
    ledger.node.close()


@pytest.fixture
def node(tmp_path):
    node = MarketNode(tmp_path)
    yield node
    node.close()


def ids(rows) -> list[str]:
    return [row.payload.receipt_id for row in rows]


# --- lists ------------------------------------------------------------------------------------


def test_pending_receipts_stand_before_final_ones_and_newest_first(ledger):
    shown = ledger.views.receipts(ALL, limit=100)
    assert ids(shown) == ledger.receipts[::-1]
    finality = [view.transaction.finality for view in shown]
    assert finality == ["pending"] * PENDING + ["final"] * sum(SIZES)
    cursors = [view.transaction.cursor for view in shown]
    assert cursors == sorted(cursors, reverse=True)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 12, 13, 14])
@pytest.mark.parametrize("kind", ["receipts", "transactions", "blocks", "filtered"])
def test_cursors_lead_through_everything_exactly_once(ledger, kind, size):
    views = ledger.views
    read, cursor = {
        "receipts": (lambda **page: views.receipts(ALL, **page), lambda r: r.transaction.cursor),
        "transactions": (views.transactions, lambda row: row.cursor),
        "blocks": (views.blocks, lambda row: row.height),
        "filtered": (
            lambda **page: views.receipts(ReceiptFilter(provider="m2"), **page),
            lambda row: row.transaction.cursor,
        ),
    }[kind]
    pages, before = [], None
    for _ in range(MAX_PAGES):
        page = read(limit=size, before=before)
        if not page:
            break
        assert len(page) <= size
        pages += page
        before = cursor(page[-1])
    assert pages == read(limit=100)
    assert len({cursor(row) for row in pages}) == len(pages)


def test_a_row_that_becomes_final_between_two_pages_is_not_lost(node):
    receipts = [node.finish() for _ in range(6)]
    first = node.views.receipts(ALL, limit=2)
    node.seal()
    seen, before = ids(first), first[-1].transaction.cursor
    for _ in range(MAX_PAGES):
        page = node.views.receipts(ALL, limit=2, before=before)
        if not page:
            break
        seen += ids(page)
        before = page[-1].transaction.cursor
    assert set(seen) == set(receipts)


def test_what_is_final_and_still_in_the_mempool_is_shown_once_as_final(node, monkeypatch):
    """So it is between the ledger's commit and the mempool's, or after a crash there."""
    receipts = [node.finish() for _ in range(3)]

    def lose_power(_ids):
        raise RuntimeError

    monkeypatch.setattr(node.mempool, "remove", lose_power)
    with pytest.raises(RuntimeError):
        node.seal()
    assert node.chain.tip().height == 1
    assert len(node.pending_receipts) == 3
    shown = node.views.receipts(ALL, limit=100)
    assert ids(shown) == receipts[::-1]
    assert {view.transaction.finality for view in shown} == {"final"}
    assert {view.finality for view in node.views.transactions(limit=100)} == {"final"}
    for view in shown:
        assert node.views.receipt(view.payload.receipt_id).transaction.finality == "final"
        assert node.views.transaction(view.transaction.id).finality == "final"


def test_transactions_of_every_type_are_listed_and_receipts_are_listed_alone(node):
    evidence = [build_evidence(node.genesis, node.key, view=view) for view in range(2)]
    first = node.finish()
    node.store.write(lambda c: insert_transaction(c, evidence[0], now_ms=node.now_ms)).result()
    node.seal()
    second = node.finish()
    node.store.write(lambda c: insert_transaction(c, evidence[1], now_ms=node.now_ms)).result()
    for wanted in (ALL, ReceiptFilter(client="client-1")):
        assert ids(node.views.receipts(wanted, limit=100)) == [second, first]
    shown = node.views.transactions(limit=100)
    assert [(view.type, view.finality) for view in shown] == [
        ("evidence", "pending"),
        ("receipt", "pending"),
        ("evidence", "final"),
        ("receipt", "final"),
    ]
    for view, transaction in ((shown[0], evidence[1]), (shown[2], evidence[0])):
        assert view.payload == transaction.payload
        assert node.views.transaction(transaction.id.hex()) == view
        assert node.views.search(transaction.id.hex()).kind == "transaction"
    assert node.views.transactions(limit=1, before=shown[1].cursor) == shown[2:3]
    assert [view.type for view in node.views.block_transactions(1, limit=9)] == [
        "receipt",
        "evidence",
    ]
    assert node.views.stats(node.now_ms).total_receipts == 1
    assert node.views.head().pending_transactions == 2


@pytest.mark.parametrize("limit", [0, -1, -1000])
def test_a_limit_of_nothing_shows_nothing(ledger, limit):
    assert ledger.views.receipts(ALL, limit=limit) == []
    assert ledger.views.transactions(limit=limit) == []
    assert ledger.views.blocks(limit=limit) == []
    assert ledger.views.block_transactions(2, limit=limit) == []


def test_no_list_is_longer_than_a_page(ledger, monkeypatch):
    monkeypatch.setattr(module, "MAX_PAGE", 3)
    monkeypatch.setattr(lists, "MAX_PAGE", 3)
    assert len(ledger.views.receipts(ALL, limit=1000)) == 3
    assert len(ledger.views.transactions(limit=1000)) == 3
    assert len(ledger.views.blocks(limit=1000)) == 3
    assert len(ledger.views.block_transactions(4, limit=1000)) == 3
    assert MAX_PAGE == 100


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        (ReceiptFilter(client="client-1"), lambda i: True),
        (ReceiptFilter(client="nobody"), lambda i: False),
        (ReceiptFilter(provider="m1"), lambda i: i % 2 == 0),
        (ReceiptFilter(provider="m2"), lambda i: i % 2 == 1),
        (ReceiptFilter(provider=build_key("miner").account), lambda i: i % 2 == 1),
        (ReceiptFilter(provider=build_key("other").account), lambda i: False),
        (ReceiptFilter(model="mistral"), lambda i: i % 3 == 1),
        (ReceiptFilter(model="MISTRAL"), lambda i: False),
        (ReceiptFilter(provider="m2", model="phi3"), lambda i: i % 2 == 1 and i % 3 == 2),
        (ReceiptFilter(client="' OR 1=1 --"), lambda i: False),
    ],
)
def test_filters_choose_among_pending_and_final_alike(ledger, wanted, chosen):
    expected = [name for i, name in enumerate(ledger.receipts) if chosen(i)]
    assert ids(ledger.views.receipts(wanted, limit=100)) == expected[::-1]


def test_a_receipt_names_its_miner_and_its_signer(ledger):
    for i, receipt_id in enumerate(ledger.receipts):
        view = ledger.views.receipt(receipt_id)
        assert view.miner_id == ("m2" if i % 2 else "m1")
        assert (view.provider_signature is not None) == (i % 2 == 1)
        assert view.payload.job_id == ledger.jobs[i]


# --- blocks -----------------------------------------------------------------------------------


def test_blocks_tell_what_is_in_them(ledger):
    views, leaf = ledger.views, 0
    for height, size in enumerate(SIZES, 1):
        block = views.block(height)
        assert (block.height, block.transactions, block.first_leaf) == (height, size, leaf)
        assert (block.signed, block.quorum, len(block.votes)) == (1, 1, 1)
        assert block.proposer_name == "authority 0"
        assert views.block_by_hash(block.hash) == block
        rows = views.block_transactions(height, limit=100)
        assert [row.leaf for row in rows] == list(range(leaf, leaf + size))
        assert [row.height for row in rows] == [height] * size
        assert sum(row.size_bytes for row in rows) == block.size_bytes
        leaf += size
        assert block.tree_size == leaf
    assert [block.height for block in views.blocks(limit=100)] == [4, 3, 2, 1]
    assert views.blocks(limit=1)[0].prev_hash == views.block(3).hash


def test_a_blocks_transactions_are_paged_by_leaf(ledger):
    rows = ledger.views.block_transactions(4, limit=100)
    paged, after = [], None
    for _ in range(MAX_PAGES):
        page = ledger.views.block_transactions(4, limit=3, after=after)
        if not page:
            break
        paged += page
        after = page[-1].leaf
    assert paged == rows


def test_a_raw_block_is_the_canonical_bytes_of_header_and_certificate(ledger):
    bundle = parse_bundle(ledger.views.bundle(ledger.receipts[0]))
    expected = encode({"header": bundle.header, "certificate": bundle.certificate})
    assert ledger.views.raw_block(1) == expected


@pytest.mark.parametrize("height", [0, -1, 5, 2**53])
def test_there_is_no_block_outside_the_chain(ledger, height):
    assert ledger.views.block(height) is None
    assert ledger.views.raw_block(height) is None
    assert ledger.views.block_transactions(height, limit=9) == []


# --- proofs -----------------------------------------------------------------------------------


def test_the_bundle_of_every_final_receipt_verifies(ledger):
    genesis = ledger.node.genesis
    for i, receipt_id in enumerate(ledger.receipts[: sum(SIZES)]):
        verdict = verify_bundle(ledger.views.bundle(receipt_id), genesis=genesis)
        assert verdict.verified, verdict.claims
        assert verdict.receipt_id == receipt_id
        statuses = {claim.name: claim.status for claim in verdict.claims}
        assert statuses["provider_signature"] == ("verified" if i % 2 else "not_applicable")
        assert parse_bundle(ledger.views.bundle(receipt_id)).epochs == ()


def test_there_is_no_bundle_of_what_is_pending_or_unknown(ledger):
    assert ledger.views.bundle(ledger.receipts[-1]) is None
    assert ledger.views.bundle("rcp_" + "a" * 26) is None


def test_the_bundle_of_another_network_does_not_verify(ledger):
    document = encode(ledger.node.genesis).replace(b"test-net", b"tess-net")
    verdict = verify_bundle(
        ledger.views.bundle(ledger.receipts[0]), genesis=parse_genesis(document)
    )
    assert not verdict.verified


def test_every_leaf_has_a_path_to_its_own_and_every_later_root(ledger):
    for leaf in range(sum(SIZES)):
        for height in range(1, len(SIZES) + 1):
            block = ledger.views.block(height)
            if leaf < block.tree_size:
                shown = ledger.views.inclusion(leaf, height)
                assert (shown.tree_root, shown.tree_size) == (block.tree_root, block.tree_size)
                merkle.verify_inclusion(
                    leaf=bytes.fromhex(shown.leaf_hash),
                    index=leaf,
                    size=shown.tree_size,
                    path=[bytes.fromhex(node) for node in shown.path],
                    root=bytes.fromhex(block.tree_root),
                )


# --- authorities ------------------------------------------------------------------------------


def test_the_authorities_of_a_new_chain_are_those_of_genesis(node):
    shown = node.views.authorities()
    first = node.genesis.authority_set
    assert (shown.height, shown.epoch, shown.from_height, shown.quorum) == (0, 0, 1, 1)
    assert [(m.index, m.account, m.name, m.evidence) for m in shown.members] == [
        (0, node.key.account, "authority 0", 0)
    ]
    assert [(e.epoch, e.transaction_id) for e in shown.epochs] == [(0, None)]
    assert shown.evidence == ()
    assert node.views.authority_set(0) == first
    assert node.views.authority_set(1) is None
    assert node.views.authority_set(-1) is None


def build_changed_views(root, changes: int = 2):
    """A chain whose set changes again and again, with evidence against two of its members."""
    chain = build_chain(4, blocks=[1])
    for epoch in range(1, changes + 1):
        members = build_members(5, epoch=epoch)
        chain.change_authorities(members, coordinators=[build_key("coordinator")])
    for key, height in ((chain.members[3], 2), (build_members(4)[0], 1), (chain.members[3], 3)):
        chain.append(build_evidence(chain.genesis, key, height=height, view=height))
    store = ChainStore(root / "ledger.db", chain.genesis)
    for block, certificate in zip(chain.blocks, chain.certificates, strict=True):
        store.append(block, certificate).result()
    market = open_market(root / "node.db", hash_genesis(chain.genesis))
    return chain, store, market


def test_authorities_are_told_with_their_history_and_the_evidence_against_them(tmp_path):
    chain, store, market = build_changed_views(tmp_path)
    with contextlib.closing(store), contextlib.closing(market):
        views = LedgerViews(store, market)
        shown = views.authorities()
        current = chain.tip.authority_set
        assert (shown.epoch, shown.from_height, shown.height) == (2, 4, 6)
        assert shown.set_hash == hash_authority_set(current).hex()
        assert [m.account for m in shown.members] == [m.account for m in current.members]
        assert [m.evidence for m in shown.members] == [1, 0, 0, 2, 0]
        assert shown.coordinators == (build_key("coordinator").account,)
        changes = [t for t in chain.transactions if t.type == "authority_set"]
        assert [
            (e.epoch, e.from_height, e.members, e.quorum, e.transaction_id) for e in shown.epochs
        ] == [
            (2, 4, 5, 4, changes[1].id.hex()),
            (1, 3, 5, 4, changes[0].id.hex()),
            (0, 1, 4, 3, None),
        ]
        assert [(e.block_height, e.height, e.view, e.name) for e in shown.evidence] == [
            (6, 3, 3, "authority 3"),
            (5, 1, 1, "authority 0"),
            (4, 2, 2, "authority 3"),
        ]
        assert [views.authority_set(epoch) for epoch in (0, 1, 2)] == [
            chain.genesis.authority_set,
            *(epoch.authority_set for epoch in chain.epochs),
        ]
        assert views.head().authorities == 5
        for account in (current.members[1].account, build_key("coordinator").account):
            assert views.search(account) == SearchHit(kind="authority", key=account)
        assert views.search(chain.genesis.authority_set.members[3].account) is None
        block = views.block(2)
        assert (len(block.votes), block.quorum) == (4, 3)
        assert (len(views.block(3).votes), views.block(3).set_hash) == (5, block.next_set_hash)


def test_who_sealed_blocks_once_is_known_after_leaving_and_so_is_a_member_without_a_job(tmp_path):
    chain, store, market = build_changed_views(tmp_path)
    with contextlib.closing(store), contextlib.closing(market):
        views = LedgerViews(store, market)
        gone, stays = chain.genesis.authority_set.members[3], chain.tip.authority_set.members[1]
        left, present = views.account(gone.account), views.account(stays.account)
        assert (left.authority, left.former_authority) == (None, gone.name)
        assert (present.authority, present.former_authority) == (stays.name, None)
        assert views.account("epoch") is None


def test_a_long_history_of_authorities_is_bounded(tmp_path, monkeypatch):
    chain, store, market = build_changed_views(tmp_path, changes=4)
    monkeypatch.setattr(authority_module, "MAX_PAGE", 2)
    with contextlib.closing(store), contextlib.closing(market):
        shown = LedgerViews(store, market).authorities()
    assert [epoch.epoch for epoch in shown.epochs] == [4, 3]
    assert [found.block_height for found in shown.evidence] == [8, 7]
    assert shown.epoch == chain.tip.authority_set.epoch


# --- head, figures, search --------------------------------------------------------------------


def test_the_head_of_an_empty_chain_is_genesis(node):
    head = node.views.head()
    digest = hash_genesis(node.genesis).hex()
    assert (head.height, head.hash, head.genesis, head.votes) == (0, digest, digest, 0)
    assert (head.network, head.authorities, head.pending_transactions) == ("test-net", 1, 0)


def test_the_head_is_the_newest_block(ledger):
    head = ledger.views.head()
    assert (head.height, head.hash) == (4, ledger.views.block(4).hash)
    assert (head.votes, head.authorities, head.pending_transactions) == (1, 1, PENDING)


def test_the_figures_of_an_empty_node_are_none_or_nothing(node):
    stats = node.views.stats(node.now_ms)
    assert (stats.total_jobs, stats.jobs_24h, stats.active_miners) == (0, 0, 0)
    assert (stats.total_receipts, stats.block_height) == (0, 0)
    assert (stats.median_price_micros, stats.block_time_ms) == (None, None)


def test_the_figures_count_what_there_is(ledger):
    stats = ledger.views.stats(ledger.node.now_ms)
    assert stats.total_jobs == stats.jobs_24h == len(ledger.jobs)
    assert (stats.active_miners, stats.total_receipts, stats.block_height) == (2, 10, 4)
    times = [block.time_ms for block in ledger.views.blocks(limit=9)]
    gaps = sorted(newer - older for newer, older in itertools.pairwise(times))
    assert stats.block_time_ms == gaps[1]
    later = ledger.views.stats(ledger.node.now_ms + module.DAY_MS + 1)
    assert (later.total_jobs, later.jobs_24h, later.active_miners) == (13, 0, 0)


def test_the_median_price_is_of_final_receipts(node):
    for tokens in (1, 2, 50):
        node.register()
        job = node.submit()
        node.claim(job)
        node.complete(job, prompt_tokens=tokens, completion_tokens=0)
    assert node.views.stats(node.now_ms).median_price_micros is None
    node.seal()
    assert node.views.stats(node.now_ms).median_price_micros == 2 * 2


def test_a_search_finds_each_kind_of_thing(ledger):
    views = ledger.views
    block = views.block(2)
    final, pending = views.receipt(ledger.receipts[0]), views.receipt(ledger.receipts[-1])
    account = ledger.key.account
    for query, kind, key in (
        ("2", "block", "2"),
        ("#2", "block", "2"),
        (" 2 ", "block", "2"),
        (block.hash, "block", "2"),
        (block.hash.upper(), "block", "2"),
        (final.transaction.id, "transaction", final.transaction.id),
        (pending.transaction.id, "transaction", pending.transaction.id),
        (ledger.receipts[0], "receipt", ledger.receipts[0]),
        (ledger.receipts[-1].upper(), "receipt", ledger.receipts[-1]),
        (ledger.jobs[0], "receipt", ledger.receipts[0]),
        (ledger.jobs[-1], "receipt", ledger.receipts[-1]),
        (account, "account", account),
    ):
        hit = views.search(query)
        assert (hit.kind, hit.key) == (kind, key), query


@pytest.mark.parametrize(
    "query",
    [
        *("", " ", "0", "5", "-1", "99999999999999999999", "1.0", "x", "#", "%", "_", "*", "m1"),
        *("0" * 64, "f" * 63, "rcp_" + "a" * 26, "job_" + "0" * 26, "client-1", "'", "\x00"),
        build_key("nobody").account,
    ],
)
def test_a_search_for_what_is_not_there_finds_nothing(ledger, query):
    assert ledger.views.search(query) is None


@given(st.text(max_size=80))
def test_no_text_breaks_a_search(ledger, query):
    ledger.views.search(query)


@pytest.mark.parametrize("text", ["", "x", "0" * 63, "0" * 65, "G" * 64, "AB" * 32, "\x00" * 64])
def test_what_is_no_hash_is_nobodys(ledger, text):
    assert ledger.views.transaction(text) is None
    assert ledger.views.block_by_hash(text) is None


# --- jobs -----------------------------------------------------------------------------------------


def test_jobs_are_shown_without_their_texts_and_read_by_index(node):
    node.register("m1")
    waiting = node.submit(prompt="a secret")
    running = node.submit(prompt="a secret")
    node.claim(running, "m1")
    views, reader, statements = node.views, node.store.reader, []
    reader.set_trace_callback(statements.append)
    try:
        assert [job.job_id for job in views.jobs(None, limit=9)] == [
            running.job_id,
            waiting.job_id,
        ]
        (job,) = views.jobs("running", limit=9)
        assert views.jobs("running", limit=9, before=job.cursor) == []
        first = views.jobs("pending", limit=9, after=0)[0].job_id
        assert views.job(job.job_id) == job
    finally:
        reader.set_trace_callback(None)
    assert (job.state, job.miner_id, job.attempt, first) == ("running", "m1", 1, waiting.job_id)
    assert "secret" not in repr(views.jobs(None, limit=9))
    for statement in statements:
        assert "*" not in statement
        assert "prompt" not in statement
        plan = [row[3] for row in reader.execute(f"EXPLAIN QUERY PLAN {statement}")]
        assert [step for step in plan if step.startswith(("SCAN", "USE TEMP"))] == [], statement
    assert views.search(waiting.job_id) == SearchHit(kind="job", key=waiting.job_id)
    assert views.queue(waiting.job_id, now_ms=node.now_ms).position == 1
    assert views.queue(running.job_id, now_ms=node.now_ms) is None
    assert (views.count_jobs("pending"), views.count_jobs("failed")) == (1, 0)
