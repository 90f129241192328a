"""The process around one runner: reads requests from its input, writes answers to its output.

    python -m scripts.bench_miner.worker RUNNER SETUP

The first line out is the runner's version. What libraries print goes to the error output.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import resource
import sys

from scripts.bench_miner.work import Request, Runner, Setup, dump


def main(arguments: list[str]) -> None:
    """Serve until the input ends."""
    name, setup = arguments
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module = importlib.import_module(f"scripts.bench_miner.runners.{name}")
    runner: Runner
    with module.open_runner(Setup(**json.loads(setup))) as runner:
        print(json.dumps(runner.version), file=answers, flush=True)
        for line in sys.stdin:
            answer = runner.generate(Request(**json.loads(line)))
            peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            whole = dataclasses.replace(answer, peak_bytes=peak_bytes)
            print(dump(whole), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
