"""The command line: one module for each command, or for a few that belong together."""

from node.cli.group import cli, main

__all__ = ["cli", "main"]
