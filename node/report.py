"""What the command line prints about proofs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click

from ledger.proof import Claim, Verdict
from ledger.replay import NOT_SHOWN
from ledger.statement import FailedLine, StatementVerdict
from ledger.totals import Share, Sum, Totals
from ledger.transaction import MICROS

_WORDS = {"verified": "verified", "failed": "FAILED", "not_applicable": "not applicable"}
_COLORS = {"verified": "green", "failed": "red", "not_applicable": "yellow"}


def print_verdict(verdict: Verdict) -> None:
    """Print every claim with its outcome, then the verdict and its limits."""
    _print_claims(verdict.claims)
    outcome = "verified" if verdict.verified else "NOT VERIFIED"
    click.echo(f"  => receipt {verdict.receipt_id} {outcome}, block {verdict.block_height}")
    _print_limits("Not proved", verdict.not_proved)


def print_statement(verdict: StatementVerdict) -> None:
    """Print every claim, every line that fails, and the totals if all lines are proved."""
    _print_claims(verdict.claims)
    for line in verdict.failed_lines:
        click.echo(_describe_failure(line))
    outcome = "verified" if verdict.verified else "NOT VERIFIED"
    click.echo(
        f"  => statement of {verdict.account} {outcome}: {verdict.lines} lines, "
        f"block {verdict.block_height}"
    )
    # Totals of lines that are not proved look like totals of lines that are.
    for total in _describe_totals(verdict.totals) if verdict.verified else ():
        click.echo(f"    {total}")
    _print_limits("Not proved", verdict.not_proved)


def print_audit(receipt_id: str, claims: Sequence[Claim], *, passed: bool) -> None:
    """Print every claim of an audit, then its verdict and its limits."""
    _print_claims(claims)
    click.echo(f"  => receipt {receipt_id} audited: {'pass' if passed else 'FAIL'}")
    _print_limits("Not shown", NOT_SHOWN)


def _print_claims(claims: Sequence[Claim]) -> None:
    for claim in claims:
        word = click.style(f"{_WORDS[claim.status]:<15}", fg=_COLORS[claim.status])
        click.echo(f"  {word}{claim.name:<23}{claim.detail}")


def _print_limits(heading: str, sentences: Sequence[str]) -> None:
    click.echo(f"  {heading}:")
    for sentence in sentences:
        click.echo(f"    - {sentence}")


def _describe_failure(line: FailedLine) -> str:
    reasons = "; ".join(f"{claim.name}: {claim.detail}" for claim in line.claims)
    return f"  line {line.receipt_id} at leaf {line.leaf}: {reasons}"


def _describe_totals(totals: Totals) -> Iterator[str]:
    everything = Share(name="in all", earned=totals.earned, spent=totals.spent)
    yield from _describe_share("in all", everything)
    for share in totals.by_model:
        # A model may be called anything; written like this it cannot steer a terminal.
        yield from _describe_share(f"model {share.name!a}", share)
    for share in totals.by_counterparty:
        yield from _describe_share(f"with {share.name}", share)


def _describe_share(name: str, share: Share) -> Iterator[str]:
    for side, total in (("earned", share.earned), ("spent", share.spent)):
        if total.lines:
            yield f"{name}: {side} {_decimal(total.price_micros)} ({_describe_work(total)})"


def _describe_work(total: Sum) -> str:
    work = [f"{total.lines} receipts"]
    if total.tokens_micros:
        work.append(f"{_decimal(total.tokens_micros)} tokens")
    if total.gpu_seconds_micros:
        work.append(f"{_decimal(total.gpu_seconds_micros)} GPU seconds")
    return ", ".join(work)


def _decimal(micros: int) -> str:
    return f"{micros // MICROS}.{micros % MICROS:06d}".rstrip("0").rstrip(".")
