"""The network: who seals blocks, who signed the latest, how the set changed, who voted twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from explorer_ui.errors import NotFoundError
from explorer_ui.explain import explain, explain_authority
from explorer_ui.signing import LINE, NARROW, WIDE, Cells, Run, Signing, Strip
from explorer_ui.site import Frame, Site
from explorer_ui.sources import Views
from ledger.encoding import encode
from ledger.keys import is_account
from ledger.views import (
    AccountView,
    AuthoritiesView,
    AuthorityView,
    EvidenceView,
    HeadView,
    NodeView,
    PeerView,
)

JSON_TYPE = "application/json"

Presence = Literal["this node", "answers", "away", "not heard", "not asked"]
"""not heard: it has not answered yet. not asked: this node does not talk to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """One authority, as this node sees it."""

    account: str
    name: str
    url: str
    """As the authority set states it, or empty."""
    presence: Presence
    release: str
    """Empty where it is not known."""
    height: int | None
    """Of its newest final block, as it said last; None where it is not known."""
    lag: int | None
    """Blocks that it is behind this node; negative where it is ahead."""
    evidence: int
    """Transactions that prove it voted twice."""
    strip: Strip


@dataclass(frozen=True, slots=True, kw_only=True)
class SeatRow:
    """One line of the table."""

    seat: Seat
    cells: Cells


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPage:
    """The authorities of this network, as its chain and this node know them."""

    authorities: AuthoritiesView
    rows: Sequence[SeatRow]
    """All of them, those that are away too."""
    node: NodeView

    @property
    def absent(self) -> int:
        """How many members may be down while blocks still become final."""
        return len(self.authorities.members) - self.authorities.quorum

    @property
    def away(self) -> int:
        """How many members this node cannot reach."""
        return sum(row.seat.presence == "away" for row in self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityPage:
    """One authority of the present set, or of an earlier one."""

    seat: Seat
    is_member: bool
    """Whether it is in the present set."""
    quorum: int
    size: int
    """Of the present set."""
    wide: Cells
    narrow: Cells
    runs: Sequence[Run]
    evidence: Sequence[EvidenceView]
    account: AccountView | None


class Network:
    """Serves `/network` and `/authorities/…`, and their twins."""

    def __init__(self, *, site: Site, views: Views, release: str) -> None:
        self._site = site
        self._views = views
        self._release = release
        self._signing = Signing(views)

    async def page(self, request: Request) -> Response:
        """Answer `/network`."""
        head, peers, node = self._views.head(), self._views.peers(), self._views.node()
        tag = self._site.tag(request, head, peers, node)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        authorities = self._views.authorities()
        seats = [self._seat(head, member, peers, node) for member in authorities.members]
        page = NetworkPage(
            authorities=authorities,
            rows=[SeatRow(seat=seat, cells=seat.strip.draw(LINE)) for seat in seats],
            node=node,
        )
        frame = Frame(
            title="Network",
            section="network",
            json_path="/network.json",
            api_path="/v1/authorities",
        )
        return self._site.page("network.html", request, frame=frame, page=page, head=head, tag=tag)

    async def data(self, request: Request) -> Response:
        """Answer `/network.json`."""
        head, peers, node = self._views.head(), self._views.peers(), self._views.node()
        tag = self._site.tag(request, head, peers, node)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        authorities = self._views.authorities()
        seats = [self._seat(head, member, peers, node) for member in authorities.members]
        body = encode(
            {
                "authorities": authorities,
                "members": [_describe(seat) for seat in seats],
                "peers": peers,
                "node": node,
                "release": self._release,
                "sync": head.sync,
            }
        )
        return self._site.answer(request, body, JSON_TYPE, tag)

    async def authority(self, request: Request) -> Response:
        """Answer `/authorities/{account}`."""
        head, peers, node = self._views.head(), self._views.peers(), self._views.node()
        tag = self._site.tag(request, head, peers, node)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        authorities = self._views.authorities()
        seat, is_member = self._find(request, head, authorities, peers, node)
        page = AuthorityPage(
            seat=seat,
            is_member=is_member,
            quorum=authorities.quorum,
            size=len(authorities.members),
            wide=seat.strip.draw(WIDE),
            narrow=seat.strip.draw(NARROW),
            runs=seat.strip.runs,
            evidence=[e for e in authorities.evidence if e.accused == seat.account],
            account=self._views.account(seat.account),
        )
        frame = Frame(
            title="Authority",
            section="network",
            crumbs=(("Network", "/network"),),
            json_path=f"/authorities/{seat.account}.json",
        )
        return self._site.page(
            "authority.html", request, frame=frame, page=page, head=head, tag=tag
        )

    async def authority_data(self, request: Request) -> Response:
        """Answer `/authorities/{account}.json`."""
        head, peers, node = self._views.head(), self._views.peers(), self._views.node()
        tag = self._site.tag(request, head, peers, node)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        authorities = self._views.authorities()
        seat, is_member = self._find(request, head, authorities, peers, node)
        found = [e for e in authorities.evidence if e.accused == seat.account]
        body = encode(
            {**_describe(seat), "is_member": is_member, "evidence": found, "runs": seat.strip.runs}
        )
        return self._site.answer(request, body, JSON_TYPE, tag)

    def _find(
        self,
        request: Request,
        head: HeadView,
        authorities: AuthoritiesView,
        peers: Sequence[PeerView],
        node: NodeView,
    ) -> tuple[Seat, bool]:
        account = request.path_params["key"]
        member = next((m for m in authorities.members if m.account == account), None)
        known = member or self._find_former(authorities, account)
        if known is None:
            is_other = is_account(account) and self._views.account(account) is not None
            raise NotFoundError(explain_authority() if is_other else explain(account, head))
        return self._seat(head, known, peers, node), member is not None

    def _find_former(self, authorities: AuthoritiesView, account: str) -> AuthorityView | None:
        """Return a member of an earlier set, as the last set with it had it."""
        for epoch in authorities.epochs:
            known = self._views.authority_set(epoch.epoch)
            index = known.index_of(account) if known is not None else None
            if known is not None and index is not None:
                member = known.members[index]
                return AuthorityView(
                    index=index,
                    account=account,
                    name=member.name,
                    url=member.url,
                    evidence=sum(e.accused == account for e in authorities.evidence),
                )
        return None

    def _seat(
        self, head: HeadView, member: AuthorityView, peers: Sequence[PeerView], node: NodeView
    ) -> Seat:
        peer = next((p for p in peers if p.account == member.account), None)
        is_here = member.account == node.account
        height = head.height if is_here else peer.height if peer and peer.release else None
        return Seat(
            account=member.account,
            name=member.name,
            url=member.url,
            presence="this node" if is_here else _name_presence(peer),
            release=self._release if is_here else peer.release if peer else "",
            height=height,
            lag=None if height is None else head.height - height,
            evidence=member.evidence,
            strip=self._signing.strip(head, member.account),
        )


def _name_presence(peer: PeerView | None) -> Presence:
    if peer is None:
        return "not asked"
    if not peer.answers:
        return "away"
    return "answers" if peer.release else "not heard"


def _describe(seat: Seat) -> dict[str, object]:
    return {
        "account": seat.account,
        "name": seat.name,
        "url": seat.url,
        "presence": seat.presence,
        "release": seat.release,
        "height": seat.height,
        "lag": seat.lag,
        "signed": seat.strip.signed,
        "due": seat.strip.due,
        "proposed": seat.strip.proposed,
        "first_height": seat.strip.first_height,
        "last_height": seat.strip.last_height,
    }
