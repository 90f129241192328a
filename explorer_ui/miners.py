"""The miners that this node knows: who is at work, on what, for which models, and how well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from explorer_ui.audits import AuditSummary, summarize_audits
from explorer_ui.errors import NotFoundError, parse_name
from explorer_ui.explain import Explanation, explain_miner
from explorer_ui.format import share
from explorer_ui.site import Frame, Site
from explorer_ui.sources import Market, Views
from ledger.encoding import encode
from ledger.errors import MarketError
from ledger.jobs import MinerStanding
from ledger.views import MAX_PAGE, AccountView, HeadView, ReceiptFilter, ReceiptView

PAGE_ROWS = 50
LATEST_ROWS = 10
THOUSAND = 1_000
JSON_TYPE = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class MinersPage:
    """One page of miners, in the order of their names."""

    miners: Sequence[MinerStanding]
    after: str
    """The name above the page, empty at the beginning."""
    following: str | None
    """`after` of the next page, None at the end."""
    has_market: bool
    """Whether this node takes jobs; others know no miners."""

    @property
    def active(self) -> int:
        """How many of the page were heard of lately."""
        return sum(standing.active for standing in self.miners)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lately:
    """What an account's latest receipts come to, at most 100 of them."""

    receipts: int
    tokens: int
    """Prompt and answer together."""
    thousand_micros: int | None
    """Price of 1,000 tokens, of receipts billed by token; None without any."""
    models: tuple[tuple[str, int], ...]
    """Names with the number of receipts, most first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MinerPage:
    """One miner, and what the account earned that it works for."""

    standing: MinerStanding
    paid: str
    """Whom its receipts pay: its account or, without one, its name."""
    account: AccountView | None
    """None where nothing of it is known to the ledger, or the ledger is not whole yet."""
    lately: Lately
    receipts: Sequence[ReceiptView]
    audits: AuditSummary | None
    """None where there is no account of it."""

    @property
    def success(self) -> str:
        """Share of its ended attempts that brought a result."""
        standing = self.standing
        return share(standing.completed, standing.completed + standing.lost)

    @property
    def sharers(self) -> Sequence[str]:
        """Other miners here that work for the same account."""
        own = self.standing.miner.miner_id
        return [name for name in self.account.miners if name != own] if self.account else []


class Miners:
    """Serves `/miners` and `/miners/…`, and their twins."""

    def __init__(self, *, site: Site, views: Views, market: Market | None) -> None:
        self._site = site
        self._views = views
        self._market = market

    async def page(self, request: Request) -> Response:
        """Answer `/miners`."""
        head, page = self._views.head(), self._read(request)
        tag = self._site.tag(request, head, page)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        frame = Frame(
            title="Miners",
            section="miners",
            json_path="/miners.json",
            api_path="/v1/miners" if page.has_market else None,
            data_query={"after": page.after},
        )
        return self._site.page("miners.html", request, frame=frame, page=page, head=head, tag=tag)

    async def data(self, request: Request) -> Response:
        """Answer `/miners.json`."""
        page = self._read(request)
        tag = self._site.tag(request, self._views.head(), page)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        body = encode({"miners": [_describe(m) for m in page.miners], "after": page.following})
        return self._site.answer(request, body, JSON_TYPE, tag)

    async def miner(self, request: Request) -> Response:
        """Answer `/miners/{id}`."""
        head, standing = self._views.head(), self._find(request)
        tag = self._site.tag(request, head, standing)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        page = self._read_miner(standing, head)
        name = standing.miner.miner_id
        frame = Frame(
            title="Miner",
            section="miners",
            crumbs=(("Miners", "/miners"),),
            json_path=f"/miners/{name}.json",
            api_path=f"/v1/miners/{name}",
        )
        return self._site.page("miner.html", request, frame=frame, page=page, head=head, tag=tag)

    async def miner_data(self, request: Request) -> Response:
        """Answer `/miners/{id}.json`."""
        head, standing = self._views.head(), self._find(request)
        tag = self._site.tag(request, head, standing)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        page = self._read_miner(standing, head)
        audits = page.audits.totals if page.audits is not None else None
        body = encode(
            {**_describe(standing), "earned": page.account, "lately": page.lately, "audits": audits}
        )
        return self._site.answer(request, body, JSON_TYPE, tag)

    def _find(self, request: Request) -> MinerStanding:
        if self._market is None:
            raise NotFoundError(
                Explanation(
                    finding="This node takes no jobs, so it knows no miner by name.",
                    advice="A miner is known to the authority that it works for. What it earned is "
                    "on the page of its account.",
                )
            )
        try:
            return self._market.miner(request.path_params["key"])
        except MarketError as error:
            raise NotFoundError(explain_miner()) from error

    def _read(self, request: Request) -> MinersPage:
        after = parse_name(request, "after")
        found = self._market.miners(after=after, limit=PAGE_ROWS + 1) if self._market else ()
        shown = found[:PAGE_ROWS]
        return MinersPage(
            miners=shown,
            after=after,
            following=shown[-1].miner.miner_id if len(found) > len(shown) else None,
            has_market=self._market is not None,
        )

    def _read_miner(self, standing: MinerStanding, head: HeadView) -> MinerPage:
        paid = standing.miner.account or standing.miner.miner_id
        receipts = self._views.receipts(ReceiptFilter(provider=paid), limit=MAX_PAGE)
        # Totals need the whole chain, which may still be on its way.
        account = None if head.missing else self._views.account(paid)
        return MinerPage(
            standing=standing,
            paid=paid,
            account=account,
            lately=_sum_up(receipts),
            receipts=receipts[:LATEST_ROWS],
            audits=summarize_audits(self._views, paid) if account is not None else None,
        )


def _sum_up(receipts: Sequence[ReceiptView]) -> Lately:
    payloads = [receipt.payload for receipt in receipts]
    by_token = [p for p in payloads if p.unit_type == "tokens"]
    units_micros = sum(p.units_micros for p in by_token)
    price_micros = sum(p.price_micros for p in by_token)
    models = Counter(p.model for p in payloads)
    return Lately(
        receipts=len(payloads),
        tokens=sum(p.prompt_tokens + p.completion_tokens for p in payloads),
        thousand_micros=(
            round(price_micros * THOUSAND * 1_000_000 / units_micros) if units_micros else None
        ),
        models=tuple(sorted(models.items(), key=lambda item: (-item[1], item[0]))),
    )


def _describe(standing: MinerStanding) -> dict[str, object]:
    """What everybody may see: not which API key registered it."""
    miner = standing.miner
    return {
        "miner_id": miner.miner_id,
        "account": miner.account,
        "capabilities": miner.capabilities,
        "gpu_name": miner.gpu_name,
        "gpu_memory": miner.gpu_memory,
        "registered_at_ms": miner.registered_at_ms,
        "last_seen_at_ms": miner.last_seen_at_ms,
        "draining": miner.draining,
        "audits_others": miner.audits,
        "active": standing.active,
        "running": standing.running,
        "completed": standing.completed,
        "lost": standing.lost,
    }
