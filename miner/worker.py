"""A miner's loop: register, wait for a job, claim it, let it run, and ask for the next.

Rules: a model that is not served here is never replaced by another. One question for work is under
way at a time, and none while no model has a free slot. Asked to stop, the worker tells the node,
claims nothing more, lets its jobs end for a time of grace, and gives back those that are not done.
What becomes of one job is in miner/jobrun.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from ledger.jobs import normalize_model
from ledger.keys import KeyPair
from miner.client import CoordinatorClient
from miner.engine import Engine
from miner.errors import (
    BadAnswerError,
    CoordinatorError,
    LeaseLostError,
    ModelError,
    RefusedError,
    SettingsError,
)
from miner.jobrun import JobRun, Outcome, Station, describe
from miner.receipt import build_registration, check_order
from miner.retry import Backoff, Pace, Patience
from miner.room import Room
from miner.wire import ClaimedJob, Job

log = logging.getLogger(__name__)

FATAL_STATUSES = {401, 403}
DRAIN_TIMEOUT_S = 2.0


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
        grace_s: float = 0.0,
        find_obstacle: Callable[[], str | None] = lambda: None,
        audits: bool = False,
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
            grace_s: how long jobs may go on once the worker was asked to stop.
            find_obstacle: asked before each look for work: why this machine cannot take any now.
            audits: whether it is registered as one that audits answers of others (`Auditor`).
        """
        self.outcomes: Counter[Outcome] = Counter()
        """How jobs ended."""
        self.prompt_tokens = 0
        self.completion_tokens = 0
        """Of completed jobs."""
        self._client = client
        self._miner_id = miner_id
        self._key = key
        self._names = list(engines)
        self._engines = {normalize_model(name): engine for name, engine in engines.items()}
        self._room = Room(engines)
        self._clock_ms = clock_ms
        self._gpu_info = gpu_info
        self._pace = pace or Pace()
        self._patience = Patience(self._pace)
        self._hurry = asyncio.Event()
        self._grace_s = grace_s
        self._find_obstacle = find_obstacle
        self._audits = audits
        self._obstacle: str | None = None
        self._runs: dict[JobRun, asyncio.Task[None]] = {}
        self._lost_races = 0
        self._model_failures = 0
        """Jobs in a row that failed because a model did."""
        self._genesis = ""

    def stop(self) -> None:
        """Finish cleanly, then let `run` return; asked again, give back what is not done by now."""
        if self._patience.stopping.is_set():
            self._hurry.set()
        self._patience.stopping.set()

    @property
    def running(self) -> int:
        """Claimed jobs whose end the node has not been told."""
        return len(self._runs)

    async def run(self) -> None:
        """Work until `stop`.

        Raises:
            SettingsError: the node refuses this miner or its key.
            ModelError: a model fails again and again.
        """
        # One thread: prompts are read in the order in which the jobs were claimed.
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader") as readers:
            station = Station(
                client=self._client,
                miner_id=self._miner_id,
                key=self._key,
                clock_ms=self._clock_ms,
                patience=self._patience,
                pace=self._pace,
                readers=readers,
            )
            try:
                await self._work(station)
            except (SettingsError, asyncio.CancelledError):
                self.stop()
                self._hurry.set()
                raise
            finally:
                await self._finish()
        if self._is_broken:
            raise ModelError(f"{self._model_failures} jobs in a row failed by the model's fault")

    @property
    def _is_broken(self) -> bool:
        """Whether other miners would do better with every job that this one claims."""
        return self._model_failures >= self._room.most_runs

    async def _work(self, station: Station) -> None:
        backoff = Backoff(self._pace)
        while not self._patience.stopping.is_set():
            try:
                await self._serve(station)
                backoff.reset()
            except CoordinatorError as error:
                pause_s = backoff.pause_s(error)
                log.warning("%s; trying again in %.1f s", error, pause_s)
                await self._patience.rest(pause_s)

    async def _finish(self) -> None:
        """Let the jobs end, and give back those that do not."""
        if self._runs:
            log.info("stopping: %d jobs have %.0f s to end", len(self._runs), self._grace_s)
        # At once: nobody should count on this miner while it ends.
        await self._drain()
        if not self._runs:
            return
        ended = asyncio.create_task(_all_ends(list(self._runs.values())))
        hurry = asyncio.create_task(self._hurry_asked())
        await asyncio.wait(
            {hurry, ended}, timeout=self._grace_s, return_when=asyncio.FIRST_COMPLETED
        )
        hurry.cancel()
        for run in self._runs:
            run.abandon()
        await ended

    async def _hurry_asked(self) -> None:
        await self._hurry.wait()

    async def _drain(self) -> None:
        """Tell the node, if it hears us in time, that nobody should count on this miner."""
        if self._genesis:
            with suppress(CoordinatorError, TimeoutError):
                await asyncio.wait_for(self._client.drain(self._miner_id), DRAIN_TIMEOUT_S)

    async def _serve(self, station: Station) -> None:
        """Register if need be, then begin at most one job."""
        try:
            if not self._genesis:
                await self._register()
            if not await self._is_able():
                return
            job = await self._ask()
            if job is not None:
                await self._take(job, station)
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
            audits=self._audits,
        )
        try:
            await self._client.register(body)
        except RefusedError as error:  # for instance 409: the miner_id is somebody else's
            raise SettingsError(f"the node refuses this miner: {error}") from error
        self._genesis = genesis
        log.info("registered as %s, serving %s", self._miner_id, ", ".join(self._names))

    async def _is_able(self) -> bool:
        """Wait for a free slot; False if this machine can take no work now all the same."""
        await self._patience.unless_stopping(self._room.wait())
        while len(self._runs) >= self._room.most_runs and not self._patience.stopping.is_set():
            await self._patience.unless_stopping(_first_end(list(self._runs.values())))
        obstacle = self._find_obstacle()
        if obstacle != self._obstacle:
            self._obstacle = obstacle
            log.warning("claiming nothing: %s", obstacle or "no more; work is taken again")
        if obstacle:
            await self._patience.rest(self._pace.longest_retry_s)
        return obstacle is None and not self._patience.stopping.is_set()

    async def _ask(self) -> Job | None:
        """Ask for a job of the models that have a free slot."""
        free = self._room.names()
        is_partial = len(free) < len(self._names)
        # With some models full the question is short, since one of these may be free soon.
        wait_s = min(self._pace.poll_wait_s, self._pace.partial_wait_s if is_partial else 60)
        return await self._patience.unless_stopping(
            self._client.available(self._miner_id, wait_s=wait_s, models=free if is_partial else ())
        )

    async def _take(self, job: Job, station: Station) -> None:
        engine = self._engines.get(normalize_model(job.model))
        if engine is None:
            raise BadAnswerError(
                f"offered {job.job_id} for {job.model!r:.100}, which is not served here"
            )
        if not self._room.has(engine):
            raise BadAnswerError(f"offered {job.job_id} for {job.model}, which has no free slot")
        claimed = await self._claim(job)
        if claimed is None:
            return
        claimed_at_ms = self._clock_ms()
        try:
            order = check_order(claimed, genesis=self._genesis, account=self._key.account)
        except BadAnswerError as error:
            self.outcomes["failed"] += 1
            await station.give_up(claimed, reason=str(error), retryable=True)
            raise
        log.info("running %s on %s", claimed.job_id, claimed.model)
        self._room.take(engine)
        run = JobRun(
            station,
            claimed,
            order,
            engine,
            claimed_at_ms=claimed_at_ms,
            on_answered=lambda: self._room.give(engine),
        )
        self._runs[run] = asyncio.create_task(self._follow(run))

    async def _follow(self, run: JobRun) -> None:
        """Count how a job ended."""
        outcome: Outcome = "unsent"
        try:
            outcome = await run.run()
        except Exception as error:  # our own bug, which shall not end the others
            log.error("%s: %s", run.job.job_id, describe(error))  # noqa: TRY400 - see there
        finally:
            del self._runs[run]
        self.outcomes[outcome] += 1
        if run.is_models_fault:
            self._model_failures += 1
            if self._is_broken:
                self.stop()
        if outcome == "completed" and run.completion is not None:
            self._model_failures = 0
            self.prompt_tokens += run.completion.prompt_tokens
            self.completion_tokens += run.completion.completion_tokens

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


async def _first_end(tasks: Collection[asyncio.Task[None]]) -> None:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


async def _all_ends(tasks: Collection[asyncio.Task[None]]) -> None:
    await asyncio.wait(tasks)
