"""A job as a stream of events, which grows with what its miner tells.

When an attempt is lost, another miner begins again. With the same seed and model it writes the same
text, so the stream goes on where the texts agree. Where they do not, it ends with an error: what
was sent cannot be taken back, and two halves of two answers are none.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from api.answers import BEAT
from api.errors import RequestError
from api.openai.errors import show_late_error
from api.openai.render import (
    DONE,
    Face,
    encode_event,
    find_finish_reason,
    render_evidence,
    render_fingerprint,
    render_usage,
)
from api.openai.running import JobRun, Outcome
from api.render import Json
from ledger.jobs import ENDED, Job, Progress
from ledger.transaction import ReceiptPayload


class ChunkWriter:
    """Turns the progress of a job into events."""

    def __init__(self, face: Face, *, include_usage: bool) -> None:
        self._face = face
        # With the option, every chunk but the last has the field, and says nothing in it.
        self._usage: Json = {"usage": None} if include_usage else {}
        self._sent = ""

    def write(self, progress: Progress) -> bytes:
        """Return the event of what is new; without any, a sign of life.

        Raises:
            RequestError: JOB_FAILED, the text is no longer the one that was sent.
        """
        text, sent = progress.text, self._sent
        if not (text.startswith(sent) or sent.startswith(text)):
            raise RequestError(
                "JOB_FAILED",
                f"job {progress.job.job_id} was begun again, and its text differs from what was "
                "sent; read the job, or ask again",
            )
        if len(text) <= len(sent):
            return BEAT
        self._sent = text
        return self.write_chunk(progress.job, self._face.piece(text[len(sent) :]))

    def write_chunk(self, job: Job, *choices: Json, **more: object) -> bytes:
        """Return one chunk."""
        return encode_event(self._face.chunk(job, choices) | self._usage | more)

    def write_end(self, job: Job, receipt: ReceiptPayload) -> bytes:
        """Return the last events of a completed job."""
        ending = self._face.ending(find_finish_reason(job, receipt))
        proof = {
            "system_fingerprint": render_fingerprint(receipt),
            "aitbc": render_evidence(job, receipt),
        }
        last = self.write_chunk(job, ending, **proof)
        if self._usage:
            last += self.write_chunk(job, usage=render_usage(receipt))
        return last + DONE


async def stream_job(
    run: JobRun, face: Face, *, include_usage: bool, request_id: str
) -> AsyncGenerator[bytes, None]:
    """Return the events of a job. Whoever closes them, at any time, cancels it."""
    events = _stream(run, face, ChunkWriter(face, include_usage=include_usage), request_id)
    # A generator that was never entered would not come to its `finally`.
    await anext(events)
    return events


async def _stream(
    run: JobRun, face: Face, writer: ChunkWriter, request_id: str
) -> AsyncGenerator[bytes, None]:
    try:
        yield b""
        if (opening := face.opening()) is not None:
            yield writer.write_chunk(run.job, opening)
        async with aclosing(run.follow()) as news:
            async for progress in news:
                yield writer.write(progress)
        outcome: Outcome = "ended" if run.job.state in ENDED else "closing"
        await run.abandon()
        if run.job.state != "completed":
            raise run.explain(outcome)
        yield writer.write_end(run.job, run.receipt)
    except RequestError as error:
        yield encode_event(show_late_error(error, request_id))
    finally:
        await run.leave()
