"""`/v1/chat/completions`, `/v1/completions` and `/v1/models`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace

from api.answers import UNBUFFERED, Answer, Stream, answer_json
from api.errors import RequestError
from api.openai.bodies import Wanted, parse_chat_body, parse_completion_body
from api.openai.errors import show_openai_error
from api.openai.render import ChatFace, CompletionFace, Face, render_model
from api.openai.running import JobRun
from api.openai.streaming import stream_job
from api.ports import Market
from api.requests import MAX_BODY_BYTES, Request
from api.resource import ApiSettings, Handler, Operation
from api.waiting import Places
from ledger.jobs import ServedModel, normalize_model

MAX_MODEL_CHARS = 128


class OpenAiEndpoints:
    """The paths of OpenAI's API."""

    def __init__(self, market: Market, settings: ApiSettings, places: Places) -> None:
        self._market = market
        self._settings = settings
        self._places = places

    def paths(self) -> Mapping[str, Mapping[str, Operation]]:
        """Return the operations by path."""

        def complete(handler: Handler) -> Operation:
            return Operation(
                handler=handler,
                role="client",
                key="always",
                max_body_bytes=MAX_BODY_BYTES,
                error_form=show_openai_error,
            )

        def read(handler: Handler) -> Operation:
            return Operation(handler=handler, error_form=show_openai_error)

        return {
            "/v1/chat/completions": {"POST": complete(self.chat)},
            "/v1/completions": {"POST": complete(self.complete)},
            "/v1/models": {"GET": read(self.list_models)},
            # Names of models may have slashes.
            "/v1/models/{model:path}": {"GET": read(self.show_model)},
        }

    async def chat(self, request: Request) -> Answer | Stream:
        """`POST /v1/chat/completions`."""
        wanted = parse_chat_body(request.body, default_model=self._settings.default_model)
        return await self._run(request, wanted, ChatFace())

    async def complete(self, request: Request) -> Answer | Stream:
        """`POST /v1/completions`."""
        wanted = parse_completion_body(request.body, default_model=self._settings.default_model)
        return await self._run(request, wanted, CompletionFace())

    async def _run(self, request: Request, wanted: Wanted, face: Face) -> Answer | Stream:
        if not self._market.serves(wanted.order.model):
            raise _refuse_model(wanted.order.model)
        # The answer may take minutes, and nothing of the body is needed for it.
        request.drop_body()
        with contextlib.ExitStack() as place:
            place.enter_context(self._places.hold(request.caller, request.payer))
            job = await self._market.submit(request.caller, wanted.order)
            run = JobRun(self._market, request, job)
            if wanted.stream:
                pieces = await stream_job(
                    run, face, include_usage=wanted.include_usage, request_id=request.id
                )
                headers = (*run.headers, UNBUFFERED)
                return Stream(pieces=pieces, headers=headers, ended=place.pop_all().close)
            await run.finish(timeout_s=self._settings.completion_timeout_ms / 1000)
            return answer_json(face.whole(run.job, run.receipt), headers=run.headers)

    async def list_models(self, _request: Request) -> Answer:
        """`GET /v1/models`."""
        models = self._market.models(self._settings.default_model)
        return answer_json({"object": "list", "data": [render_model(model) for model in models]})

    async def show_model(self, request: Request) -> Answer:
        """`GET /v1/models/{model}`."""
        model = self._find_model(request.path_id)
        if model is None:
            raise _refuse_model(request.path_id)
        return answer_json(render_model(model))

    def _find_model(self, name: str) -> ServedModel | None:
        models = {m.name: m for m in self._market.models(self._settings.default_model)}
        wanted = normalize_model(name)
        if wanted in models or not wanted or len(name) > MAX_MODEL_CHARS:
            return models.get(wanted)
        if not self._market.serves(name):
            return None
        # Somebody takes any model; it is listed as the default one.
        anything = models.get(normalize_model(self._settings.default_model))
        return replace(anything, name=wanted) if anything else None


def _refuse_model(name: str) -> RequestError:
    return RequestError(
        "MODEL_NOT_FOUND",
        f"no active miner serves {name[:MAX_MODEL_CHARS]!r}; GET /v1/models lists what is served",
    )
