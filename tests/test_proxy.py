"""docs/operations/nginx.conf as it is, in Debian's nginx: TLS, HTTP/2, streams, a node down."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import httpx2
import pytest

from tests.live import ROOT, LiveNode

NGINX = "/usr/sbin/nginx"
CONFIG = ROOT / "docs" / "operations" / "nginx.conf"
NAME = "node.example"
TIMEOUT_S = 30
STRICT = ("--mode", "strict", "--trusted-proxy", "127.0.0.1")
_AROUND = """
{user}
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {config}
}}
"""


def find_ports(count):
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in found]


def write_config(folder: Path, port: int, upstreams: list[str], changes: Mapping[str, str]) -> Path:
    config = CONFIG.read_text()
    for part, replacement in {
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "/etc/ssl/node.example": str(folder / "node.example"),
        "server 127.0.0.1:8001 max_fails=3 fail_timeout=5s;": "".join(
            f"server {each} max_fails=3 fail_timeout=5s;" for each in upstreams
        ),
        **changes,
    }.items():
        assert part in config
        config = config.replace(part, replacement)
    path = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    path.write_text(_AROUND.format(user=user, folder=folder, config=config))
    return path


def make_certificate(folder: Path) -> None:
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", f"/CN={NAME}"),
            *("-addext", f"subjectAltName=DNS:{NAME}"),
            *("-keyout", folder / "node.example.key", "-out", folder / "node.example.pem"),
        ],
        check=True,
        capture_output=True,
    )


class Proxy:
    """nginx in front of one node and of one that is down."""

    def __init__(self, folder, node, changes=MappingProxyType({})):
        self.port, dead = find_ports(2)
        self.folder = folder
        make_certificate(folder)
        address = node.url.removeprefix("http://")
        path = write_config(folder, self.port, [f"127.0.0.1:{dead}", address], changes)
        self._process = subprocess.Popen([NGINX, "-p", folder, "-c", path])

    def curl(self, path, *arguments, key=""):
        """Ask as a browser would, by the node's name."""
        return subprocess.run(
            [
                *("curl", "--silent", "--show-error", "--cacert", self.folder / "node.example.pem"),
                *("--resolve", f"{NAME}:{self.port}:127.0.0.1", "--retry", "50"),
                *("--retry-connrefused", "--retry-delay", "1", "--max-time", str(TIMEOUT_S)),
                *(("--header", f"X-Api-Key: {key}") if key else ()),
                *(*arguments, f"https://{NAME}:{self.port}{path}"),
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def stop(self):
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(TIMEOUT_S)


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    node = LiveNode(
        tmp_path_factory.mktemp("node") / "data",
        *STRICT,
    )
    node.keys = {role: node.create_key(role) for role in ("client", "miner", "admin")}
    node.start()
    yield node
    node.kill()


@pytest.fixture(scope="module")
def proxy(node, tmp_path_factory):
    proxy = Proxy(tmp_path_factory.mktemp("proxy"), node)
    assert proxy.curl("/health")
    yield proxy
    proxy.stop()


def submit(proxy, node):
    body = json.dumps({"prompt": "p"})
    answer = proxy.curl(
        "/v1/jobs", "--json", body, "--header", "Idempotency-Key: k", key=node.keys["client"]
    )
    return json.loads(answer)["job_id"]


def test_clients_are_answered_by_http_2_though_the_first_front_end_is_down(proxy):
    version = ("--http2", "--output", "/dev/null", "--write-out", "%{http_version} %{http_code}")
    assert {proxy.curl("/health", *version) for _ in range(4)} == {"2 200"}


def test_addresses_in_pages_are_those_of_the_proxy(proxy):
    assert f"https://{NAME}" in proxy.curl("/playground")


def test_a_node_is_served_under_a_path(tmp_path):
    """What docs/operations.md says to change for that, and nothing else."""
    node = LiveNode(tmp_path / "data", *STRICT, "--public-url", f"https://{NAME}/aitbc")
    node.start()
    proxy = Proxy(tmp_path, node, {"location / {": "location /aitbc/ {"})
    try:
        page = proxy.curl("/aitbc/")
        found = set(re.findall(r'(?:href|src)="(/[^"#?]*)', page))
        assert found
        assert all(path.startswith("/aitbc/") for path in found)
        status = ("--output", "/dev/null", "--write-out", "%{http_code}")
        paths = [*sorted(found)[:5], "/aitbc/v1/receipts", "/aitbc/health/ready"]
        assert {path: proxy.curl(path, *status) for path in paths} == dict.fromkeys(paths, "200")
    finally:
        proxy.stop()
        node.kill()


def test_figures_are_not_for_everybody(proxy, node):
    status = ("--output", "/dev/null", "--write-out", "%{http_code}")
    for path in ("/metrics", "/api/metrics"):
        assert proxy.curl(path, *status, key=node.keys["admin"]) == "404"


def test_events_come_through_as_they_happen(proxy, node):
    """The first one comes while the job still waits; a proxy that holds back would say nothing."""
    job = submit(proxy, node)
    process = subprocess.Popen(
        [
            *("curl", "--silent", "--no-buffer", "--http2", "--max-time", str(TIMEOUT_S)),
            *("--cacert", proxy.folder / "node.example.pem"),
            *("--resolve", f"{NAME}:{proxy.port}:127.0.0.1"),
            *("--header", f"X-Api-Key: {node.keys['client']}"),
            f"https://{NAME}:{proxy.port}/v1/jobs/{job}/events",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process, httpx2.Client(base_url=node.url, trust_env=False) as http:
        events = iter(process.stdout.readline, "")
        assert "pending" in next(line for line in events if line.startswith("data:"))
        miner = {"X-Api-Key": node.keys["miner"]}
        body = {"miner_id": "m"}
        for path, more in (
            ("/v1/miners/register", {"capabilities": ["*"]}),
            (f"/v1/jobs/{job}/claim", {}),
            (f"/v1/jobs/{job}/complete", {"result": "r"}),
        ):
            http.post(path, json={**body, **more}, headers=miner).raise_for_status()
        began = time.monotonic()
        assert any("completed" in line for line in events)
        assert time.monotonic() - began < TIMEOUT_S
        process.kill()
