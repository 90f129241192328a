"""The pages of charts, the same as data, and the small ones of the home page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from explorer_ui.chartdata import GLANCE, KINDS, RANGES, Chart, Range, read_chart
from explorer_ui.drawing import NARROW, SMALL, WIDE, Drawing
from explorer_ui.errors import NotFoundError, PageError
from explorer_ui.explain import Explanation
from explorer_ui.format import iso
from explorer_ui.lines import write_csv
from explorer_ui.site import SECURITY_HEADERS, Address, Frame, Site
from explorer_ui.sources import Views
from ledger.encoding import encode
from ledger.views import HeadView

JSON_TYPE, CSV_TYPE = "application/json", "text/csv; charset=utf-8; header=present"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartPage:
    """A chart in two sizes."""

    name: str
    range_name: str
    chart: Chart
    wide: Drawing
    narrow: Drawing
    names: Mapping[str, str]
    """What leads to each chart, by name."""
    ranges: Mapping[str, Range]


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """A small chart on another page."""

    name: str
    chart: Chart
    drawing: Drawing


class Charts:
    """Serves `/charts/…`."""

    def __init__(self, *, site: Site, views: Views) -> None:
        self._site = site
        self._views = views

    async def index(self, request: Request) -> Response:
        """Answer `/charts`: 303 to the first chart."""
        location = Address(request)(f"/charts/{next(iter(KINDS))}")
        return Response(status_code=303, headers=SECURITY_HEADERS | {"Location": location})

    async def page(self, request: Request) -> Response:
        """Answer `/charts/{name}`."""
        head = self._views.head()
        tag = self._site.tag(request, head)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        name, range_name, chart = self._read(request, head)
        page = ChartPage(
            name=name,
            range_name=range_name,
            chart=chart,
            wide=chart.draw(WIDE),
            narrow=chart.draw(NARROW),
            names={known: kind.tab for known, kind in KINDS.items()},
            ranges=RANGES,
        )
        frame = Frame(
            title=chart.kind.title,
            section="charts",
            json_path=f"/charts/{name}.json",
            csv_path=f"/charts/{name}.csv",
            data_query={"range": range_name},
        )
        return self._site.page("chart.html", request, frame=frame, page=page, head=head, tag=tag)

    async def data(self, request: Request) -> Response:
        """Answer `/charts/{name}.json`."""
        head = self._views.head()
        tag = self._site.tag(request, head)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        name, range_name, chart = self._read(request, head)
        body = encode(
            {
                "name": name,
                "range": range_name,
                "unit": chart.kind.data_unit,
                "span_ms": chart.reach.span_ms,
                "starts_ms": chart.starts_ms,
                "lines": chart.lines,
            }
        )
        return self._site.answer(request, body, JSON_TYPE, tag)

    async def table(self, request: Request) -> Response:
        """Answer `/charts/{name}.csv`: one row for each span."""
        head = self._views.head()
        tag = self._site.tag(request, head)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        _, _, chart = self._read(request, head)
        columns = zip(chart.starts_ms, *(line.values for line in chart.lines), strict=True)
        heads = ["start", *(f"{line.name} ({chart.kind.data_unit})" for line in chart.lines)]
        body = write_csv([heads, *([iso(start), *values] for start, *values in columns)])
        return self._site.answer(request, body, CSV_TYPE, tag)

    def _read(self, request: Request, head: HeadView) -> tuple[str, str, Chart]:
        name, range_name = request.path_params["key"], request.query_params.get("range") or "day"
        if name not in KINDS:
            raise NotFoundError(
                Explanation(
                    finding="There is no chart of this name.",
                    advice=f"There are: {', '.join(KINDS)}.",
                )
            )
        if range_name not in RANGES:
            raise PageError(
                Explanation(
                    finding="No chart reaches back that far.",
                    advice=f"A range is one of: {', '.join(RANGES)}.",
                )
            )
        return name, range_name, read_chart(self._views, KINDS[name], RANGES[range_name], head)


def read_glances(views: Views, head: HeadView) -> list[Glance]:
    """Return the small charts of the home page; none while blocks are missing."""
    if head.missing:
        return []
    charts = {
        name: read_chart(views, KINDS[name], GLANCE, head) for name in ("throughput", "price")
    }
    return [
        Glance(name=name, chart=chart, drawing=chart.draw(SMALL)) for name, chart in charts.items()
    ]
