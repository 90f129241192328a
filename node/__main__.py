"""`python -m node`: the `aitbc` command."""

from node.cli import main

if __name__ == "__main__":
    main()
