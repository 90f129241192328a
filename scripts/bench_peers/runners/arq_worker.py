"""arq's worker: takes jobs from Redis and stores their results there."""

from __future__ import annotations

from typing import Any

from arq.connections import RedisSettings
from arq.worker import Worker

from scripts.bench_peers.work import answer, read_order

LOOK_S = 0.005
"""arq looks for jobs twice a second by default, which bounds its rate, not its cost."""


async def answer_job(
    _context: dict[str, Any], prompt: str, model: str, max_tokens: int
) -> dict[str, object]:
    """A job."""
    return answer(prompt, model, max_tokens)


def main() -> None:
    """Work until SIGTERM."""
    order = read_order()
    Worker(
        functions=[answer_job],
        redis_settings=RedisSettings.from_dsn(order.address),
        max_jobs=2 * order.connections,
        poll_delay=LOOK_S,
        keep_result=60,
    ).run()


if __name__ == "__main__":
    main()
