"""A miner's loop: register, wait for a job, claim, run, hand in, again.

Rules: a model that is not served here is never replaced by another. While a job runs in the
inference thread, heartbeats go on from the event loop, and so does the text. Heartbeats wait at the
node, so a lost lease or a cancelled job stops the inference at the next token. A failure is
reported as one and never as a result. A finished result is sent until the node answers, always the
same body, which makes repeating harmless. Asked to stop, the worker gives the job back that is not
done, and says that it takes no more.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from ledger.chat import parse_chat
from ledger.jobs import normalize_model
from ledger.keys import KeyPair
from miner.client import CoordinatorClient
from miner.engine import Completion, Engine, GenerationRequest
from miner.errors import (
    BadAnswerError,
    CoordinatorError,
    JobError,
    LeaseLostError,
    MinerError,
    RefusedError,
    SettingsError,
    UnreachableError,
)
from miner.receipt import (
    CheckedOrder,
    build_receipt,
    build_registration,
    build_result,
    check_order,
)
from miner.retry import Backoff, Pace, Patience
from miner.telling import Teller
from miner.tokenizer import Message
from miner.wire import ClaimedJob, Job

log = logging.getLogger(__name__)

FATAL_STATUSES = {401, 403}

DRAIN_TIMEOUT_S = 2.0
MAX_BEAT_WAIT_S = 30
"""How long a node holds a heartbeat."""
MAX_REASON = 500
"""Characters of a failure's reason that are sent."""


class Worker:
    """One miner identity working for one node."""

    def __init__(
        self,
        *,
        client: CoordinatorClient,
        miner_id: str,
        key: KeyPair,
        engines: Mapping[str, Engine],
        clock_ms: Callable[[], int],
        gpu_info: dict[str, str] | None = None,
        pace: Pace | None = None,
    ) -> None:
        """Nothing is sent before `run`.

        Args:
            client: the node.
            miner_id: this miner's name there.
            key: signs receipts.
            engines: by the model names that are offered.
            clock_ms: monotonic milliseconds.
            gpu_info: name and memory, shown to others.
            pace: how often things are tried.
        """
        self._client = client
        self._miner_id = miner_id
        self._key = key
        self._names = list(engines)
        self._engines = {normalize_model(name): engine for name, engine in engines.items()}
        self._clock_ms = clock_ms
        self._gpu_info = gpu_info
        self._pace = pace or Pace()
        self._patience = Patience(self._pace)
        self._lost_races = 0
        self._genesis = ""

    def stop(self) -> None:
        """Finish cleanly: give back what is not done, then let `run` return."""
        self._patience.stopping.set()

    async def run(self) -> None:
        """Work until `stop`.

        Raises:
            SettingsError: the node refuses this miner or its key.
        """
        # One thread: an engine runs one job at a time.
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference") as inference:
            backoff = Backoff(self._pace)
            while not self._patience.stopping.is_set():
                try:
                    await self._serve(inference)
                    backoff.reset()
                except CoordinatorError as error:
                    pause_s = backoff.pause_s(error)
                    log.warning("%s; trying again in %.1f s", error, pause_s)
                    await self._patience.rest(pause_s)
        await self._drain()

    async def _drain(self) -> None:
        """Tell the node, if it hears us in time, that nobody should count on this miner."""
        if self._genesis:
            with suppress(CoordinatorError, TimeoutError):
                await asyncio.wait_for(self._client.drain(self._miner_id), DRAIN_TIMEOUT_S)

    async def _serve(self, inference: ThreadPoolExecutor) -> None:
        """Register if need be, then do at most one job."""
        try:
            if not self._genesis:
                await self._register()
            job = await self._patience.unless_stopping(
                self._client.available(self._miner_id, wait_s=self._pace.poll_wait_s)
            )
            if job is not None:
                await self._take(job, inference)
            else:
                self._lost_races = 0
        except RefusedError as error:
            if error.status in FATAL_STATUSES:
                raise SettingsError(f"the node refuses this miner: {error}") from error
            if error.error_code != "MINER_NOT_FOUND":
                raise
            self._genesis = ""  # the node forgot us, perhaps its data is new: register again

    async def _register(self) -> None:
        genesis = await self._client.genesis()
        body = build_registration(
            genesis=genesis,
            miner_id=self._miner_id,
            key=self._key,
            models=self._names,
            gpu_info=self._gpu_info,
        )
        try:
            await self._client.register(body)
        except RefusedError as error:  # for instance 409: the miner_id is somebody else's
            raise SettingsError(f"the node refuses this miner: {error}") from error
        self._genesis = genesis
        log.info("registered as %s, serving %s", self._miner_id, ", ".join(self._names))

    async def _take(self, job: Job, inference: ThreadPoolExecutor) -> None:
        engine = self._engines.get(normalize_model(job.model))
        if engine is None:
            raise BadAnswerError(
                f"offered {job.job_id} for {job.model!r:.100}, which is not served here"
            )
        claimed = await self._claim(job)
        if claimed is None:
            return
        claimed_at_ms = self._clock_ms()
        try:
            order = check_order(claimed, genesis=self._genesis, account=self._key.account)
        except BadAnswerError as error:
            await self._give_up(claimed, reason=str(error), retryable=True)
            raise
        log.info("running %s on %s", claimed.job_id, claimed.model)
        teller = Teller(
            lambda offset, text: self._client.tell(
                claimed.job_id, self._miner_id, offset=offset, text=text
            ),
            self._pace,
        )
        run = _Run(claimed, order, engine, claimed_at_ms, teller.add)
        telling = asyncio.create_task(teller.run())
        heartbeats = asyncio.create_task(self._keep_lease(run))
        try:
            await self._execute(run, inference, heartbeats, telling)
        finally:
            run.ended.set()
            for task in (heartbeats, telling):
                task.cancel()
            await asyncio.gather(heartbeats, telling, return_exceptions=True)

    async def _claim(self, job: Job) -> ClaimedJob | None:
        """Make the job ours; None if somebody else was faster or it was cancelled.

        Raises:
            LeaseLostError: too many in a row were lost: the node may offer what it refuses.
        """
        try:
            # The same miner gets the same lease again, so a lost answer costs nothing.
            claimed = await self._patience.persist(
                lambda: self._client.claim(job.job_id, self._miner_id)
            )
        except LeaseLostError as error:
            self._lost_races += 1
            if self._lost_races > self._pace.lost_races:
                raise
            log.info("%s", error)
            return None
        self._lost_races = 0
        if (claimed.job_id, claimed.model) != (job.job_id, job.model):
            raise BadAnswerError(f"claimed {job.job_id}, but the answer is another job")
        return claimed

    async def _execute(
        self,
        run: _Run,
        inference: ThreadPoolExecutor,
        heartbeats: asyncio.Task[None],
        telling: asyncio.Task[None],
    ) -> None:
        """Run the engine, then hand in, fail or release, whichever is true."""
        loop = asyncio.get_running_loop()
        generation = loop.run_in_executor(inference, run.generate)
        stopping = asyncio.create_task(self._patience.stopping.wait())
        try:
            either: list[asyncio.Future[Any]] = [generation, stopping]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not generation.done():
                run.ended.set()
            completion = await generation
            run.is_done = True
            telling.cancel()
        except JobError as error:
            heartbeats.cancel()
            await self._give_up(run.job, reason=str(error), retryable=False)
        except Exception as error:
            # Whatever broke in the model or its runtime, another miner may do better.
            heartbeats.cancel()
            log.error("%s failed: %s", run.job.job_id, _describe(error))  # noqa: TRY400 - see there
            name = type(error).__name__
            await self._give_up(run.job, reason=f"the miner failed: {name}", retryable=True)
        else:
            if run.lease_lost:
                log.warning("%s is no longer ours: stopped", run.job.job_id)
            elif completion.finish_reason == "cancelled":
                heartbeats.cancel()
                await self._release(run.job)
            else:
                await self._hand_in(run, completion)
        finally:
            stopping.cancel()

    async def _keep_lease(self, run: _Run) -> None:
        """Renew the lease until cancelled; stop the inference when the lease is gone."""
        now = asyncio.get_running_loop().time
        interval_s = run.job.lease.heartbeat_interval_ms / 1000
        while True:
            wait_s = min(interval_s, MAX_BEAT_WAIT_S)
            next_at = now() + wait_s
            try:
                lease = await self._client.heartbeat(
                    run.job.job_id, self._miner_id, wait_s=int(wait_s)
                )
                interval_s = lease.heartbeat_interval_ms / 1000
            except RefusedError as error:
                if not run.is_done:  # else it is the result that has ended the job
                    log.warning("%s", error)
                    run.lease_lost = True
                    run.ended.set()
                return
            except CoordinatorError as error:
                # The result is still taken if nobody else has the job by then, so go on.
                log.warning("heartbeat: %s", error)
            await asyncio.sleep(next_at - now())  # what the node did not wait

    async def _hand_in(self, run: _Run, completion: Completion) -> None:
        try:
            payload = build_receipt(
                run.order,
                completion,
                model_digest=run.engine.model_digest,
                elapsed_ms=self._clock_ms() - run.claimed_at_ms,
            )
            body = build_result(payload, completion, miner_id=self._miner_id, key=self._key)
            await self._patience.persist(lambda: self._client.complete(run.job.job_id, body))
        except LeaseLostError as error:
            log.warning("%s", error)
        except (RefusedError, BadAnswerError) as error:
            log.error("%s", error)  # noqa: TRY400 - what the node said is all there is to say
            code = error.error_code if isinstance(error, RefusedError) else "bad answer"
            await self._give_up(run.job, reason=f"result not accepted: {code}", retryable=True)
        except UnreachableError as error:
            log.error("%s: given up: %s", run.job.job_id, error)  # noqa: TRY400 - as above
        else:
            log.info(
                "completed %s: %d + %d tokens, %s",
                run.job.job_id,
                completion.prompt_tokens,
                completion.completion_tokens,
                completion.finish_reason,
            )

    async def _give_up(self, job: Job, *, reason: str, retryable: bool) -> None:
        log.warning("%s: %s", job.job_id, reason)
        with suppress(CoordinatorError):  # then the lease runs out, which says the same, later
            await self._patience.persist(
                lambda: self._client.fail(
                    job.job_id, self._miner_id, reason=reason[:MAX_REASON], retryable=retryable
                )
            )

    async def _release(self, job: Job) -> None:
        log.info("giving back %s", job.job_id)
        with suppress(CoordinatorError):  # as above
            await self._patience.persist(lambda: self._client.release(job.job_id, self._miner_id))


class _Run:
    """A claimed job in work."""

    def __init__(
        self,
        job: ClaimedJob,
        order: CheckedOrder,
        engine: Engine,
        claimed_at_ms: int,
        on_text: Callable[[str], None],
    ) -> None:
        self.job = job
        self.order = order
        self.engine = engine
        self.claimed_at_ms = claimed_at_ms
        self.ended = threading.Event()
        """Set by the event loop, seen by the inference thread between tokens."""
        self.lease_lost = False
        self.is_done = False
        """Whether the answer is whole."""
        self._on_text = on_text

    def generate(self) -> Completion:
        """Run the engine; in the inference thread."""
        request = GenerationRequest(
            job_id=self.job.job_id,
            messages=tuple(
                Message(role=turn.role, content=turn.content)
                for turn in parse_chat(self.job.prompt)
            ),
            params=self.order.params,
            stop=self.job.params.stop_sequences,
        )
        return self.engine.generate(request, on_text=self._on_text, should_stop=self.ended.is_set)


def _describe(error: Exception) -> str:
    """What went wrong, and where, without the words of libraries: these may quote the prompt."""
    if isinstance(error, MinerError):
        return str(error)
    return "\n".join([type(error).__name__, *traceback.format_tb(error.__traceback__)])
