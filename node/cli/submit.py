"""`aitbc submit`: one job through a node, from prompt to answer."""

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from ledger.errors import StoreError
from ledger.jobs import ENDED
from node.cli.options import data_option, option, read_connection, url_option
from node.jobstream import follow_job
from node.restclient import RequestFailedError, RestClient

_LAST_CONTROL = 0x9F
_HARMLESS: Final = {
    number: "\ufffd"
    for number in range(_LAST_CONTROL + 1)
    if unicodedata.category(chr(number)) == "Cc" and chr(number) not in "\n\t"
}


@click.command()
@click.argument("prompt")
@data_option
@url_option
@option("--key", help="API key; without --url, by default from connection.json.")
@click.option("--model", help="Model name; by default the node's default model.")
@click.option("--max-tokens", type=int, help="Most tokens to generate.")
@click.option("--temperature", type=float, help="0 to 2; 0 takes the likeliest token.")
@click.option("--top-p", type=float, help="Above 0 up to 1.")
@click.option("--seed", type=int, help="Seed of the draws; equal answers need --temperature 0.")
@click.option("--wait", is_flag=True, help="Wait for the answer and print it.")
@click.option(
    "--timeout", type=float, default=300.0, show_default=True, help="Seconds to wait at most."
)
@click.option("--json", "as_json", is_flag=True, help="Print the job as the API shows it.")
def submit(
    *,
    prompt: str,
    data: Path,
    url: str | None,
    key: str | None,
    model: str | None,
    wait: bool,
    timeout: float,
    as_json: bool,
    **params: Any,
) -> None:
    """Submit a job and print its id; with --wait, print its answer and its receipt's id.

    On a terminal the answer is shown as it comes. Ctrl-C while waiting cancels the job.
    """
    given = {name: value for name, value in params.items() if value is not None}
    if url is None:
        connection = read_connection(data)
        url, key = connection.url, key or connection.client_key
    with RestClient(url, key) as client:
        job = client.submit(prompt, model=model, params=given)
        queue = job.get("queue", {})
        if not as_json:
            click.echo(job["job_id"], err=wait)
        click.echo(
            f"{job['status']}; active miners that serve {job['model']}: "
            f"{queue.get('eligible_miners', 0)}",
            err=True,
        )
        is_live = wait and not as_json and is_terminal()
        if wait:
            job = _wait(client, job["job_id"], timeout_s=timeout, is_live=is_live)
    if as_json:
        click.echo(msgspec.json.encode(job))
    if wait and job["status"] != "completed":
        raise StoreError(
            f"job {job['job_id']} {job['status']}: {job.get('error', job.get('status_reason'))}"
        )
    if wait and not as_json:
        if not is_live:
            click.echo(job["result"], color=True)  # else it would lose what looks like a colour
        click.echo(f"receipt {job['receipt_id']}", err=True)


def is_terminal() -> bool:
    """Tell whether somebody reads along."""
    return sys.stdout.isatty()


def _wait(client: RestClient, job_id: str, *, timeout_s: float, is_live: bool) -> dict[str, Any]:
    """Return the job once it has ended; show its text meanwhile if `is_live`."""
    screen = Screen() if is_live else None
    try:
        for event in follow_job(client, job_id, timeout_s=timeout_s):
            if event.name == "token" and screen is not None:
                screen.show(event.data)
            if event.name == "status" and event.data.get("status") in ENDED:
                break
        return client.job(job_id)
    except KeyboardInterrupt:
        if screen is not None:
            screen.close()  # what follows begins a line of its own
        _cancel(client, job_id)
        raise
    finally:
        if screen is not None:
            screen.close()


def _cancel(client: RestClient, job_id: str) -> None:
    try:
        client.cancel(job_id)
    except RequestFailedError as error:
        click.echo(f"job {job_id} was not cancelled: {error}", err=True)
    else:
        click.echo(f"cancelled {job_id}", err=True)


class Screen:
    """An answer on a terminal, as it comes."""

    def __init__(self) -> None:
        self._is_empty = True

    def show(self, token: dict[str, Any]) -> None:
        """Show a piece; one that begins the text anew is told apart."""
        if token["offset"] == 0 and not self._is_empty:
            click.echo()
            click.echo("(the answer begins anew)", err=True)
        self._is_empty = False
        # What a miner sends must not command the terminal.
        click.echo(str(token["text"]).translate(_HARMLESS), nl=False)

    def close(self) -> None:
        """End the line."""
        if not self._is_empty:
            click.echo()
        self._is_empty = True
