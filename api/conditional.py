"""Conditional requests: what has not changed is not sent again (RFC 9110, section 13).

A tag is a digest of the whole answer, so it covers whatever the answer shows, and two callers of
whom one may read less have different tags.
"""

from __future__ import annotations

from blake3 import blake3
from msgspec.structs import replace

from api.answers import Answer
from api.requests import Request

TAG_BYTES = 16
NOT_MODIFIED = 304


def answer_if_changed(request: Request, answer: Answer) -> Answer:
    """Return the answer with its entity tag, or 304 if the client has it already."""
    tag = b'"%s"' % blake3(answer.body).hexdigest(TAG_BYTES).encode()
    named = (b"etag", tag)
    if request.head.knows(tag):
        return Answer(status=NOT_MODIFIED, headers=(named,), cache_control=answer.cache_control)
    return replace(answer, headers=(*answer.headers, named))
