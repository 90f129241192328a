"""Keep a real miner busy with many jobs at once, and show what becomes of its memory.

    make soak                                   64 jobs at once for ten minutes
    make soak ARGS="--minutes 1 --jobs 16"

A node and a miner run as processes with the embedded model. Prompts and answers are of many
lengths, and every tenth job is cancelled. What was asked and what came of it is counted; memory is
printed, never judged.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

import httpx2

from node.clock import read_clock_ms
from node.local.children import child
from scripts.bench_figures.measure import describe_machine, read_cpu_s, read_memory
from scripts.bench_figures.node_process import ROOT, make_api_key, make_data_directory, run_node

MODEL: Final = "smollm2:135m"
CONTEXT: Final = 640
MAX_WORDS: Final = 200
"""Of a prompt: at most some 450 tokens, so that prompt and answer fit the context."""
LONGEST_WORDS: Final = 360
"""Of the prompt that every slot gets first, so that later ones need no more memory."""
MAX_TOKENS: Final = 96
CANCELLED: Final = 0.1
"""Share of the jobs."""
WAIT_S: Final = 30
ENDED: Final = frozenset({"completed", "failed", "cancelled"})
MAX_WARNINGS: Final = 10
"""Kinds of warnings that are shown."""
SAMPLES: Final = 200
"""Of memory, over the whole run."""
COMPLETED: Final = re.compile(r"completed \S+: (\d+) \+ (\d+) tokens")
WARNING: Final = re.compile(r"\b(?:WARNING|ERROR)\b")
JOB: Final = re.compile(r"\bjob_\w+")
WORDS: Final = (ROOT / "LICENSE").read_text(encoding="utf-8").split()


@dataclass
class Tally:
    """What has happened so far."""

    ends: Counter[str] = field(default_factory=Counter)
    """Jobs by status, and requests that failed."""
    miner_bytes: list[int] = field(default_factory=list)
    node_bytes: list[int] = field(default_factory=list)
    elapsed_s: float = 0.0
    cpu_s: float = 0.0
    """Of the miner's process."""
    log: str = ""
    """The miner's."""


class Client:
    """One of those who keep a job at the node all the time."""

    def __init__(self, http: httpx2.AsyncClient, tally: Tally, seed: int) -> None:
        self._http = http
        self._tally = tally
        self._random = random.Random(seed)  # noqa: S311 - no secret

    async def run(self, ends_at: float) -> None:
        """One job after another until then."""
        while time.monotonic() < ends_at:
            order = build_order(self._random)
            cancelled = self._random.random() < CANCELLED
            cancel_after_s = self._random.uniform(0, 2 * WAIT_S) if cancelled else None
            try:
                await self.run_job(order, cancel_after_s=cancel_after_s)
            except httpx2.HTTPError as error:
                self._tally.ends[type(error).__name__] += 1
                await asyncio.sleep(1)

    async def run_job(self, order: dict[str, Any], *, cancel_after_s: float | None = None) -> None:
        """Submit it and wait for its end."""
        job = await self._call("POST", "/v1/jobs", json=order)
        path = f"/v1/jobs/{job['job_id']}"
        if cancel_after_s is not None:
            await asyncio.sleep(cancel_after_s)
            await self._http.post(f"{path}/cancel")  # refused if it has ended before
        while job["status"] not in ENDED:
            job = await self._call("GET", path, params={"wait": WAIT_S})
        self._tally.ends[job["status"]] += 1

    async def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        answer = await self._http.request(method, path, **options)
        found: dict[str, Any] = answer.raise_for_status().json()
        return found


def build_order(source: random.Random) -> dict[str, Any]:
    """A job of random length."""
    length = source.randint(1, MAX_WORDS)
    start = source.randrange(len(WORDS) - length)
    params = {
        "max_tokens": source.randint(1, MAX_TOKENS),
        "temperature": source.choice([0, 0.7, 1]),
    }
    return {"model": MODEL, "prompt": " ".join(WORDS[start : start + length]), "params": params}


def build_longest_order() -> dict[str, Any]:
    """A job that fills more of a slot than any other."""
    params = {"max_tokens": MAX_TOKENS, "temperature": 0}
    return {"model": MODEL, "prompt": " ".join(WORDS[:LONGEST_WORDS]), "params": params}


async def watch(tally: Tally, miner: int, node: int, seconds: float) -> None:
    """Take samples of memory until the time is over."""
    for _ in range(SAMPLES):
        await asyncio.sleep(seconds / SAMPLES)
        tally.miner_bytes.append(read_memory(miner, "VmRSS"))
        tally.node_bytes.append(read_memory(node, "VmRSS"))


def describe_memory(name: str, samples: Sequence[int]) -> str:
    """Medians of the quarters of the run, and the most."""
    size = max(1, len(samples) // 4)
    quarters = [median(samples[at : at + size]) for at in range(0, size * 4, size)]
    shown = ", ".join(f"{quarter / 1e6:,.1f}" for quarter in quarters)
    return f"{name}: {shown} MB in the quarters of the run, at most {max(samples) / 1e6:,.1f} MB"


async def soak(url: str, key: str, tally: Tally, pids: tuple[int, int], options: Any) -> None:
    """Fill every slot once, then load and watch together until the time is over."""
    async with httpx2.AsyncClient(
        base_url=url,
        headers={"X-Api-Key": key},
        limits=httpx2.Limits(max_connections=2 * options.jobs),
        timeout=4 * WAIT_S,
        trust_env=False,
    ) as http:
        clients = [Client(http, tally, seed) for seed in range(options.jobs)]
        longest = build_longest_order()
        # What the first has computed is copied for all others, who thus begin at the same time.
        await clients[0].run_job(longest)
        await asyncio.gather(*(client.run_job(longest) for client in clients))
        seconds = options.minutes * 60
        ends_at = time.monotonic() + seconds
        await asyncio.gather(
            watch(tally, *pids, seconds), *(client.run(ends_at) for client in clients)
        )


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns 1 if a job failed or a request did."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=64, help="at once")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--threads", type=int, default=0, help="of the miner; 0: all cores")
    options = parser.parse_args(arguments)
    print(describe_machine())
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="soak-", dir=build) as name:
        tally = run(Path(name), options)
    for line in describe(tally):
        print(line)
    for line, count in count_warnings(tally.log).most_common(MAX_WARNINGS):
        print(f"miner said {count} times:{line}", file=sys.stderr)
    return 1 if tally.ends.keys() - {"completed", "cancelled"} else 0


def run(folder: Path, options: Any) -> Tally:
    """Start node and miner, load them, and stop them."""
    data = make_data_directory(folder / "data", created_ms=read_clock_ms())
    key, miner_key = make_api_key(data, "client"), make_api_key(data, "miner")
    log, tally = folder / "miner.log", Tally()
    with run_node(data, "--max-pending-per-key", str(2 * options.jobs)) as node:
        url = f"http://127.0.0.1:{node.port}"
        command = build_miner_command(url, folder, log, options)
        with child(command, {"AITBC_KEY": miner_key}) as miner:
            began = time.monotonic()
            asyncio.run(soak(url, key, tally, (miner.pid, node.pid), options))
            tally.elapsed_s = time.monotonic() - began
            tally.cpu_s = read_cpu_s(miner.pid)
    tally.log = log.read_text(encoding="utf-8")
    return tally


def describe(tally: Tally) -> Iterator[str]:
    """What came of it, in lines."""
    prompts, answers = count_tokens(tally.log)
    yield f"{tally.elapsed_s:,.0f} s: {dict(sorted(tally.ends.items()))}"
    yield f"{prompts:,} tokens of prompts and {answers:,} of answers, of completed jobs"
    rates = (answers / seconds for seconds in (tally.elapsed_s, tally.cpu_s))
    yield "{:.1f} new tokens per second, {:.1f} per CPU second".format(*rates)
    yield describe_memory("miner", tally.miner_bytes)
    yield describe_memory("node", tally.node_bytes)


def build_miner_command(url: str, folder: Path, log: Path, options: Any) -> list[str]:
    """A miner of the embedded model with a slot for every job."""
    return [
        "miner",
        *("--url", url),
        *("--keyfile", str(folder / "miner.json")),
        *("--slots", str(options.jobs)),
        *("--context", str(CONTEXT)),
        *("--threads", str(options.threads)),
        *("--log-file", str(log)),
    ]


def count_tokens(log: str) -> tuple[int, int]:
    """Tokens of the prompts and of the answers that a miner has handed in."""
    pairs = COMPLETED.findall(log)
    return sum(int(prompt) for prompt, _ in pairs), sum(int(answer) for _, answer in pairs)


def count_warnings(log: str) -> Counter[str]:
    """What a miner warned of, without times and names of jobs."""
    lines = (line for line in log.splitlines() if WARNING.search(line))
    return Counter(JOB.sub("job", WARNING.split(line)[-1]) for line in lines)


if __name__ == "__main__":
    raise SystemExit(main())
