"""Charts: their shapes, words, tables and data."""

import csv
import dataclasses
import io
import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from explorer_ui.chartdata import KINDS, RANGES
from explorer_ui.drawing import MAX_TICKS, NARROW, SMALL, WIDE, draw, find_step, find_top
from tests import fake_views
from tests.crawler import text_of
from tests.fake_views import START_MS, FakeViews, build_app, build_chain

HOUR_MS, DAY_MS = 3_600_000, 86_400_000


@pytest.fixture(name="views")
def build_views() -> FakeViews:
    return build_chain(30)


# --- shapes -------------------------------------------------------------------------------------


@given(st.integers(1, 10**18))
def test_a_scale_ends_at_a_tick_and_has_few_of_them(highest):
    top = find_top(highest)
    assert highest <= top <= max(4, 2 * highest)
    assert len(range(0, top + 1, find_step(top))) - 1 in range(1, MAX_TICKS + 1)
    assert top % find_step(top) == 0


@given(
    st.lists(
        st.lists(st.one_of(st.none(), st.integers(0, 10**15)), min_size=48, max_size=48),
        min_size=1,
        max_size=6,
    ),
    st.booleans(),
    st.sampled_from([WIDE, NARROW, SMALL]),
)
def test_nothing_is_drawn_outside(lines, as_bars, size):
    starts = [START_MS + n * HOUR_MS for n in range(48)]
    drawing = draw(lines, starts, size=size, as_bars=as_bars, name=str)
    assert len(drawing.shapes) == len(lines)
    for shape in drawing.shapes:
        for x, y in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", shape):
            assert size.left - 2 <= float(x) <= size.width
            assert 0 <= float(y) <= size.height - size.bottom
        assert "e" not in shape, "no exponents"
    for label in drawing.labels:
        assert 0 <= label.x <= size.width
        assert 0 <= label.y <= size.height


def test_bars_stand_on_each_other_and_lines_break_where_there_is_nothing():
    size = dataclasses.replace(SMALL, width=30, height=19)
    starts = [0, 1, 2]
    bars = draw([[1, 0, 2], [1, None, 0]], starts, size=size, as_bars=True, name=str)
    assert bars.shapes == [
        "M1.0 18.0v-5.0h8.0v5.0zM21.0 18.0v-10.0h8.0v10.0z",
        "M1.0 13.0v-5.0h8.0v5.0z",
    ]
    line = draw([[1, 2, None, 2][:3]], starts, size=size, as_bars=False, name=str)
    assert line.shapes == ["M5.0 13.0L15.0 8.0"]
    alone = draw([[None, 1, None]], starts, size=size, as_bars=False, name=str)
    assert alone.shapes == ["M13.0 8.0h4.0"]


# --- pages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("reach", RANGES)
def test_every_chart_has_a_title_a_table_and_its_data(client, name, reach):
    page = client.get(f"/charts/{name}?range={reach}")
    assert page.text.count('role="img"') == 2
    assert f'<title id="wide-title">{KINDS[name].title}</title>' in page.text
    data = client.get(f"/charts/{name}.json?range={reach}").json()
    assert len(data["starts_ms"]) == RANGES[reach].spans
    assert {b - a for a, b in zip(data["starts_ms"], data["starts_ms"][1:], strict=False)} == {
        RANGES[reach].span_ms
    }
    response = client.get(f"/charts/{name}.csv?range={reach}")
    rows = list(csv.reader(io.StringIO(response.text)))
    assert [len(line["values"]) for line in data["lines"]] == [len(rows) - 1] * len(data["lines"])
    filled = [row for row in rows[1:] if any(cell not in {"", "0"} for cell in row[1:])]
    assert page.text.count('<tr><th scope="row">') == len(filled) > 0


def test_a_chart_says_in_words_what_it_shows(client, views):
    tokens = sum(t.payload.units_micros for t in views.final) // 1_000_000
    assert "60 jobs became final in the 7 days up to block #30." in text_of(
        client.get("/charts/jobs?range=week")
    )
    assert "Each bar is 15 minutes." in text_of(client.get("/charts/throughput"))
    year = client.get("/charts/throughput.json?range=year").json()
    (line,) = year["lines"]
    assert max(line["values"]) == tokens * 10**9 // (7 * DAY_MS)
    price = text_of(client.get("/charts/price"))
    assert "1,000 tokens cost at most 0.01 credits in the 24 hours up to block #30." in price
    pace = client.get("/charts/blocktime.json?range=month").json()["lines"][0]["values"]
    times = [block.time_ms for block in views.chain]
    assert pace[-1] == (times[-1] - times[0]) // 29


def test_a_year_is_drawn_in_weeks_that_begin_on_monday(client, views):
    """Each holds what its seven days hold, the last as far as it goes."""
    for day in range(1, 7):
        views.add_receipt(day * DAY_MS // 9_000)
        views.seal()
    weeks, days = (
        {name: client.get(f"/charts/{name}.json?range={reach}").json() for name in KINDS}
        for reach in ("year", "quarter")
    )
    starts = weeks["jobs"]["starts_ms"]
    assert {datetime.fromtimestamp(start / 1000, UTC).weekday() for start in starts} == {0}
    assert starts[-1] <= views.chain[-1].time_ms < starts[-1] + 7 * DAY_MS
    first, last = starts[-1], days["jobs"]["starts_ms"][-1]

    def last_week(name):
        (line,) = days[name]["lines"]
        return [v for start, v in zip(range(last - 89 * DAY_MS, last + 1, DAY_MS), line["values"],
                                      strict=True) if start >= first]  # fmt: skip

    assert sum(1 for jobs in last_week("jobs") if jobs) > 3
    assert weeks["jobs"]["lines"][0]["values"][-1] == sum(last_week("jobs"))
    rate = sum(last_week("throughput")) // 7
    assert abs(weeks["throughput"]["lines"][0]["values"][-1] - rate) <= 7
    for name in ("price", "blocktime"):
        known = [value for value in last_week(name) if value is not None]
        assert min(known) <= weeks[name]["lines"][0]["values"][-1] <= max(known)
    assert "Each bar is a week." in text_of(client.get("/charts/jobs?range=year"))


def test_models_are_told_apart_and_small_ones_are_added_up(client, views):
    for number in range(7):
        for copy in range(7 - number):
            views.add_receipt(1000 + 10 * number + copy, model=f"model-{number}")
    views.seal()
    data = client.get("/charts/jobs.json?range=month").json()
    names = [line["name"] for line in data["lines"]]
    assert names == ["smollm2:135m", "model-0", "model-1", "model-2", "model-3", "other models"]
    assert sum(sum(line["values"]) for line in data["lines"]) == 60 + 28
    page = client.get("/charts/jobs?range=month").text
    assert page.count('class="bar s') == 12
    assert "model-3" in page[page.index('class="legend"') :]


def test_two_nodes_with_different_clocks_draw_the_same(client, views, monkeypatch):
    monkeypatch.setattr(fake_views, "now_ms", lambda: START_MS + 400 * 24 * HOUR_MS)
    with TestClient(build_app(views)) as other:
        for address in ("/charts/jobs", "/charts/price?range=year", "/charts/blocktime.csv"):
            assert client.get(address).content == other.get(address).content


def test_a_new_network_has_nothing_to_draw():
    with TestClient(build_app(FakeViews())) as client:
        for name in KINDS:
            text = text_of(client.get(f"/charts/{name}"))
            assert "There are no blocks yet, so there is nothing to draw." in text
            assert client.get(f"/charts/{name}.csv").status_code == 200
        assert "nothing yet" in text_of(client.get("/"))


@pytest.mark.parametrize(
    ("address", "status", "words"),
    [
        ("/charts/else", 404, "There is no chart of this name."),
        ("/charts/jobs?range=century", 400, "No chart reaches back that far."),
    ],
)
def test_what_is_no_chart_is_explained(client, address, status, words):
    response = client.get(address)
    assert response.status_code == status
    assert words in text_of(response)
    path, _, query = address.partition("?")
    assert client.get(f"{path}.json?{query}").json()["detail"] == words


def test_charts_lead_to_the_first_and_home_shows_two(client):
    response = client.get("/charts")
    assert (response.status_code, response.headers["location"]) == (303, "/charts/throughput")
    home = client.get("/").text
    assert home.count('class="glance"') == 2
    assert home.count('role="img"') == 2


def test_home_shows_no_chart_while_blocks_are_missing(client, views, monkeypatch):
    head = dataclasses.replace(views.head(), missing=range(1, 9))
    monkeypatch.setattr(views, "head", lambda: head)
    page = client.get("/")
    assert page.status_code == 200
    assert 'class="glance"' not in page.text
