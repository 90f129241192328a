"""Which addresses a webhook may reach: never one that only this machine or its network should.

A client chooses the URL, so the node could be made to speak to what stands behind its firewall
(server-side request forgery). A name proves nothing, as its owner decides what it means, and may
decide anew a moment later: what is checked is every address that the name has now, and the
connection goes to one of those.

    reach      https to                           http to
    public     public addresses                   nothing
    loopback   those, and this machine            this machine
    private    those, and private networks        this machine, private networks

Link-local, multicast and reserved addresses are refused always: cloud machines keep credentials
behind 169.254.169.254. Source of the lists: the IANA registries of special-purpose addresses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Literal

import httpx2

from ledger.errors import InvalidFieldError, MarketError

Reach = Literal["public", "loopback", "private"]
Address = IPv4Address | IPv6Address

MAX_URL_CHARS = 2048

# No blanks, controls or backslashes, which parsers read in different ways.
_URL = re.compile(r"https?://[!-\[\]-~]+")

_LOOPBACK = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
_PRIVATE = (
    IPv4Network("10.0.0.0/8"),
    IPv4Network("100.64.0.0/10"),
    IPv4Network("172.16.0.0/12"),
    IPv4Network("192.168.0.0/16"),
    IPv6Network("fc00::/7"),
)
_RESERVED = tuple(
    map(
        IPv4Network,
        (
            *("0.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24"),
            *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3"),
        ),
    )
)
_GLOBAL_V6 = IPv6Network("2000::/3")
"""All that is in public use; what is reserved within it follows."""
_RESERVED_V6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "3fff::/20")))
_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_6TO4 = IPv6Network("2002::/16")
_MASK_V4 = (1 << 32) - 1


class AddressRefusedError(Exception):
    """A webhook's host is at an address that it may not reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """Decides for one kind of connection."""

    reach: Reach
    is_plain: bool
    """Whether nothing is encrypted: never to a public address, where anybody reads along."""

    def check(self, addresses: Sequence[Address]) -> None:
        """Raise unless a connection may go to each of a name's addresses.

        One that may not refuses them all: an honest name has no such mixture.

        Raises:
            AddressRefusedError: there is none, or one that is out of reach.
        """
        if not addresses or not all(self.allows(address) for address in addresses):
            raise AddressRefusedError

    def allows(self, address: Address) -> bool:
        """Tell whether a connection may go to an address."""
        kind = classify(address)
        if kind == "public":
            return not self.is_plain
        if kind == "loopback":
            return self.reach in {"loopback", "private"}
        return kind == "private" and self.reach == "private"


def classify(address: Address) -> Literal["public", "loopback", "private", "reserved"]:
    """Return what kind of address it is; one that carries an IPv4 address is of that one's kind."""
    if isinstance(address, IPv6Address):
        carried = _find_carried(address)
        if carried is not None:
            return classify(carried)
    if any(address in network for network in _LOOPBACK):
        return "loopback"
    if any(address in network for network in _PRIVATE):
        return "private"
    if isinstance(address, IPv6Address):
        is_public = address in _GLOBAL_V6 and not any(address in net for net in _RESERVED_V6)
    else:
        is_public = not any(address in network for network in _RESERVED)
    return "public" if is_public else "reserved"


def _find_carried(address: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address that an IPv6 address leads to by a known translation."""
    number = int(address)
    if address in _MAPPED or address in _NAT64:
        return IPv4Address(number & _MASK_V4)
    if address in _6TO4:
        return IPv4Address(number >> 80 & _MASK_V4)
    return None


_EXPECTED_HTTPS = "expected https, as http shows everything to whoever listens"
_BESIDES: Mapping[Reach, str] = {
    "public": "; this node's operator has not allowed others (--webhook-allow-private)",
    "loopback": " or this machine; others need ./aitbc run --webhook-allow-private",
    "private": ", a private one or this machine",
}


def check_url(url: str, reach: Reach) -> None:
    """Refuse a URL that no webhook may have. A name is looked up only when something is sent.

    Raises:
        MarketError: VALIDATION_FAILED.
    """
    if len(url) > MAX_URL_CHARS or not _URL.fullmatch(url):
        raise _refuse(f"expected an https:// URL of at most {MAX_URL_CHARS} ASCII characters")
    try:
        parsed = httpx2.URL(url)
        host, port = parsed.host, parsed.port
    except (httpx2.InvalidURL, ValueError):
        raise _refuse("this is not a URL") from None
    if parsed.scheme != "https" and reach == "public":
        raise _refuse(_EXPECTED_HTTPS)
    if parsed.userinfo:
        raise _refuse("expected no user or password; the signature shows who speaks")
    if parsed.fragment:
        raise _refuse("expected no fragment")
    if not host or not (port is None or 0 < port < 1 << 16):
        raise _refuse("expected a host, and a port in 1..65535")
    _check_literal(host, Guard(reach=reach, is_plain=parsed.scheme == "http"))


def _check_literal(host: str, guard: Guard) -> None:
    """Refuse at once what will never be reached; names are checked when they are looked up."""
    try:
        address = ip_address(host)
    except ValueError:
        return
    if guard.allows(address):
        return
    if guard.is_plain and classify(address) == "public":
        raise _refuse(_EXPECTED_HTTPS)
    raise _refuse(f"expected a public address{_BESIDES[guard.reach]}")


def _refuse(why: str) -> MarketError:
    return InvalidFieldError("url", why)
