"""The explorer's answers without a browser: content, headers, caching, hostile text, prefixes."""

import dataclasses
import re
import tomllib
import unicodedata
from urllib.parse import quote

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from explorer_ui.jobs import STATES
from explorer_ui.site import SECURITY_HEADERS
from ledger.block import hash_header, parse_header
from ledger.encoding import encode
from ledger.transaction import Envelope, hash_payload
from ledger.views import PeerView, SyncProgress
from scripts.vendor import VENDOR, find_problems
from tests.crawler import OF_THE_API, Skeleton, crawl, text_of
from tests.fake_views import (
    AUTHORITIES,
    COORDINATOR,
    GENESIS,
    JOINING,
    MINER,
    FakeViews,
    build_app,
    build_chain,
    receipt_id,
)

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
NEWEST_FIRST = [receipt_id(number) for number in [100, *range(59, -1, -1)]]
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</bdi></td></table><h1>pwned",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "</template><hx-partial hx-target='body'>gone</hx-partial>",
    "&lt;b&gt;&amp;#60;",
    "a\u202egpj.exe\u2066\u200b\u2028\u0000\u001b[31m\r\ndata: x\n\nid: 9",
    "\u3164\u115f\ufeff\U000e0041\u00a0",
    "Z" + "\u0335" * 40,
    "../../etc/passwd?a=b#c",
    "عربى " * 20,
    "x" * 128,
]


@pytest.fixture(name="views")
def build_views() -> FakeViews:
    views = build_chain(30)
    views.add_receipt(100)
    views.market.add_miner("miner-a")
    for number, state in enumerate(STATES):
        views.add_job(number, state)
    return views


def build_changed_views() -> FakeViews:
    """A change of the authorities in block 2, evidence against east in block 3."""
    views = build_chain(1)
    views.add_change()
    views.seal()
    views.add_evidence(height=2, view=6)
    views.seal()
    return views


@pytest.fixture(name="client")
def build_client(views):
    with TestClient(build_app(views), follow_redirects=False) as client:
        yield client


def every_address(views: FakeViews) -> list[str]:
    final, pending = views.final[-1], views.pending[-1]
    return [
        *(
            "/",
            "/blocks",
            "/blocks?before=6",
            "/blocks/1",
            f"/blocks/{len(views.chain)}",
            "/receipts",
        ),
        *("/receipts?before=4", "/receipts?model=x&miner=y&client=z", "/receipts?client=demo"),
        *(f"/receipts/{transaction.payload.receipt_id}" for transaction in (final, pending)),
        *(f"/txs/{transaction.id}" for transaction in (final, pending)),
        *(f"/accounts/{account}" for account in (MINER.account, COORDINATOR.account)),
        *(f"/accounts/{AUTHORITIES[0].account}?as=client", "/miners"),
        "/receipts?from=2026-07-25&to=2027-01-01",
        *("/jobs", "/jobs?status=failed", "/pending"),
        *("/charts/throughput", "/charts/jobs?range=week", "/charts/price?range=month"),
        *("/charts/blocktime?range=year", "/playground"),
        *(f"/jobs/{job.job_id}" for job in views.all_jobs),
        "/verify",
        "/network",
        *(f"/txs/{transaction.id}" for transaction in views.final if transaction.type != "receipt"),
        *("/search", "/search?q=demo", "/search?q=nothing", "/search?q=77", "/search?q=abcdef12"),
    ]


# --- headers ------------------------------------------------------------------------------------


def test_every_page_answers_with_the_security_headers_and_one_heading(client, views):
    missing = ["/blocks/99", "/receipts/rcp_x", "/nope"]
    for address in [*every_address(views), *missing]:
        response = client.get(address)
        assert response.status_code == (404 if address in missing else 200), address
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        assert response.headers["content-security-policy"] == CSP
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "same-origin"
        assert response.headers["cache-control"] == "no-cache"
        assert response.text.count("<h1") == 1, address
        assert 'href="#main"' in response.text
        assert '<main id="main"' in response.text


def test_pages_hold_no_script_or_style_of_their_own(client, views):
    for address in every_address(views):
        for tag, names in Skeleton(client.get(address).text).tags:
            assert tag != "style"
            assert tag != "script" or "src" in names
            assert not [name for name in names if name == "style" or name.startswith("on")]


# --- what pages say -----------------------------------------------------------------------------


def test_the_receipt_is_summed_up_in_one_sentence(client, views):
    views.add_receipt(300, client="demo", price_micros=380, units_micros=38_000_000)
    views.seal()
    text = text_of(client.get(f"/receipts/{receipt_id(300)}"))
    assert (
        "Miner miner-a ran smollm2:135m for demo: 38 tokens for 0.00038 credits, "
        "signed by both sides, final in block #31." in text
    )
    assert "38 tokens \u00d7 0.00001" in text
    assert f"/v1/receipts/{receipt_id(300)}/proof" in text
    assert "scripts/verify_receipt.py" in text
    assert GENESIS in text


def test_a_pending_receipt_never_claims_to_be_final(client, views):
    text = text_of(client.get(f"/receipts/{receipt_id(100)}"))
    assert "waiting for the next block." in text
    assert "There is no proof yet" in text
    assert "final in block" not in text
    assert f"/v1/receipts/{receipt_id(100)}/proof" not in text


def test_a_miner_without_a_key_is_said_to_have_none(client, views):
    views.add_receipt(301, provider="laptop", miner_id="laptop")
    views.seal()
    text = text_of(client.get(f"/receipts/{receipt_id(301)}"))
    assert "signed by the coordinator alone" in text
    assert "the miner has no key" in text


def test_a_block_says_who_signed_and_who_did_not(client, views):
    text = text_of(client.get("/blocks/7"))
    assert "This block is final: 3 of 4 authorities signed it (3 needed). It holds 2 tra" in text
    assert text.count("not in this certificate") == 1
    for vote in views.block(7).votes:
        assert (vote.signature or vote.account) in text


def test_the_merkle_path_of_the_page_is_the_whole_path(client, views):
    text = text_of(client.get(f"/receipts/{receipt_id(5)}"))
    inclusion = views.inclusion(5, views.final[5].height)
    assert [text.count(node) for node in inclusion.path] == [1] * len(inclusion.path)
    assert inclusion.tree_root in text


def test_a_new_network_explains_itself_on_every_list():
    with TestClient(build_app(FakeViews())) as client:
        assert "first completed job will seal its first block" in text_of(client.get("/"))
        assert "no blocks yet" in text_of(client.get("/blocks"))
        assert "no receipts yet" in text_of(client.get("/receipts"))
        assert "Height 0 is the genesis" in text_of(client.get("/blocks/0"))


# --- authorities --------------------------------------------------------------------------------


def test_the_network_page_tells_whom_this_node_talks_to():
    views = FakeViews()
    hostile = "<b>south</b>\u202e"
    views.others = (
        PeerView(account="ait1x", name="east", url="http://e.example", height=12_345, answers=True),
        PeerView(account="ait1y", name=hostile, url="", height=0, answers=False),
    )
    with TestClient(build_app(views)) as client:
        text, first = text_of(client.get("/network")), client.get("/network")
        assert "east http://e.example #12,345 answers" in text
        assert "<b>south" not in first.text
        assert "states none #0 away" in text
        assert client.get("/network.json").json()["peers"][0]["height"] == 12_345
        views.others = ()
        again = client.get("/network", headers={"If-None-Match": first.headers["etag"]})
        assert again.status_code == 200
        assert "Whom this node talks to" not in again.text


def build_progress(state, eta_s=None):
    return SyncProgress(
        state=state,
        height=9,
        target_height=9_000,
        blocks_per_s=0.0,
        receipts_per_s=0.0,
        eta_s=eta_s,
        source=None,
        last_error=None,
    )


@pytest.mark.parametrize(
    ("sync", "sentence"),
    [
        (build_progress("syncing", eta_s=75), "catching up to #9,000, about"),
        (build_progress("syncing"), "catching up to #9,000"),
        (build_progress("stalled"), "cut off no other node answers"),
    ],
)
def test_every_page_says_when_the_node_is_behind(sync, sentence):
    views = FakeViews()
    with TestClient(build_app(views)) as client:
        before = client.get("/blocks")
        views.sync = sync
        for path in ("/", "/blocks", "/network", "/search?q=nothing"):
            assert sentence in text_of(client.get(path))
        behind = client.get("/blocks", headers={"If-None-Match": before.headers["etag"]})
        assert behind.status_code == 200


def test_the_network_page_tells_who_seals_and_how_that_changed():
    views = build_changed_views()
    change, evidence = views.final[2], views.final[3]
    with TestClient(build_app(views)) as client:
        text = text_of(client.get("/network"))
        html = client.get("/network").text
    assert "4 authorities seal the blocks of this network; 3 of them make a block final." in text
    assert "It goes on while at most 1 of them is down." in text
    assert "the set of epoch 1, and certify the blocks from #3 on" in text
    for member in views.authorities().members:
        assert member.account in text
    assert "far north" in text
    assert "<bdi>west</bdi>" not in html
    assert html.count('<span class="state absent">voted twice</span>') == 1
    assert COORDINATOR.account in text
    for transaction in (change, evidence):
        assert f'href="/txs/{transaction.id}"' in html


@pytest.mark.parametrize(
    ("size", "quorum", "sentence"),
    [
        (1, 1, "One authority seals the blocks of this network by itself. If it stops, so does"),
        (2, 2, "2 authorities seal the blocks of this network; 2 of them make a block final. If"),
        (7, 5, "It goes on while at most 2 of them are down."),
    ],
)
def test_the_network_page_says_how_many_may_be_down(monkeypatch, size, quorum, sentence):
    views = FakeViews()
    shown = views.authorities()
    shown = dataclasses.replace(
        shown, members=(shown.members * 2)[:size], quorum=quorum, evidence=()
    )
    monkeypatch.setattr(views, "authorities", lambda: shown)
    with TestClient(build_app(views)) as client:
        assert sentence in text_of(client.get("/network"))


def test_the_twin_of_the_network_page_is_what_the_page_shows():
    views = build_changed_views()
    with TestClient(build_app(views)) as client:
        response = client.get("/network.json")
        again = client.get("/network.json", headers={"if-none-match": response.headers["etag"]})
    assert response.content == encode({"authorities": views.authorities(), "peers": []})
    assert again.status_code == 304


def rows_of(response) -> list[str]:
    """The rows of the only table of a page, without its head."""
    (body,) = re.findall(r"<tbody>(.*?)</tbody>", response.text, re.DOTALL)
    return re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)


def test_a_change_is_shown_beside_the_set_that_it_replaces():
    views = build_changed_views()
    change = views.final[2]
    with TestClient(build_app(views)) as client:
        response = client.get(f"/txs/{change.id}")
    text = text_of(response)
    assert "changes the authorities of this network from block #3 on and is final in" in text
    assert "3 of the 4 authorities before it signed it (3 needed)" in text
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows_of(response)]
    rows = [[re.sub(r"<[^>]*>", " ", cell).split() for cell in row] for row in cells]
    assert [(" ".join(name), *what, *signed) for name, _, _, what, signed in rows] == [
        ("far north was north", "stays", "yes"),
        ("east", "stays", "yes"),
        ("south", "stays", "no"),
        ("new", "joins", "yes"),
        ("west", "leaves", "yes"),
    ]
    assert [" ".join(url) for _, _, url, _, _ in rows][:2] == [
        "http://127.0.0.1:8 was not stated",
        "not stated",
    ]
    assert "May issue receipts from then on" in text
    assert "May no longer issue receipts" not in text


def test_a_change_that_waits_does_not_claim_a_block():
    views = build_chain(1)
    change = views.add_change()
    with TestClient(build_app(views)) as client:
        text = text_of(client.get(f"/txs/{change}"))
    assert "changes the authorities of this network and is pending" in text


def test_a_change_of_a_set_that_is_not_known_here_is_not_compared(monkeypatch):
    views = build_chain(1)
    change = views.add_change()
    monkeypatch.setattr(views, "authority_set", lambda _epoch: None)
    with TestClient(build_app(views)) as client:
        assert "a set that has not begun here" in text_of(client.get(f"/txs/{change}"))


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        (
            {},
            [
                "was audited and passed and is pending",
                "each of the 10 tokens of the answer: 9 of them (90 %) it would have chosen",
                "there is none that its model could not have chosen",
                "ends where the model ended it",
                "The tokens spell the text of the result.",
            ],
        ),
        (
            {
                "verdict": "fail",
                "tokens": 2000,
                "exact_tokens": 1999,
                "outside_tokens": 1,
                "ending": "early",
                "text_matches": False,
            },
            [
                "was audited and failed",
                "1,999 of them (99.9 %)",
                "and 1 its model could not have chosen",
                "ends early",
                "do not spell",
            ],
        ),
    ],
    ids=["passed", "failed"],
)
def test_an_audit_is_told_in_words_with_its_receipt(views, changes, sentences):
    audit = views.add_audit(3, **changes)
    with TestClient(build_app(views)) as client:
        page = client.get(f"/txs/{audit}")
        views.seal()
        block = client.get(f"/blocks/{len(views.chain)}").text
    text = text_of(page)
    for sentence in sentences:
        assert sentence in text
    assert "proved" not in text[text.index("What the auditor found") :].split("Who signed")[0]
    assert f'href="/receipts/{receipt_id(3)}"' in page.text
    assert f'Audit of a <a href="/receipts/{receipt_id(3)}">receipt</a>' in block


def test_evidence_is_verified_again_and_told_in_words():
    views = build_changed_views()
    evidence = views.final[3]
    with TestClient(build_app(views)) as client:
        text = text_of(client.get(f"/txs/{evidence.id}"))
    assert "proves that the authority east voted twice at height 2 and is final in" in text
    assert "Both signatures were verified again by this node" in text
    assert text.count("“notarize, height 2, view 6”") == 2
    for vote in (evidence.payload.first, evidence.payload.second):
        assert vote.block_hash in text
        assert vote.sig in text
    assert "Nobody signs evidence" in text


@pytest.mark.parametrize(
    ("votes", "sentence"),
    [
        ([("finalize", "aa" * 32), ("nullify", "")], "voted to give a view up must never help"),
        ([("finalize", "aa" * 32), ("finalize", "bb" * 32)], "casts one such vote in a view"),
    ],
)
def test_evidence_names_the_rule_that_was_broken(votes, sentence):
    views = FakeViews()
    evidence = views.add_evidence(votes=votes)
    with TestClient(build_app(views)) as client:
        text = text_of(client.get(f"/txs/{evidence}"))
    assert sentence in text
    assert text.count("for no block") == (votes[1][0] == "nullify")


def test_evidence_that_does_not_hold_is_not_called_verified():
    views = FakeViews()
    forged = views.add_evidence(accused=JOINING, **{"accused_account": AUTHORITIES[0].account})
    with TestClient(build_app(views)) as client:
        text = text_of(client.get(f"/txs/{forged}"))
    assert "These two do not prove it" in text
    assert "does not verify" in text
    assert "verified again" not in text


def test_a_block_lists_what_is_no_receipt_too():
    views = build_changed_views()
    with TestClient(build_app(views)) as client:
        second, third = (text_of(client.get(f"/blocks/{height}")) for height in (2, 3))
    assert "The authorities change to the set of epoch 1" in second
    assert "Evidence that an authority voted twice" in third


def test_a_search_for_an_account_leads_to_its_page(client):
    response = client.get("/search", params={"q": MINER.account})
    assert (response.status_code, response.headers["location"]) == (
        303,
        f"/accounts/{MINER.account}",
    )


def test_a_search_for_an_authority_leads_to_the_network(client):
    response = client.get("/search", params={"q": AUTHORITIES[0].account})
    assert (response.status_code, response.headers["location"]) == (303, "/network")


# --- hostile text -------------------------------------------------------------------------------


def chain_of(name: str) -> FakeViews:
    """A chain in which everything that somebody else chooses is `name`."""
    views = FakeViews(network=name, authority_names=[name] * 4)
    views.add_change(name=name, url=name)
    views.add_evidence()
    views.market.add_miner(name, capabilities=(name,), gpu_name=name, gpu_memory=name)
    for number, state in enumerate(STATES):
        views.add_job(number, state, client=name, model=name, miner_id=name, reason=name)
    views.add_receipt(0, provider=MINER.account, miner_id=name, model=name)
    for number in (1, 2):
        views.add_receipt(
            number, miner_id=name, client=name, provider=name, model=name, sampler=name,
            metered_by=name, unit_type=name, model_digest=name,
        )  # fmt: skip
        if number == 1:
            views.seal()
    return views


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_change_no_markup_and_hide_nothing(name):
    hostile, plain = chain_of(name), chain_of("plain")
    with TestClient(build_app(hostile)) as bad, TestClient(build_app(plain)) as good:
        addresses = zip(
            [*every_address(hostile), "/_f/home"], [*every_address(plain), "/_f/home"], strict=True
        )
        for bad_address, good_address in addresses:
            response = bad.get(bad_address)
            assert response.status_code == 200, bad_address
            page = Skeleton(response.text)
            assert page.tags == Skeleton(good.get(good_address).text).tags, bad_address
            assert not {unicodedata.category(c) for c in response.text if c != "\n"} & HIDDEN
            assert not [link for link in page.links if link.lower().startswith("javascript")]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_questions_are_shown_as_they_are(client, name):
    for response in (
        client.get("/search", params={"q": name}),
        client.get("/receipts", params={"model": name, "miner": name, "client": name}),
        client.get("/blocks/x" + quote(name, safe="")),
        client.get("/", headers={"host": 'x"><script>'}),
    ):
        assert response.status_code in {200, 404}
        page = Skeleton(response.text)
        assert ("h1", ()) in page.tags
        assert not {"img"} & {tag for tag, _ in page.tags}
        assert all(names for tag, names in page.tags if tag == "script")
        assert not {unicodedata.category(c) for c in "".join(page.words) if c != "\n"} & HIDDEN


# --- caching ------------------------------------------------------------------------------------


def test_an_unchanged_list_is_answered_304_before_anything_is_read(client, views, monkeypatch):
    # What a job's page shows decides whether it is live, so that is read first.
    skipped = ("/search", "/jobs/")
    addresses = [a for a in every_address(views) if not a.startswith(skipped)]
    tags = {address: client.get(address).headers["etag"] for address in addresses}
    assert len(set(tags.values())) == len(addresses), "every address has its own tag"
    for read in ("blocks", "block", "receipts", "receipt", "transaction", "inclusion"):
        monkeypatch.setattr(views, read, None)
    for address, tag in tags.items():
        response = client.get(address, headers={"if-none-match": f'"other", {tag}'})
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["etag"] == tag


@pytest.mark.parametrize("change", ["block", "pending"])
def test_a_change_of_the_chain_changes_every_tag(client, views, change):
    addresses = every_address(views)
    tags = {address: client.get(address).headers["etag"] for address in addresses}
    if change == "block":
        views.seal()
    else:
        views.add_receipt(400)
    for address, tag in tags.items():
        assert client.get(address, headers={"if-none-match": tag}).status_code == 200


def test_the_home_page_also_follows_its_figures(client, views):
    tag = client.get("/").headers["etag"]
    views.jobs_24h += 1
    assert client.get("/").headers["etag"] != tag


def test_pages_are_compressed_for_those_who_read_gzip(client):
    plain = client.get("/blocks", headers={"accept-encoding": "identity"})
    packed = client.get("/blocks", headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.text == plain.text
    assert packed.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"


def test_static_files_are_immutable_under_an_address_of_their_contents(client):
    links = [link for link in Skeleton(client.get("/").text).links if "/static/" in link]
    assert len(links) == 5
    for link in links:
        response = client.get(link)
        assert response.status_code == 200
        assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert response.headers["x-content-type-options"] == "nosniff"
    release = links[0].split("/")[2]
    for missing in (
        f"/static/{release}/../explorer_ui/site.py",
        f"/static/{release}/%2e%2e/pyproject.toml",
        f"/static/{release}/vendor/vendor.toml",
        links[0].replace(release, "0" * 12),
    ):
        assert client.get(missing).status_code == 404


def test_the_home_page_is_light(client):
    def weigh(address: str) -> int:
        packed = client.get(address, headers={"accept-encoding": "gzip"})
        return int(packed.headers["content-length"])

    links = {link for link in Skeleton(client.get("/").text).links if "/static/" in link}
    scripts = [weigh(link) for link in links if link.endswith(".js")]
    assert sum(scripts) <= 20_000
    assert weigh("/") + sum(weigh(link) for link in links) <= 30_000
    assert 1 + len(links) + 1 <= 8, "the page, its files, its stream"


# --- data twins ---------------------------------------------------------------------------------


def test_block_json_is_the_signed_bytes_and_checks_out(client, views):
    block = views.block(9)
    by_height, by_hash = client.get("/blocks/9.json"), client.get(f"/blocks/{block.hash}.json")
    assert by_height.content == by_hash.content == views.raw_block(9)
    header = parse_header(encode(by_height.json()["header"]))
    assert hash_header(header).hex() == block.hash
    assert by_height.headers["etag"] == by_hash.headers["etag"] == f'W/"{block.hash}"'
    assert by_height.headers["cache-control"] == "no-cache"
    assert "immutable" in by_hash.headers["cache-control"]
    again = client.get("/blocks/9.json", headers={"if-none-match": f'W/"{block.hash}"'})
    assert again.status_code == 304


def test_transaction_json_carries_the_exact_envelope(client, views):
    final, pending = views.final[3], views.pending[0]
    response = client.get(f"/txs/{final.id}.json")
    envelope = Envelope(payload=final.payload, signatures=final.signatures)
    assert encode(response.json()["envelope"]) == encode(envelope)
    assert hash_payload(final.payload).hex() == response.json()["id"] == final.id
    assert "immutable" in response.headers["cache-control"]
    waiting = client.get(f"/txs/{pending.id}.json")
    assert (waiting.json()["status"], waiting.json()["height"]) == ("pending", None)
    assert waiting.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    "address", ["/blocks/99.json", "/blocks/x.json", "/txs/" + "0" * 64 + ".json"]
)
def test_missing_data_is_told_as_data(client, address):
    response = client.get(address)
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/json"
    assert response.json()["detail"]


def test_every_alternate_link_is_a_documented_twin(client, views):
    for address in every_address(views):
        for link in re.findall(r'rel="alternate" type="application/json" href="([^"]+)"',
                               client.get(address).text):  # fmt: skip
            assert OF_THE_API.fullmatch(link) or client.get(link).status_code == 200, link


# --- lists --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "pattern", "expected"),
    [
        ("/blocks", r'href="/blocks/(\d+)"', [str(height) for height in range(30, 0, -1)]),
        ("/receipts", r'href="/receipts/(rcp_\w+)"', NEWEST_FIRST),
        ("/receipts?client=demo", r'href="/receipts/(rcp_\w+)"', NEWEST_FIRST),
    ],
)
def test_following_older_shows_every_row_once(client, start, pattern, expected):
    address, rows = start, []
    for _ in range(10):
        page = client.get(address).text
        rows += re.findall(pattern, page[page.index("<tbody") : page.index("</tbody>")])
        older = re.search(r'href="([^"]+)" rel="next"', page)
        if older is None:
            break
        address = older[1].replace("&amp;", "&")
    assert rows == expected


def test_a_large_block_is_shown_page_by_page(client, views):
    numbers = range(500, 560)
    for number in numbers:
        views.add_receipt(number)
    views.seal()
    address, rows = "/blocks/31", []
    while address:
        page = client.get(address).text
        rows += re.findall(r'href="/receipts/(rcp_\w+)"', page)
        more = re.search(r'href="([^"]+after=\d+)" rel="next"', page)
        address = more[1] if more else ""
    assert rows == [receipt_id(number) for number in [100, *numbers]]


@pytest.mark.parametrize("value", ["x", "-1", "1e3", "9" * 17, "", "٣"])
@pytest.mark.parametrize("address", ["/blocks?before=", "/receipts?before=", "/blocks/3?after="])
def test_a_position_that_is_no_number_is_refused_in_words(client, address, value):
    response = client.get(address + value)
    assert response.status_code == 400
    assert "whole number" in text_of(response)


def test_an_endless_filter_is_refused(client):
    assert client.get("/receipts", params={"model": "x" * 201}).status_code == 400


def test_filters_narrow_and_stay_in_the_form(client, views):
    views.add_receipt(600, model="other:1b")
    page = client.get("/receipts?model=other:1b")
    assert re.findall(r'href="/receipts/(rcp_\w+)"', page.text) == [receipt_id(600)]
    assert 'value="other:1b"' in page.text
    assert "No receipts for the model none." in text_of(client.get("/receipts?model=none"))


# --- search, not found, redirects ----------------------------------------------------------------


def test_an_exact_search_leads_to_its_page(client, views):
    block, transaction = views.block(12), views.final[4]
    for query, target in {
        "12": "/blocks/12",
        " #12 ": "/blocks/12",
        block.hash: "/blocks/12",
        transaction.id: f"/txs/{transaction.id}",
        receipt_id(4): f"/receipts/{receipt_id(4)}",
    }.items():
        response = client.get("/search", params={"q": query})
        assert (response.status_code, response.headers["location"]) == (303, target)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("", "Type a block height"),
        ("99", "There is no block #99 yet: the newest block is #30."),
        ("0", "Height 0 is the genesis"),
        ("abcdef12", "part of a hash: it has 8 digits of 64"),
        ("a" * 64, "nothing here has it"),
        ("a" * 65, "more than a hash"),
        ("rcp_" + "a" * 26, "knows none with exactly this id"),
        ("job_01K00000000000000000000000", "no receipt here belongs to it"),
        ("ait1qqqq", "account with a typing error"),
        (MINER.account.replace("ait1", "ait1q", 1), "account with a typing error"),
        ("demo", "receipts under that name"),
        ("smollm2:135m", "Receipts for the model"),
        ("miner-a", "Receipts from the miner"),
        ("hello world", "No block, transaction, receipt or account"),
        ("x" * 300, "longer than 200 characters"),
    ],
)
def test_any_other_search_is_told_what_it_looks_like(client, query, words):
    response = client.get("/search", params={"q": query})
    assert response.status_code == 200
    assert words in text_of(response)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("/blocks/31", "There is no block #31 yet: the newest block is #30."),
        ("/blocks/007x", "No block, transaction"),
        ("/blocks/" + "f" * 64, "nothing here has it"),
        ("/blocks/" + "9" * 40, "digits of 64"),
        ("/txs/12", "no block"),
        ("/receipts/rcp_nothing", "knows none"),
        ("/nope/at/all", "There is no page at this address."),
    ],
)
def test_what_is_not_there_is_explained(client, address, words):
    response = client.get(address)
    assert response.status_code == 404
    assert words in text_of(response)
    assert "etag" not in response.headers


def test_other_spellings_of_a_block_lead_to_its_height(client, views):
    for key in (views.block(3).hash, "0003"):
        response = client.get(f"/blocks/{key}")
        assert (response.status_code, response.headers["location"]) == (303, "/blocks/3")
    assert client.get("/explorer").headers["location"] == "/"


def test_a_method_without_a_page_is_answered_as_a_page(client):
    response = client.post("/blocks")
    assert response.status_code == 405
    assert response.headers["allow"]
    assert "<h1>" in response.text


def test_our_own_bug_gets_a_page_that_reads_nothing(views, monkeypatch):
    app = build_app(views)
    monkeypatch.setattr(views, "head", None)
    with TestClient(app, raise_server_exceptions=False) as client:
        response = client.get("/blocks")
    assert response.status_code == 500
    assert "our fault" in response.text
    assert response.headers["content-security-policy"] == CSP
    assert "Traceback" not in response.text


# --- under a prefix, and links --------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "/a node"])
def test_every_link_leads_somewhere_below_the_prefix(views, prefix):
    app = build_app(views)
    mounted = Starlette(routes=[Mount(prefix, app)]) if prefix else app
    with TestClient(mounted, follow_redirects=False) as client:
        seen = crawl(client, prefix.replace(" ", "%20"), ["/", "/search?q=12", "/search?q=demo"])
    assert {"/blocks/1", "/blocks/30", f"/receipts/{receipt_id(0)}", "/_f/home"} <= seen


def test_robots_stay_out_of_fragments_and_searches(client):
    assert "Disallow: /_f/" in client.get("/robots.txt").text


def test_security_headers_are_those_of_the_rule():
    assert SECURITY_HEADERS["Content-Security-Policy"] == CSP


# --- vendored files -------------------------------------------------------------------------------


def test_vendored_files_are_byte_for_byte_as_listed():
    assert find_problems(VENDOR) == []


@pytest.mark.parametrize("change", ["altered", "missing", "added"])
def test_a_changed_vendored_file_is_noticed(tmp_path, change):
    for path in VENDOR.rglob("*"):
        if path.is_file():
            copy = tmp_path / path.relative_to(VENDOR)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    victim = next(tmp_path.rglob("htmx.min.js"))
    if change == "altered":
        victim.write_bytes(victim.read_bytes() + b" ")
    elif change == "missing":
        victim.unlink()
    else:
        (tmp_path / "htmx" / "more.js").write_text("")
    assert len(find_problems(tmp_path)) == 1


def test_vendored_packages_name_their_licence_and_integrity():
    for package in tomllib.loads((VENDOR / "vendor.toml").read_text()).values():
        assert package["licence"]
        assert package["integrity"].startswith("sha512-")
        assert "LICENSE" in package["files"]
