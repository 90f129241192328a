"""Rate limits: a token bucket for each API key, or for each client address without a good key.

A bucket holds what may come at once and refills steadily; each request takes one token. Buckets
live in memory, least recently used ones are forgotten first, and a forgotten one is a full one: to
gain from that, a client must bring more addresses than are remembered.

Who sends a key that is not one pays from its address, and a good key never pays for the address
that it shares. The key is looked up before its bucket is known, which costs microseconds.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from starlette.types import Scope

from api.errors import RequestError
from ledger.jobs import Caller

MAX_BUCKETS = 10_000
"""Remembered at once, of keys and of addresses."""
BURST_S = 5
"""A bucket holds the tokens of this long, and at least one."""
IPV6_PREFIX = 64
"""One subscriber has a whole network of this size, so it shares one bucket."""
UNKNOWN_ADDRESS = "unknown"
_MAX_ADDRESS_CHARS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimits:
    """Requests per second; 0: as many as come."""

    key: float = 0
    """Of one API key."""
    address: float = 0
    """Of one client address, for requests without a good key."""


class TokenBuckets:
    """Buckets of one rate by name."""

    def __init__(
        self, rate: float, *, clock_s: Callable[[], float], max_buckets: int = MAX_BUCKETS
    ) -> None:
        """`clock_s` never goes back."""
        assert rate > 0, "no limit needs no buckets"
        self._rate = rate
        self._burst = max(1.0, rate * BURST_S)
        self._clock_s = clock_s
        self._max_buckets = max_buckets
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """(tokens, when they were counted), the least recently used first."""

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, name: str) -> float:
        """Take a token; return 0, or without one in how many seconds there will be."""
        now = self._clock_s()
        tokens, counted_at = self._buckets.pop(name, (self._burst, now))
        tokens = min(self._burst, tokens + (now - counted_at) * self._rate)
        wait_s = 0.0 if tokens >= 1 else (1 - tokens) / self._rate
        # A refused request takes nothing: who waits as long as it was told gets through.
        self._buckets[name] = (tokens if wait_s else tokens - 1, now)
        if len(self._buckets) > self._max_buckets:
            self._buckets.popitem(last=False)
        return wait_s


class RateLimiter:
    """Holds every request of the API to the limits."""

    def __init__(self, limits: RateLimits, *, clock_s: Callable[[], float]) -> None:
        self._keys = TokenBuckets(limits.key, clock_s=clock_s) if limits.key else None
        self._addresses = TokenBuckets(limits.address, clock_s=clock_s) if limits.address else None

    def check(self, caller: Caller, scope: Scope) -> None:
        """Count a request.

        Raises:
            RequestError: RATE_LIMIT_EXCEEDED.
        """
        if caller.role is None:
            self.check_address(scope)
        elif self._keys is not None and (wait_s := self._keys.take(caller.key)):
            raise _refuse("this API key sends", wait_s)

    def check_address(self, scope: Scope) -> None:
        """Count a request of nobody known.

        Raises:
            RequestError: RATE_LIMIT_EXCEEDED.
        """
        if self._addresses is not None and (wait_s := self._addresses.take(read_address(scope))):
            raise _refuse("this address sends, without a valid API key,", wait_s)


def read_address(scope: Scope) -> str:
    """Return whose bucket pays for a request without a key.

    The server has put there who is connected, or whom a trusted proxy names; what is no address
    has one bucket together.
    """
    client = scope.get("client")
    return (
        _group_address(client[0])
        if client and len(client[0]) <= _MAX_ADDRESS_CHARS
        else UNKNOWN_ADDRESS
    )


@lru_cache(maxsize=4096)
def _group_address(text: str) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return UNKNOWN_ADDRESS
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    # An interface name after % is the sender's to choose, so it is no part of the network.
    return str(ipaddress.IPv6Network((int(address), IPV6_PREFIX), strict=False))


def _refuse(who: str, wait_s: float) -> RequestError:
    seconds = max(1, math.ceil(wait_s))
    return RequestError(
        "RATE_LIMIT_EXCEEDED",
        f"{who} too many requests; try again in {seconds} s",
        headers=((b"retry-after", str(seconds).encode()),),
    )
