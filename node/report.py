"""What the command line prints about proofs."""

from __future__ import annotations

import click

from ledger.proof import Verdict

_WORDS = {"verified": "verified", "failed": "FAILED", "not_applicable": "not applicable"}
_COLORS = {"verified": "green", "failed": "red", "not_applicable": "yellow"}


def print_verdict(verdict: Verdict) -> None:
    """Print every claim with its outcome, then the verdict and its limits."""
    for claim in verdict.claims:
        word = click.style(f"{_WORDS[claim.status]:<15}", fg=_COLORS[claim.status])
        click.echo(f"  {word}{claim.name:<23}{claim.detail}")
    outcome = "verified" if verdict.verified else "NOT VERIFIED"
    click.echo(f"  => receipt {verdict.receipt_id} {outcome}, block {verdict.block_height}")
    click.echo("  Not proved:")
    for sentence in verdict.not_proved:
        click.echo(f"    - {sentence}")
