"""Quotas: how many jobs and tokens one API key may submit. Pure rules; the clock is an argument.

Jobs and tokens (the sum of `max_tokens`) of a day count when they are submitted, whatever becomes
of them. A day is one of UTC by the server's clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ledger.errors import MarketError
from ledger.jobs import JobOrder

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLimits:
    """What one key may do; None is no limit of its own."""

    max_pending: int | None = None
    """Jobs that wait at once; without it the node's `--max-pending-per-key` counts."""
    daily_jobs: int | None = None
    daily_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one key has submitted."""

    pending: int
    jobs: int
    """On this day."""
    tokens: int
    """On this day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyStanding:
    """A key's limits, and what is used of them."""

    limits: KeyLimits
    """`max_pending` is the one that counts."""
    usage: Usage
    resets_at_ms: int
    """When the next day begins."""


def find_day(now_ms: int) -> int:
    """Return the number of the UTC day, 0 at the epoch."""
    return now_ms // DAY_MS


def check_quota(
    limits: KeyLimits, usage: Usage, orders: Sequence[JobOrder], *, max_pending: int, now_ms: int
) -> None:
    """Raise unless a key may submit all of `orders` now. `max_pending` is the node's own bound.

    Raises:
        MarketError: VALIDATION_FAILED, that many are never allowed at once; QUOTA_EXCEEDED, not on
            this day; RATE_LIMIT_EXCEEDED, too many wait.
    """
    tokens = sum(order.max_tokens for order in orders)
    pending_limit = limits.max_pending if limits.max_pending is not None else max_pending
    _check_possible("pending jobs", len(orders), pending_limit)
    _check_possible("jobs a day", len(orders), limits.daily_jobs)
    _check_possible("tokens (max_tokens) a day", tokens, limits.daily_tokens)
    _check_day("jobs", usage.jobs, len(orders), limits.daily_jobs, now_ms)
    _check_day("tokens", usage.tokens, tokens, limits.daily_tokens, now_ms)
    if usage.pending + len(orders) > pending_limit:
        raise MarketError(
            "RATE_LIMIT_EXCEEDED",
            f"this key has {usage.pending} of {pending_limit} pending jobs; "
            "wait for some to run, or cancel them",
        )


def _check_possible(what: str, asked: int, limit: int | None) -> None:
    if limit is not None and asked > limit:
        raise MarketError(
            "VALIDATION_FAILED", f"this key may have {limit} {what}, and this asks for {asked}"
        )


def _check_day(what: str, used: int, asked: int, limit: int | None, now_ms: int) -> None:
    if limit is not None and used + asked > limit:
        raise MarketError(
            "QUOTA_EXCEEDED",
            f"this key has submitted {used} of {limit} {what} on this day of UTC, "
            f"and this asks for {asked}",
            retry_after_s=-(-_ms_left(now_ms) // 1000),
        )


def _ms_left(now_ms: int) -> int:
    return DAY_MS - now_ms % DAY_MS
