"""What programs do with OpenAI's own client, against a node whose miner echoes.

    walk_openai.py URL API_KEY

Ends with 0 if every answer is what such a program expects; prints the ids of its jobs by what was
asked, one JSON object.
"""

import asyncio
import json
import sys
from typing import Any

import openai

MODEL = "echo"
MESSAGES: list[Any] = [
    {"role": "system", "content": "Repeat."},
    {
        "role": "user",
        "content": [{"type": "text", "text": "Grüße, "}, {"type": "text", "text": "😀!"}],
    },
]
ANSWER = "system: Repeat. user: Grüße, 😀!"


def ask(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


class Walk:
    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = f"{url}/v1", key
        self.client = openai.OpenAI(base_url=self.url, api_key=key)
        self.jobs: dict[str, str] = {}

    def models(self) -> None:
        listed = [model.id for model in self.client.models.list()]
        assert listed == [MODEL], listed
        model = self.client.models.retrieve(MODEL)
        assert (model.id, model.object, model.owned_by) == (MODEL, "model", "aitbc")

    def whole(self) -> None:
        raw = self.client.chat.completions.with_raw_response.create(
            model=MODEL, messages=MESSAGES, user="ann", metadata={"a": "b"}, n=1
        )
        answer = raw.parse()
        [choice] = answer.choices
        assert choice.message.content == ANSWER
        assert (choice.message.role, choice.finish_reason) == ("assistant", "stop")
        assert answer.usage is not None
        assert answer.usage.total_tokens == 7
        assert answer.aitbc["job_id"] == raw.headers["x-job-id"]
        assert answer.aitbc["receipt_id"] == raw.headers["x-receipt-id"]
        self.jobs["whole"] = answer.aitbc["job_id"]
        # A program keeps the conversation by sending the answer back as it came.
        again = self.client.chat.completions.create(
            model=MODEL,
            messages=[*MESSAGES, choice.message.model_dump(), *ask("Again.")],
            temperature=0,
            max_completion_tokens=3,
        )
        assert again.choices[0].message.content == f"{ANSWER} assistant: {ANSWER} user: Again."
        assert again.choices[0].finish_reason == "length"

    def stream(self) -> None:
        chunks = list(
            self.client.chat.completions.create(
                model=MODEL,
                messages=MESSAGES,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        assert chunks[0].choices[0].delta.role == "assistant"
        *texts, end, usage = chunks
        pieces = [chunk.choices[0].delta.content or "" for chunk in texts]
        assert "".join(pieces) == ANSWER, pieces
        assert len([piece for piece in pieces if piece]) > 1, "it came in pieces"
        assert end.choices[0].finish_reason == "stop"
        assert end.aitbc["receipt_id"].startswith("rcp_")
        assert usage.usage is not None
        assert (usage.choices, usage.usage.completion_tokens) == ([], 3)
        self.jobs["stream"] = end.aitbc["job_id"]

    def helper(self) -> None:
        with self.client.chat.completions.stream(model=MODEL, messages=MESSAGES) as stream:
            for _ in stream:
                pass
            assert stream.get_final_completion().choices[0].message.content == ANSWER

    def completions(self) -> None:
        answer = self.client.completions.create(model=MODEL, prompt="Hi", stop=["\n"])
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("user: Hi", "stop")
        chunks = self.client.completions.create(model=MODEL, prompt="Hi", stream=True)
        assert "".join(chunk.choices[0].text for chunk in chunks) == "user: Hi"

    async def concurrent(self) -> None:
        async with openai.AsyncOpenAI(base_url=self.url, api_key=self.key) as client:

            async def whole(text: str) -> str | None:
                answer = await client.chat.completions.create(model=MODEL, messages=ask(text))
                return answer.choices[0].message.content

            async def stream(text: str) -> str:
                chunks = await client.chat.completions.create(
                    model=MODEL, messages=ask(text), stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

            names = [str(number) for number in range(4)]
            answers = await asyncio.gather(*map(whole, names), *map(stream, names))
        assert answers == [f"user: {name}" for name in names * 2], answers

    def errors(self) -> None:
        create = self.client.chat.completions.create
        missing = refused(openai.NotFoundError, lambda: create(model="gpt-4", messages=ask("x")))
        assert (missing.code, missing.type) == ("model_not_found", "invalid_request_error")
        bad = refused(openai.BadRequestError, lambda: create(model=MODEL, messages=ask("x"), n=2))
        assert (bad.param, bad.code) == ("n", "validation_failed")
        stranger = openai.OpenAI(base_url=self.url, api_key="aik_nobody")
        refused(openai.AuthenticationError, stranger.models.list)
        # Three attempts by the client would be three jobs; the node's side counts them.
        failed = refused(
            openai.InternalServerError, lambda: create(model=MODEL, messages=ask("fail"))
        )
        assert (failed.status_code, failed.code) == (502, "job_failed")
        assert "no memory" in failed.message
        self.jobs["fail"] = failed.response.headers["x-job-id"]

    def broken_stream(self) -> None:
        got = []

        def read() -> None:
            for chunk in self.client.chat.completions.create(
                model=MODEL, messages=ask("another miner"), stream=True
            ):
                got.append(chunk.choices[0].delta.content)

        error = refused(openai.APIError, read)
        assert "differs" in error.message, error.message
        assert got == ["", "one"], got

    def leave(self) -> None:
        with self.client.chat.completions.create(
            model=MODEL, messages=ask("wait"), stream=True
        ) as stream:
            next(iter(stream))
            self.jobs["left"] = stream.response.headers["x-job-id"]
        impatient = self.client.with_options(timeout=1.0, max_retries=0)
        create = impatient.chat.completions.create
        refused(openai.APITimeoutError, lambda: create(model=MODEL, messages=ask("wait")))


def refused(kind: type[Any], call: Any) -> Any:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"expected {kind.__name__}")


def main() -> None:
    walk = Walk(*sys.argv[1:])
    walk.models()
    walk.whole()
    walk.stream()
    walk.helper()
    walk.completions()
    asyncio.run(walk.concurrent())
    walk.errors()
    walk.broken_stream()
    walk.leave()
    sys.stdout.write(json.dumps(walk.jobs) + "\n")


if __name__ == "__main__":
    main()
