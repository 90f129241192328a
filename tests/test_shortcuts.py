"""The short way to a path of `/v1/jobs` ends where the routes would."""

import asyncio

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount, Route

from api.shortcuts import Shortcuts

PATHS = [
    "/v1/jobs",
    "/v1/jobs/batch",
    "/v1/jobs/available",
    "/v1/jobs/{job_id}",
    "/v1/jobs/{job_id}/claim",
    "/v1/jobs/{job_id}/cancel",
    "/v1/other",
]


class Endpoint:
    """Says which path was found, by what way, and with which id."""

    def __init__(self, path):
        self.path = path

    async def __call__(self, scope, receive, send):
        scope["found"].append((self.path, scope["path_params"], "router" in scope))


def ask(path, root_path=""):
    routes = [Route(each, Endpoint(each)) for each in PATHS]
    app = Starlette(
        routes=[*routes, Mount("/api", routes=routes), Route("/{rest:path}", Endpoint("nothing"))],
        middleware=[Middleware(Shortcuts, routes=routes)],
    )
    found = []
    scope = {
        "type": "http",
        "method": "GET",
        "path": root_path + path,
        "root_path": root_path,
        "headers": [],
        "found": found,
    }
    asyncio.run(app(scope, None, None))
    (answer,) = found
    return answer


@pytest.mark.parametrize(
    ("path", "route", "job_id"),
    [
        ("/v1/jobs", "/v1/jobs", None),
        ("/v1/jobs/batch", "/v1/jobs/batch", None),
        ("/v1/jobs/available", "/v1/jobs/available", None),
        ("/v1/jobs/job_1", "/v1/jobs/{job_id}", "job_1"),
        ("/v1/jobs/job_1/claim", "/v1/jobs/{job_id}/claim", "job_1"),
        ("/v1/jobs/batch/cancel", "/v1/jobs/{job_id}/cancel", "batch"),
        ("/v1/jobs/ü\n", "/v1/jobs/{job_id}", "ü\n"),
    ],
)
def test_a_path_of_jobs_is_found_at_once_and_behind_a_prefix_by_the_routes(path, route, job_id):
    params = {"job_id": job_id} if job_id else {}
    assert ask(path) == (route, params, False)
    found, given, by_routes = ask(path, root_path="/proxy")
    assert (found, by_routes) == (route, True)
    assert given.get("job_id") in {job_id, (job_id or "").rstrip("\n")}
    assert ask(f"/api{path}")[::2] == (route, True)


@pytest.mark.parametrize(
    "path", ["/v1/jobs/", "/v1/jobs//claim", "/v1/jobs/a/b", "/v1/jobs/a/claim/", "/v1/jobsx", "/"]
)
def test_what_is_no_path_of_jobs_goes_on_to_the_routes(path):
    assert ask(path)[0] == "nothing"


def test_other_paths_go_on_to_the_routes():
    assert ask("/v1/other") == ("/v1/other", {}, True)
