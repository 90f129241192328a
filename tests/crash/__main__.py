"""`make crash-images`: disks after power cuts, opened by the real stores.

make crash-images IMAGES=5000        from histories of consecutive seeds
make crash-images ARGS="--careless"  with synchronous=NORMAL, which must lose something
make crash-images ARGS="--seed 7"    from the history of seed 7 on
"""

from __future__ import annotations

import argparse
import sys

from tests.crash.report import run_many


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--careless", action="store_true", help="synchronous=NORMAL")
    options = parser.parse_args()
    report = run_many(
        options.images,
        seed=options.seed,
        careless=options.careless,
        progress=lambda images: print(f"\r{images} images", end="", file=sys.stderr),
    )
    print(file=sys.stderr)
    print("\n".join(report.list_lines()))
    return 1 if report.faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
