"""Write the verifier page that works from disk, as every node of this release hands it out.

    python -m scripts.offline_verifier verifier.html

Prints its SHA-256, to be compared with the one on a node's page /verify.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from explorer_ui.offline import build_offline


def main(arguments: list[str]) -> int:
    """Run from the command line; 0 when the file is written."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    page = build_offline()
    Path(arguments[0]).write_bytes(page)
    print(f"{hashlib.sha256(page).hexdigest()}  {arguments[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
