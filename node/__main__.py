"""`python -m node`: the `aitbc` command."""

import sys

INTERRUPTED = 130
"""What a shell gives for SIGINT."""

if __name__ == "__main__":
    try:
        from node.cli import main
    except KeyboardInterrupt:  # Ctrl-C while modules are read: nothing has begun
        sys.exit(INTERRUPTED)
    main()
