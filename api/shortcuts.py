"""The paths of a job's life, found without asking every route in turn.

Starlette tries its routes one after another, each by a regular expression, inside a handler of
exceptions; an endpoint of this API raises none. What is not found here, or stands behind a proxy's
prefix, goes on to the routes, which hold these paths too.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

JOBS = "/v1/jobs"
_OF_A_JOB = f"{JOBS}/{{job_id}}"


class Shortcuts:
    """An ASGI application that serves the paths under `/v1/jobs`, before another."""

    def __init__(self, app: ASGIApp, *, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._plain: dict[str, ASGIApp] = {}
        self._of_a_job: dict[str, ASGIApp] = {}
        """By what stands behind the job's id."""
        for route in routes:
            if not isinstance(route, Route) or not route.path.startswith(JOBS):
                continue
            if route.path.startswith(_OF_A_JOB):
                self._of_a_job[route.path.removeprefix(_OF_A_JOB)] = route.app
            else:
                self._plain[route.path] = route.app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request here, or hand it on."""
        if scope["type"] == "http" and not scope.get("root_path"):
            path: str = scope["path"]
            if found := self._plain.get(path):
                scope["path_params"] = {}
                return await found(scope, receive, send)
            job_id, slash, rest = path.removeprefix(JOBS + "/").partition("/")
            found = self._of_a_job.get(slash + rest) if path.startswith(JOBS + "/") else None
            if found and job_id:
                scope["path_params"] = {"job_id": job_id}
                return await found(scope, receive, send)
        return await self._app(scope, receive, send)
