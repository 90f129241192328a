"""The log of a process: lines of text, or one JSON object a line.

A line that is written while a request is handled carries the request's id, which the client was
told too. A line of JSON is valid JSON whatever is in it; its texts are Unicode without surrogates,
so that every reader takes them.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from api.metering import REQUEST_ID, Outcome

LogFormat = Literal["text", "json"]

LOG_BYTES = 10 << 20
LOG_FILES = 3

_IN_THE_MESSAGE = frozenset({"method", "route", "status"})
"""What the message of an access line says already."""

_encoder = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))

access_logger = logging.getLogger("aitbc.access")


def configure_logging(path: Path | None, log_format: LogFormat) -> None:
    """Write this process's log to standard error, or to a file that is rotated."""
    handler: logging.Handler = logging.StreamHandler()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = LogFile(path)
    handler.addFilter(note_request_id)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it has a line for every request


def log_outcome(outcome: Outcome) -> None:
    """Write the access line of a request."""
    access_logger.info(
        "%s %s %d", outcome.method, outcome.route, outcome.status, extra={"outcome": outcome}
    )


def note_request_id(record: logging.LogRecord) -> bool:
    """Give a record the id of the request that is being handled, if one is."""
    record.request_id = REQUEST_ID.get()
    return True


class LogFile(logging.handlers.RotatingFileHandler):
    """A file that is rotated after the line that fills it.

    The library looks ahead, and formats every line twice for that.
    """

    def __init__(self, path: Path, *, max_bytes: int = LOG_BYTES) -> None:
        """What is no regular file, such as /dev/stderr, is never rotated."""
        is_rotated = path.is_file() or not path.exists()
        super().__init__(
            path,
            maxBytes=max_bytes if is_rotated else 0,
            backupCount=LOG_FILES,
            encoding="utf-8",
            errors="backslashreplace",
        )

    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802 - logging's own name
        """Tell whether the file is full; `record` goes into the next one then."""
        del record
        assert self.stream is not None, "it is opened at once"
        return 0 < self.maxBytes <= self.stream.tell()


class TextFormatter(logging.Formatter):
    """`time LEVEL logger: message`, then what else is known as `name=value`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """Return the line without a traceback."""
        facts = _list_facts(record)
        more = "".join(f" {n}={value}" for n, value in facts.items() if n not in _IN_THE_MESSAGE)
        return super().formatMessage(record) + more


class JsonFormatter(logging.Formatter):
    """One object: `time`, `level`, `logger`, `message`, then what else is known."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": _format_time(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_list_facts(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        clean = {name: _clean(value) for name, value in line.items()}
        return _encoder.encode(clean)


def _list_facts(record: logging.LogRecord) -> dict[str, object]:
    """Return what a record carries besides its message."""
    request_id = getattr(record, "request_id", "")
    facts: dict[str, object] = {"request_id": request_id} if request_id else {}
    outcome = getattr(record, "outcome", None)
    if isinstance(outcome, Outcome):
        facts |= {
            "method": outcome.method,
            "route": outcome.route,
            "status": outcome.status,
            "ms": round(outcome.seconds * 1000, 3),
        }
        facts |= {"key": outcome.key} if outcome.key else {}
        facts |= {"error_code": outcome.error_code} if outcome.error_code else {}
    return facts


def _clean(value: object) -> object:
    """Spell lone surrogates out; JSON could carry them, but most readers refuse the line."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value


def _format_time(created_s: float) -> str:
    return datetime.fromtimestamp(created_s, tz=UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
