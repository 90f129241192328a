"""What `make lighthouse` measures and how it judges; Lighthouse itself is not run here."""

import pytest
from starlette.testclient import TestClient

from scripts import lighthouse
from scripts.lighthouse import CATEGORIES, Scores, find_pages, measure_best, read_report
from tests.explorer_stage import build_busy
from tests.fake_views import build_app


def build_report(**scores):
    audit = {"id": "link-text", "score": 0.5, "title": "Links", "displayValue": "1 link found"}
    free = {"id": "free", "score": 0, "title": "costs nothing"}
    refs = [{"id": "link-text", "weight": 1}, {"id": "free", "weight": 0}]
    return {
        "categories": {
            name: {"score": scores.get(name, 1), "auditRefs": refs if name == "seo" else []}
            for name in CATEGORIES
        },
        "audits": {"link-text": audit, "free": free},
    }


def test_one_page_of_each_kind_is_found_by_its_links():
    with TestClient(build_app(build_busy())) as client:
        pages = list(find_pages(client))
    assert pages[0] == "/"
    kinds = [(page.split("/")[1], page.count("/")) for page in pages]
    assert len(set(kinds)) == len(kinds)
    wanted = {"blocks", "receipts", "jobs", "charts", "accounts", "txs"}
    assert {first for first, depth in kinds if depth == 2} >= wanted
    assert {
        "/blocks",
        "/receipts",
        "/jobs",
        "/miners",
        "/network",
        "/verify",
        "/playground",
        "/search",
    } <= {*pages}


def test_a_report_is_read_with_what_cost_points():
    full, short = read_report(build_report()), read_report(build_report(seo=0.914))
    assert full.are_full
    assert not short.are_full
    assert short.points["seo"] == 91
    assert short.faults == ("link-text 0.5: 1 link found",)


@pytest.mark.parametrize(("runs", "points", "asked"), [([99, 100], 100, 2), ([97, 99, 98], 99, 3)])
def test_a_page_that_is_not_full_is_measured_again_and_the_best_counts(
    monkeypatch, runs, points, asked
):
    left = list(runs)

    def measure(_address):
        return Scores(points=dict.fromkeys(CATEGORIES, left.pop(0)), faults=())

    monkeypatch.setattr(lighthouse, "measure", measure)
    assert measure_best("http://node.test/").points["seo"] == points
    assert len(runs) - len(left) == asked


def test_what_is_below_100_makes_the_command_fail(monkeypatch, capsys):
    monkeypatch.setattr(lighthouse, "find_pages", lambda _client: iter(["/", "/blocks"]))

    def measure(address):
        return read_report(build_report(seo=0.9 if address.endswith("/blocks") else 1))

    monkeypatch.setattr(lighthouse, "measure", measure)
    assert lighthouse.print_table("http://node.test", "blocks") == 1
    assert "link-text 0.5: 1 link found" in capsys.readouterr().out
    monkeypatch.setattr(lighthouse, "measure", lambda _address: read_report(build_report()))
    assert lighthouse.print_table("http://node.test", "") == 0
