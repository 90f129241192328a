"""One claimed job, from its claim to the node's word on its end.

While it waits for a slot and while its answer grows, heartbeats go on from the event loop, and so
does the text. Heartbeats wait at the node, so a lost lease or a cancelled job ends the answer at
the next token. A failure is reported as one and never as a result. A finished result is sent until
the node answers, always the same body, which makes repeating harmless.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from ledger.chat import parse_chat
from ledger.keys import KeyPair
from miner.client import CoordinatorClient
from miner.engine import Completion, Engine, Generation, GenerationRequest
from miner.errors import (
    BadAnswerError,
    CoordinatorError,
    EngineError,
    JobError,
    LeaseLostError,
    MinerError,
    ModelError,
    RefusedError,
    UnreachableError,
)
from miner.receipt import CheckedOrder, build_receipt, build_result
from miner.retry import Pace, Patience
from miner.telling import Teller
from miner.tokenizer import Message
from miner.wire import ClaimedJob, Job

log = logging.getLogger(__name__)

MAX_BEAT_WAIT_S = 30
"""How long a node holds a heartbeat."""
MAX_REASON = 500
"""Characters of a failure's reason that are sent."""

Outcome = Literal["completed", "failed", "released", "lost", "unsent"]
"""failed: the node was told why. lost: cancelled, or somebody else's by now. unsent: the node could
not be reached, or did not take the result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Station:
    """What all jobs of a worker have in common."""

    client: CoordinatorClient
    miner_id: str
    key: KeyPair
    """Signs receipts."""
    clock_ms: Callable[[], int]
    """Monotonic."""
    patience: Patience
    pace: Pace
    readers: Executor
    """Its threads read prompts."""

    async def give_up(self, job: Job, *, reason: str, retryable: bool) -> None:
        """Report a failure; if that fails too, the lease runs out, which says the same, later."""
        log.warning("%s: %s", job.job_id, reason)
        with suppress(CoordinatorError):
            await self.patience.persist(
                lambda: self.client.fail(
                    job.job_id, self.miner_id, reason=reason[:MAX_REASON], retryable=retryable
                )
            )


class JobRun:
    """A claimed job in work."""

    def __init__(
        self,
        station: Station,
        job: ClaimedJob,
        order: CheckedOrder,
        engine: Engine,
        *,
        claimed_at_ms: int,
        on_answered: Callable[[], None],
    ) -> None:
        """`on_answered` is called once, when the engine has no more to do with it."""
        self.job = job
        self.completion: Completion | None = None
        """The answer, once it is whole."""
        self.is_models_fault = False
        """Whether the job failed because the model did."""
        self._station = station
        self._order = order
        self._engine = engine
        self._claimed_at_ms = claimed_at_ms
        self._on_answered = on_answered
        self._generation: Generation | None = None
        self._is_abandoned = False
        self._is_lost = False

    def abandon(self) -> None:
        """End the answer at the next token, and give the job back."""
        self._is_abandoned = True
        if self._generation is not None:
            self._generation.cancel()

    async def run(self) -> Outcome:
        """Answer, then hand in, fail or release, whichever is true."""
        station, job = self._station, self.job
        teller = Teller(
            lambda offset, text: station.client.tell(
                job.job_id, station.miner_id, offset=offset, text=text
            ),
            station.pace,
        )
        telling = asyncio.create_task(teller.run())
        heartbeats = asyncio.create_task(self._keep_lease())
        try:
            return await self._execute(teller.add, heartbeats, telling)
        finally:
            for task in (heartbeats, telling):
                task.cancel()
            await asyncio.gather(heartbeats, telling, return_exceptions=True)

    async def _execute(
        self,
        on_text: Callable[[str], None],
        heartbeats: asyncio.Task[None],
        telling: asyncio.Task[None],
    ) -> Outcome:
        try:
            completion = await self._answer(on_text)
        except JobError as error:
            heartbeats.cancel()
            await self._station.give_up(self.job, reason=str(error), retryable=False)
            return "failed"
        except Exception as error:
            # Whatever broke in the model or its runtime, another miner may do better.
            heartbeats.cancel()
            self.is_models_fault = isinstance(error, ModelError)
            log.error("%s failed: %s", self.job.job_id, describe(error))  # noqa: TRY400 - see there
            what = str(error) if isinstance(error, EngineError) else type(error).__name__
            await self._station.give_up(
                self.job, reason=f"the miner failed: {what}", retryable=True
            )
            return "failed"
        if self._is_lost:
            log.warning("%s is no longer ours: stopped", self.job.job_id)
            return "lost"
        if completion.finish_reason == "cancelled":
            heartbeats.cancel()
            await self._release()
            return "released"
        self.completion = completion
        telling.cancel()
        return await self._hand_in(completion)

    async def _answer(self, on_text: Callable[[str], None]) -> Completion:
        """Run the engine."""
        loop = asyncio.get_running_loop()
        try:
            generation = await loop.run_in_executor(self._station.readers, self._submit, on_text)
            self._generation = generation
            if self._is_abandoned or self._is_lost:
                generation.cancel()
            return await asyncio.wrap_future(generation.future)
        finally:
            if self._generation is not None:
                self._generation.cancel()
            self._on_answered()

    def _submit(self, on_text: Callable[[str], None]) -> Generation:
        left_ms = self.job.lease.run_ends_in_ms
        request = GenerationRequest(
            job_id=self.job.job_id,
            messages=tuple(
                Message(role=turn.role, content=turn.content)
                for turn in parse_chat(self.job.prompt)
            ),
            params=self._order.params,
            stop=self.job.params.stop_sequences,
            owner=self._order.client,
            time_left_s=None if left_ms is None else left_ms / 1000,
        )
        return self._engine.submit(request, on_text=on_text)

    async def _keep_lease(self) -> None:
        """Renew the lease until cancelled; end the answer when the lease is gone."""
        now = asyncio.get_running_loop().time
        interval_s = self.job.lease.heartbeat_interval_ms / 1000
        while True:
            wait_s = min(interval_s, MAX_BEAT_WAIT_S)
            next_at = now() + wait_s
            try:
                lease = await self._station.client.heartbeat(
                    self.job.job_id, self._station.miner_id, wait_s=int(wait_s)
                )
                interval_s = lease.heartbeat_interval_ms / 1000
            except RefusedError as error:
                if self.completion is None:  # else it is the result that has ended the job
                    log.warning("%s", error)
                    self._is_lost = True
                    if self._generation is not None:
                        self._generation.cancel()
                return
            except CoordinatorError as error:
                # The result is still taken if nobody else has the job by then, so go on.
                log.warning("heartbeat: %s", error)
            await asyncio.sleep(next_at - now())  # what the node did not wait

    async def _hand_in(self, completion: Completion) -> Outcome:
        station = self._station
        try:
            payload = build_receipt(
                self._order,
                completion,
                model_digest=self._engine.model_digest,
                elapsed_ms=station.clock_ms() - self._claimed_at_ms,
            )
            body = build_result(payload, completion, miner_id=station.miner_id, key=station.key)
            await station.patience.persist(lambda: station.client.complete(self.job.job_id, body))
        except LeaseLostError as error:
            log.warning("%s", error)
            return "lost"
        except (RefusedError, BadAnswerError) as error:
            log.error("%s", error)  # noqa: TRY400 - what the node said is all there is to say
            code = error.error_code if isinstance(error, RefusedError) else "bad answer"
            await station.give_up(self.job, reason=f"result not accepted: {code}", retryable=True)
            return "unsent"
        except UnreachableError as error:
            log.error("%s: given up: %s", self.job.job_id, error)  # noqa: TRY400 - as above
            return "unsent"
        log.info(
            "completed %s: %d + %d tokens, %s",
            self.job.job_id,
            completion.prompt_tokens,
            completion.completion_tokens,
            completion.finish_reason,
        )
        return "completed"

    async def _release(self) -> None:
        log.info("giving back %s", self.job.job_id)
        station = self._station
        with suppress(CoordinatorError):  # then the lease runs out, which says the same, later
            await station.patience.persist(
                lambda: station.client.release(self.job.job_id, station.miner_id)
            )


def describe(error: Exception) -> str:
    """What went wrong, and where, without the words of libraries: these may quote the prompt."""
    if isinstance(error, MinerError):
        return str(error)
    return "\n".join([type(error).__name__, *traceback.format_tb(error.__traceback__)])
