"""What follows from an attempt. Pure: the time and the randomness are arguments.

The delays are those of Standard Webhooks, ten attempts in three days. Beside them a webhook that
fails is held as a whole: an outage with thousands of events waiting costs its receiver, and this
node, one attempt now and then and not one for each event.
"""

from __future__ import annotations

from dataclasses import dataclass

from ledger.store.deliveries import Delivery, Standing, is_ping
from node.webhooks.sender import Outcome

_MINUTE_S = 60
_HOUR_S = 3600
RETRY_DELAYS_S = (
    5,
    5 * _MINUTE_S,
    30 * _MINUTE_S,
    *(2 * _HOUR_S, 5 * _HOUR_S, 10 * _HOUR_S, 14 * _HOUR_S, 20 * _HOUR_S, 24 * _HOUR_S),
)
"""After the first attempt, the second, …; after the last one the event is given up."""
JITTER = 0.2
"""Share of a delay by which it is lengthened at most, so that events do not come back in step."""
FIRST_HOLD_S = 5
MAX_HOLD_S = 5 * _MINUTE_S
MAX_FAILING_S = 5 * 24 * _HOUR_S
"""Nothing but failures for so long, and the webhook is disabled."""
_GONE = 410
_MAX_DOUBLINGS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """What becomes of a delivery that has failed, and of its webhook."""

    retry_at_ms: int | None
    """None: it is given up."""
    held_until_ms: int
    disabled_reason: str | None = None


def judge_failure(
    outcome: Outcome, delivery: Delivery, standing: Standing, *, now_ms: int, chance: float
) -> Sentence:
    """Decide after a failed attempt; `chance` is random, from 0 to below 1."""
    stretch = 1 + JITTER * chance
    hold_s = min(FIRST_HOLD_S << min(standing.failures, _MAX_DOUBLINGS), MAX_HOLD_S)
    held_until_ms = now_ms + max(round(hold_s * stretch * 1000), outcome.retry_after_s * 1000)
    retry_at_ms = None
    if not is_ping(delivery) and delivery.attempts < len(RETRY_DELAYS_S):
        delay_s = max(RETRY_DELAYS_S[delivery.attempts] * stretch, outcome.retry_after_s)
        retry_at_ms = now_ms + round(delay_s * 1000)
    return Sentence(
        retry_at_ms=retry_at_ms,
        held_until_ms=held_until_ms,
        disabled_reason=_find_reason(outcome, standing, now_ms),
    )


def _find_reason(outcome: Outcome, standing: Standing, now_ms: int) -> str | None:
    if outcome.status == _GONE:
        return "gone"
    since_ms = standing.failing_since_ms
    if since_ms is not None and now_ms - since_ms >= MAX_FAILING_S * 1000:
        return "failing"
    return None
