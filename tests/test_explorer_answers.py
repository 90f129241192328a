"""How the explorer answers: entity tags, compression, data twins, static and vendored files."""

import re
import tomllib

import pytest

from ledger.block import hash_header, parse_header
from ledger.encoding import encode
from ledger.transaction import Envelope, hash_payload
from scripts.vendor import VENDOR, find_problems
from tests.crawler import OF_THE_API, Skeleton
from tests.explorer_addresses import every_address

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
