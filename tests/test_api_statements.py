"""Statements over HTTP: three forms of one thing, and what is asked for in a wrong way."""

import asyncio
import csv
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import pytest
import yaml

from api import statement_stream as stream
from api import statements as module
from api.app import OPENAPI_FILE
from api.render_statement import CSV_COLUMNS
from api.statements import MAX_AT_ONCE
from ledger.encoding import encode
from ledger.proof import parse_bundle
from ledger.statement import verify_statement
from ledger.totals import LineRole
from ledger.views import statements as views_module
from scripts import verify_receipt as script
from tests.api_node import MINER_KEY, ApiNode, build_registration, sign_report
from tests.builders import CREATED_MS

MODELS = ("llama3.2", "=HYPERLINK(1)", "+1", "-1", "@a", 'a,"b"', "Modèle 😀", "'quoted")
HOUR_MS = 3_600_000


class Ledger:
    """Five blocks, an hour apart: m1 without a key and m2 with one, for one client."""

    def __init__(self, root) -> None:
        self.node = ApiNode(root)
        self.node.start_sealing()
        with self.node.client(role="admin") as client:
            client.post("/v1/miners/register", json={"miner_id": "m1", "capabilities": ["*"]})
            body = build_registration(self.node, "m2", MINER_KEY) | {"capabilities": ["*"]}
            client.post("/v1/miners/register", json=body).raise_for_status()
            self.receipts = [self._finish(client, i, model) for i, model in enumerate(MODELS)]

    def _finish(self, client, number, model):
        """One job, completed and final."""
        node, miner = self.node, "m2" if number % 2 else "m1"
        node.now_ms = CREATED_MS + (number + 1) * HOUR_MS
        key = {"X-Api-Key": node.keys["client"]}
        job = client.post("/v1/jobs", json={"prompt": "p", "model": model}, headers=key).json()
        claim = client.post(f"/v1/jobs/{job['job_id']}/claim", json={"miner_id": miner}).json()
        node.now_ms += 1_500
        report = {"miner_id": miner, "result": "r", "prompt_tokens": 4, "completion_tokens": 1}
        if miner == "m2":
            report = sign_report(
                claim, MINER_KEY, miner="m2", result="r", completed_at_ms=node.now_ms
            )
        done = client.post(f"/v1/jobs/{job['job_id']}/complete", json=report)
        assert done.status_code == 200, done.text
        node.wait_final(number + 1)
        return done.json()


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    ledger = Ledger(tmp_path_factory.mktemp("statements"))
    yield ledger
    ledger.node.close()


@pytest.fixture(scope="module")
def client(ledger):
    with ledger.node.client("strict") as client:
        yield client


@pytest.fixture(scope="module")
def account(ledger):
    return ledger.receipts[0]["client"]


def get(client, account, what="statement", **query):
    return client.get(f"/v1/accounts/{account}/{what}", params=query)


def ids(answer):
    return [line["receipt_id"] for line in answer.json()["lines"]]


# --- what it says -----------------------------------------------------------------------------


def test_a_statement_lists_final_receipts_oldest_first_with_their_totals(ledger, client, account):
    answer = get(client, account)
    statement = answer.json()
    assert ids(answer) == [receipt["receipt_id"] for receipt in ledger.receipts]
    assert statement["account"] == account
    assert statement["period"] == {
        "first_height": 1,
        "last_height": 8,
        "tree_size_before": 0,
        "tree_size_after": 8,
    }
    receipt, line = ledger.receipts[1], statement["lines"][1]
    assert line == {
        "receipt_id": receipt["receipt_id"],
        "job_id": receipt["job_id"],
        "transaction_id": receipt["transaction_id"],
        "timestamp": "2026-01-01T02:00:01.500Z",
        "block_height": 2,
        "role": "client",
        "counterparty": MINER_KEY.account,
        "model": "=HYPERLINK(1)",
        "unit_type": "gpu_seconds",
        "units": 1.5,
        "price": 0.00075,
        "price_micros": 750,
    }
    total = {"receipts": 8, "price": 0.00304, "price_micros": 3040, "tokens": 20, "gpu_seconds": 6}
    none = dict.fromkeys(total, 0)
    assert statement["totals"] == {"earned": none, "spent": total}
    assert [share["counterparty"] for share in statement["by_counterparty"]] == [
        MINER_KEY.account,
        "m1",
    ]
    assert [share["model"] for share in statement["by_model"]] == sorted(MODELS)
    assert statement["by_model"][0]["spent"]["receipts"] == 1


def test_a_provider_earned_what_its_client_spent(client, account):
    statement = get(client, MINER_KEY.account).json()
    assert {line["role"] for line in statement["lines"]} == {"provider"}
    assert {line["counterparty"] for line in statement["lines"]} == {account}
    spent = get(client, account).json()["by_counterparty"][0]["spent"]
    assert statement["totals"]["earned"] == spent
    assert len(get(client, "m1").json()["lines"]) == 4


def test_a_statement_has_the_fields_of_the_document_and_no_others(client, account):
    schemas = yaml.safe_load(OPENAPI_FILE.read_text(encoding="utf-8"))["components"]["schemas"]
    statement = get(client, account, **{"from": "2026-01-01", "to": "2026-01-02"}).json()
    sums = [share[side] for share in statement["by_model"] for side in ("earned", "spent")]
    for name, values in (
        ("Statement", [statement]),
        ("StatementPeriod", [statement["period"]]),
        ("StatementLine", statement["lines"]),
        ("StatementSum", [*statement["totals"].values(), *sums]),
    ):
        documented = schemas[name]["properties"]
        for value in values:
            assert set(value) == set(documented)
    assert set(schemas["StatementLine"]["properties"]["role"]["enum"]) == set(get_args(LineRole))


def test_what_is_not_final_is_not_in_a_statement(tmp_path):
    node = ApiNode(tmp_path)
    with node.client(role="admin") as client:
        client.post("/v1/miners/register", json={"miner_id": "m1", "capabilities": ["*"]})
        job = client.post("/v1/jobs", json={"prompt": "p"}).json()
        client.post(f"/v1/jobs/{job['job_id']}/claim", json={"miner_id": "m1"})
        done = {"miner_id": "m1", "result": "r"}
        client.post(f"/v1/jobs/{job['job_id']}/complete", json=done).raise_for_status()
        statement = get(client, "m1").json()
        assert statement["lines"] == []
        assert statement["period"] == {"tree_size_before": 0, "tree_size_after": 0}
        assert get(client, "m1", "statement/proof").status_code == 404
    node.close()


@pytest.mark.parametrize("account", ["nobody", "a" * 128, "A.b:c@d-e_0", "ait1nobody", "x.csv"])
def test_an_account_without_receipts_has_an_empty_statement(client, account):
    answer = get(client, account)
    assert (answer.status_code, answer.json()["lines"]) == (200, [])
    assert answer.json()["by_model"] == answer.json()["by_counterparty"] == []
    assert 'rel="describedby"' not in answer.headers["Link"]
    assert get(client, account, "statement.csv").text == ",".join(CSV_COLUMNS) + "\r\n"
    refusal = get(client, account, "statement/proof")
    assert (refusal.status_code, refusal.json()["error_code"]) == (404, "RECEIPT_NOT_FOUND")


# --- periods ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "first", "last"),
    [
        ({"from": "2026-01-01"}, 0, 8),
        ({"to": "2026-01-01"}, 0, 0),
        ({"from": "2026-01-02"}, 8, 8),
        ({"from": "2026-01-01T02:00:01.500Z"}, 1, 8),
        ({"from": "2026-01-01T02:00:01.501Z"}, 2, 8),
        ({"to": "2026-01-01T02:00:01.500Z"}, 0, 1),
        ({"to": "2026-01-01T02:00:01.501Z"}, 0, 2),
        ({"to": "2026-01-01T02:00:01.6Z"}, 0, 2),
        ({"from": "2026-01-01T03:00:00+01:00", "to": "2026-01-01T00:30:00-03:00"}, 1, 3),
        ({"from": "2026-01-01T03:00:00Z", "to": "2026-01-01T03:00:01Z"}, 2, 2),
        ({"from": "0001-01-01", "to": "9999-12-31T23:59:59.999Z"}, 0, 8),
        ({"from": "0001-01-01T00:00:00+23:59"}, 0, 8),
    ],
)
def test_the_time_of_the_block_decides_and_the_end_is_outside(
    ledger, client, account, query, first, last
):
    expected = [receipt["receipt_id"] for receipt in ledger.receipts[first:last]]
    answer = get(client, account, **query)
    assert ids(answer) == expected
    rows = list(csv.DictReader(io.StringIO(get(client, account, "statement.csv", **query).text)))
    assert [row["receipt_id"] for row in rows] == expected
    proof = get(client, account, "statement/proof", **query)
    assert proof.status_code == (200 if expected else 404)
    period = answer.json()["period"]
    assert ("from" in period) == ("from" in query and not query["from"].startswith("0001"))
    assert ("to" in period) == ("to" in query)


def test_a_period_is_answered_as_it_was_understood(client, account):
    answer = get(client, account, **{"from": "2026-01-01T03:00:00+01:00", "to": "2026-01-02"})
    assert answer.json()["period"] == {
        "from": "2026-01-01T02:00:00.000Z",
        "to": "2026-01-02T00:00:00.000Z",
        "first_height": 2,
        "last_height": 8,
        "tree_size_before": 1,
        "tree_size_after": 8,
    }


@pytest.mark.parametrize("what", ["statement", "statement.csv", "statement/proof"])
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("from=yesterday", "from"),
        ("from=", "from"),
        ("from=2026-1-1", "from"),
        ("from=2026-02-30", "from"),
        ("from=2026-01-01T25:00:00Z", "from"),
        ("from=2026-01-01T00:00:60Z", "from"),
        ("from=2026-01-01T00:00:00", "from"),
        ("from=2026-01-01T00:00:00%2B24:00", "from"),
        ("from=2026-01-01T00:00:00+01:00", "from"),
        ("from=2026-01-01%0A", "from"),
        ("from=%D9%A2026-01-01", "from"),
        ("from=2026-01-01 ", "from"),
        ("from=1767225600", "from"),
        ("from=0000-01-01", "from"),
        ("from=2026-01-01&from=2026-01-02", "from"),
        ("to=2026-W01-1", "to"),
        ("to=2026-01-01T00:00:00.0000Z", "to"),
        ("to=1969-01-01", "to"),
        ("from=2026-01-01&to=2026-01-01", "to"),
        ("from=2026-01-02&to=2026-01-01", "to"),
    ],
)
def test_a_period_that_is_none_is_refused(client, account, what, query, field):
    answer = client.get(f"/v1/accounts/{account}/{what}?{query}")
    assert (answer.status_code, answer.json()["error_code"]) == (400, "VALIDATION_FAILED")
    assert [error["path"] for error in answer.json()["errors"]] == [field]


@pytest.mark.parametrize(
    "account", ["a" * 129, "-a", ".a", "a b", "a%00", "a%0A", "é", "a%22", "%"]
)
def test_what_cannot_stand_in_a_receipt_is_no_account(client, account):
    for what in ("statement", "statement.csv", "statement/proof"):
        answer = client.get(f"/v1/accounts/{account}/{what}")
        assert (answer.status_code, answer.json()["errors"][0]["path"]) == (400, "account")


# --- forms ------------------------------------------------------------------------------------


def test_csv_has_a_row_for_each_line_and_no_formulas(ledger, client, account):
    answer = get(client, account, "statement.csv")
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8; header=present"
    assert answer.headers["Content-Disposition"] == (
        f'attachment; filename="{account}.statement.csv"'
    )
    assert answer.content.count(b"\r\n") == 9
    rows = list(csv.reader(io.StringIO(answer.text, newline="")))
    assert tuple(rows[0]) == CSV_COLUMNS
    models = [row[CSV_COLUMNS.index("model")] for row in rows[1:]]
    assert models == [
        "llama3.2",
        "'=HYPERLINK(1)",
        "'+1",
        "'-1",
        "'@a",
        'a,"b"',
        "Modèle 😀",
        "'quoted",
    ]
    receipt = ledger.receipts[1]
    assert rows[2] == [
        "2026-01-01T02:00:01.500Z",
        "2",
        *(receipt[name] for name in ("receipt_id", "job_id", "transaction_id")),
        "client",
        MINER_KEY.account,
        "'=HYPERLINK(1)",
        "gpu_seconds",
        "1.5",
        "0.00075",
    ]


def test_the_proof_of_a_statement_is_verified_by_both_verifiers(ledger, client, account):
    query = {"from": "2026-01-01T02:00:00Z", "to": "2026-01-01T05:00:00Z"}
    answer = get(client, account, "statement/proof", **query)
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Content-Disposition"] == (
        f'attachment; filename="{account}.statement.proof.json"'
    )
    verdict = verify_statement(answer.content, genesis=ledger.node.genesis)
    assert verdict.verified, verdict.claims
    genesis = script.parse_genesis(client.get("/v1/genesis").content)
    theirs = script.verify_statement(script.parse_statement(answer.content), genesis)
    assert theirs["verified"]
    shown = get(client, account, **query).json()
    for side, total in (("spent", verdict.totals.spent), ("earned", verdict.totals.earned)):
        assert shown["totals"][side]["price_micros"] == total.price_micros
        assert shown["totals"][side]["receipts"] == total.lines
    assert verdict.lines == len(shown["lines"]) == 3


def test_a_line_cut_out_of_a_statement_is_the_proof_of_its_receipt(ledger, client, account):
    """Under the last line's header; the last line's own is the very bundle of its receipt."""
    statement = json.loads(get(client, account, "statement/proof").content)
    common = {name: statement[name] for name in ("header", "certificate", "epochs")}
    bundle = encode({"v": 1, **statement["entries"][-1], **common})
    receipt_id = ledger.receipts[-1]["receipt_id"]
    assert client.get(f"/v1/receipts/{receipt_id}/proof").content == bundle
    assert parse_bundle(bundle).header.height == 8


@pytest.mark.parametrize("base", ["", "/api"])
def test_a_statement_links_to_its_other_forms(client, account, base):
    answer = client.get(f"{base}/v1/accounts/{account}/statement?to=2026-01-01T02:30:00Z")
    path = f"{base}/v1/accounts/{account}/statement"
    query = "?to=2026-01-01T02%3A30%3A00Z"
    assert answer.headers["Link"] == (
        f'<{path}.csv{query}>; rel="alternate", <{path}/proof{query}>; rel="describedby"'
    )
    assert len(json.loads(client.get(f"{path}/proof{query}").content)["entries"]) == 2
    whole = client.get(f"{base}/v1/accounts/{account}/statement")
    assert f"<{path}.csv>;" in whole.headers["Link"]


def test_head_sends_no_body(client, account):
    for what in ("statement", "statement.csv", "statement/proof"):
        answer = client.head(f"/v1/accounts/{account}/{what}")
        assert (answer.status_code, answer.content) == (200, b"")
    # Only the proof has one: the others are written while they are read.
    assert answer.headers["Content-Length"] == str(len(get(client, account, what).content))


# --- bounds -----------------------------------------------------------------------------------


def test_a_period_that_is_too_long_to_prove_is_refused_with_an_end_that_fits(
    client, account, monkeypatch
):
    what = "statement/proof"
    monkeypatch.setattr(views_module, "MAX_STATEMENT_LINES", 3)
    answer = get(client, account, what)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "VALIDATION_FAILED")
    assert answer.json()["errors"][0]["path"] == "to"
    end = answer.json()["detail"].split("to=")[1].split(" ")[0]
    assert end == "2026-01-01T04:00:01.500Z"
    assert get(client, account, what, to=end).status_code == 200
    assert len(ids(get(client, account, to=end))) == 3


def test_one_block_that_is_too_much_is_said_to_be(client, account, monkeypatch):
    monkeypatch.setattr(views_module, "MAX_STATEMENT_LINES", 0)
    answer = get(client, account, "statement/proof")
    assert (answer.status_code, answer.json()["errors"][0]["path"]) == (400, "from")
    assert "one block holds more" in answer.json()["detail"]


ALONE = MAX_AT_ONCE // 4
"""Statements of one address without a key."""


class SlowViews:
    """The views of a node, whose statements wait until they are let go."""

    def __init__(self, views) -> None:
        self._views = views
        self.begun = threading.Semaphore(0)
        self.let_go = threading.Event()

    def __getattr__(self, name):
        return getattr(self._views, name)

    def statement(self, account, *, from_ms, to_ms):
        self.begun.release()
        assert self.let_go.wait(30)
        return self._views.statement(account, from_ms=from_ms, to_ms=to_ms)


def test_more_statements_at_once_than_a_node_makes_are_asked_to_come_back(ledger, account):
    views = SlowViews(ledger.node.views)
    endpoints = module.StatementEndpoints(views)
    scope = {
        "type": "http",
        "method": "GET",
        "headers": [],
        "query_string": b"",
        "path_params": {"account": account},
    }

    async def ask_all():
        first = [asyncio.ensure_future(endpoints.show(module.Request(scope))) for _ in range(ALONE)]
        await asyncio.to_thread(lambda: [views.begun.acquire(timeout=30) for _ in first])
        with pytest.raises(module.RequestError) as refused:
            await endpoints.show(module.Request(scope))
        views.let_go.set()
        answers = await asyncio.gather(*first)
        with pytest.raises(module.RequestError):  # they are still being sent
            await endpoints.show_csv(module.Request(scope))
        answers[0].ended()
        return refused.value.code, [*answers, await endpoints.show(module.Request(scope))]

    code, answers = asyncio.run(ask_all())
    assert code == "SYSTEM_OVERLOADED"
    assert {answer.status for answer in answers} == {200}


def test_a_node_answers_other_requests_while_it_makes_a_statement(ledger, account, monkeypatch):
    views = SlowViews(ledger.node.views)
    monkeypatch.setattr(ledger.node, "views", views)
    with ledger.node.client() as client, ThreadPoolExecutor(1) as threads:
        answer = threads.submit(get, client, account)
        assert views.begun.acquire(timeout=30)
        assert client.get("/health").status_code == 200
        assert not answer.done()
        views.let_go.set()
        assert answer.result(30).status_code == 200


def test_a_statement_of_many_pieces_is_the_same(client, account, monkeypatch):
    whole = {what: get(client, account, what) for what in ("statement", "statement.csv")}
    monkeypatch.setattr(stream, "PIECE_LINES", 3)
    monkeypatch.setattr(stream, "PIECE_SHARES", 1)
    for what, answer in whole.items():
        assert get(client, account, what).content == answer.content
    assert len(whole["statement"].json()["by_model"]) > 1
    nobody = get(client, "nobody")
    assert (nobody.json()["lines"], nobody.json()["by_model"]) == ([], [])
