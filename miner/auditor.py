"""A miner's other work: audits of answers that other miners gave.

Rules: one audit at a time, in the gaps that answers leave; nothing is audited with another model
than the receipt names, no texts but those that it commits to, and nothing with a model whose logits
depend on how it is run. An audit that cannot be done here is given back with the reason, never
answered with a guess. Asked to stop, what is not done is given back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from ledger.jobs import normalize_model
from ledger.keys import KeyPair
from ledger.replay import Measures
from miner.audit.case import Case, build_answer, check_case
from miner.audit.order import AuditOffer, AuditOrder, build_audit, build_case, build_report
from miner.audit.replay import Answer, End, ModelLimits, find_end, read_limits, replay
from miner.audit.steady import MOST_UNSTEADY, describe_unsteadiness, find_unsteadiness
from miner.client import CoordinatorClient
from miner.errors import (
    BadAnswerError,
    CoordinatorError,
    LeaseLostError,
    MinerError,
    RefusedError,
)
from miner.retry import Backoff, Pace, Patience
from miner.runtime import LlamaRuntime
from miner.tokenizer import ChatTokenizer

log = logging.getLogger(__name__)

T = TypeVar("T")

NOT_FOUND = 404
MAX_REASON = 500
"""Characters of a reason that are sent."""
STOPPING = "this miner is asked to stop"


class AuditEngine(Protocol):
    """What an auditor needs of a model."""

    @property
    def model_digest(self) -> str:
        """The model's digest, 64 hex digits."""

    @property
    def tokenizer(self) -> ChatTokenizer:
        """The model's tokenizer."""

    def run(self, work: Callable[[LlamaRuntime, int], Generator[None, None, T]]) -> Future[T]:
        """Do other work on the runtime between the turns of its answers, piece by piece."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """What an auditor must know of a model."""

    limits: ModelLimits
    unsteadiness: float


class Auditor:
    """Audits what one node offers, one audit at a time."""

    def __init__(
        self,
        *,
        client: CoordinatorClient,
        miner_id: str,
        key: KeyPair,
        engines: Mapping[str, AuditEngine],
        now_ms: Callable[[], int],
        pace: Pace | None = None,
    ) -> None:
        """Nothing is sent before `run`.

        Args:
            client: the node.
            miner_id: this miner's name there; somebody registers it.
            key: signs audits; the account that the miner is registered with.
            engines: by the model names that are offered.
            now_ms: Unix milliseconds.
            pace: how often things are tried.
        """
        self.passed = 0
        self.failed = 0
        """Audits that were handed in, by verdict."""
        self._client = client
        self._miner_id = miner_id
        self._key = key
        self._engines = {normalize_model(name): engine for name, engine in engines.items()}
        self._now_ms = now_ms
        self._pace = pace or Pace()
        self._patience = Patience(self._pace)
        self._genesis = ""
        self._examined: dict[str, Examined] = {}
        """By model digest."""

    def stop(self) -> None:
        """Give back what is not done, then let `run` return."""
        self._patience.stopping.set()

    async def run(self) -> None:
        """Audit until `stop`, or until the node turns out to know no audits."""
        backoff = Backoff(self._pace)
        while not self._patience.stopping.is_set():
            try:
                await self._serve()
                backoff.reset()
            except CoordinatorError as error:
                if _knows_no_audits(error):
                    log.info("the node offers no audits: %s", error)
                    return
                pause_s = backoff.pause_s(error)
                if not _is_unregistered(error):  # that is for the worker to mend, and to tell
                    log.warning("audits: %s; trying again in %.1f s", error, pause_s)
                await self._patience.rest(pause_s)

    async def _serve(self) -> None:
        if not self._genesis:
            self._genesis = await self._client.genesis()
        offer = await self._patience.unless_stopping(
            self._client.available_audit(self._miner_id, wait_s=self._pace.poll_wait_s)
        )
        if offer is None:
            return
        engine = self._engines.get(normalize_model(offer.model))
        if engine is None:
            raise BadAnswerError(
                f"offered {offer.audit_id} of {offer.model!r:.100}, which is not served here"
            )
        order = await self._claim(offer)
        if order is not None:
            await self._audit(order, engine)

    async def _claim(self, offer: AuditOffer) -> AuditOrder | None:
        try:
            order = await self._patience.persist(
                lambda: self._client.claim_audit(offer.audit_id, self._miner_id)
            )
        except LeaseLostError as error:
            log.info("%s", error)
            return None
        if order.audit_id != offer.audit_id:
            raise BadAnswerError(f"claimed {offer.audit_id}, but the answer is another audit")
        return order

    async def _audit(self, order: AuditOrder, engine: AuditEngine) -> None:
        try:
            case = build_case(order, genesis=self._genesis, account=self._key.account)
            measured = await self._measure(case, engine)
        except BadAnswerError as error:
            await self._release(order, str(error))
            raise
        except MinerError as error:
            await self._release(order, str(error))
            return
        if isinstance(measured, str):
            await self._release(order, measured)
        else:
            await self._hand_in(order, case, engine, measured)

    async def _measure(self, case: Case, engine: AuditEngine) -> Measures | str:
        """What a replay measures, or why there is none."""
        if obstacle := _find_obstacle(case, engine):
            return obstacle
        model = await self._examine(engine)
        if model is None:
            return STOPPING
        if model.unsteadiness > MOST_UNSTEADY:
            return describe_unsteadiness(model.unsteadiness)
        return await self._replay(case, engine, model.limits) or STOPPING

    async def _hand_in(
        self, order: AuditOrder, case: Case, engine: AuditEngine, measures: Measures
    ) -> None:
        payload = build_audit(
            case,
            measures,
            model_digest=engine.model_digest,
            account=self._key.account,
            now_ms=self._now_ms(),
        )
        body = build_report(payload, miner_id=self._miner_id, key=self._key)
        try:
            await self._patience.persist(lambda: self._client.complete_audit(order.audit_id, body))
        except LeaseLostError as error:
            log.warning("%s", error)
            return
        self.passed += payload.verdict == "pass"
        self.failed += payload.verdict == "fail"
        log.info("audited %s: %s", payload.receipt_id, payload.verdict)

    async def _replay(
        self, case: Case, engine: AuditEngine, limits: ModelLimits
    ) -> Measures | None:
        """Run the replay between answers; None if asked to stop meanwhile."""

        def prepare() -> tuple[Answer, End]:
            answer = build_answer(case, engine.tokenizer)
            return answer, find_end(answer, engine.tokenizer, limits)

        answer, end = await asyncio.to_thread(prepare)
        return await self._run(engine, partial(replay, answer, end))

    async def _examine(self, engine: AuditEngine) -> Examined | None:
        """What an auditor must know of a model, found out once; None if asked to stop meanwhile."""
        if engine.model_digest not in self._examined:
            found = await self._run(engine, _examine)
            if found is None:
                return None
            self._examined[engine.model_digest] = found
        return self._examined[engine.model_digest]

    async def _run(
        self,
        engine: AuditEngine,
        work: Callable[[LlamaRuntime, int], Generator[None, None, T]],
    ) -> T | None:
        """Run work between answers; None if asked to stop meanwhile."""
        future = engine.run(work)
        try:
            return await self._patience.unless_stopping(asyncio.wrap_future(future))
        finally:
            future.cancel()

    async def _release(self, order: AuditOrder, reason: str) -> None:
        log.info("giving back %s: %s", order.audit_id, reason)
        with suppress(CoordinatorError):  # then the lease runs out, which says the same, later
            await self._patience.persist(
                lambda: self._client.release_audit(
                    order.audit_id, self._miner_id, reason=reason[:MAX_REASON]
                )
            )


def _examine(runtime: LlamaRuntime, slot: int) -> Generator[None, None, Examined]:
    unsteadiness = yield from find_unsteadiness(runtime, slot, vocabulary=runtime.vocabulary)
    return Examined(limits=read_limits(runtime), unsteadiness=unsteadiness)


def _find_obstacle(case: Case, engine: AuditEngine) -> str | None:
    """Why this answer is not audited here."""
    for claim in check_case(case, model_digest=engine.model_digest):
        if claim.status != "verified":
            return f"{claim.name}: {claim.detail}"
    return None


def _is_unregistered(error: CoordinatorError) -> bool:
    return isinstance(error, RefusedError) and error.error_code == "MINER_NOT_FOUND"


def _knows_no_audits(error: CoordinatorError) -> bool:
    """Whether the node is of a release without audits."""
    return (
        isinstance(error, RefusedError)
        and error.status == NOT_FOUND
        and error.error_code not in {"MINER_NOT_FOUND", "AUDIT_NOT_FOUND"}
    )
