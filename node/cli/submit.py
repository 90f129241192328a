"""`aitbc submit`: one job through a node, from prompt to answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ledger.errors import StoreError
from node.cli.options import data_option, option, read_connection, url_option
from node.restclient import RestClient


@click.command()
@click.argument("prompt")
@data_option
@url_option
@option("--key", help="API key; without --url, by default from connection.json.")
@click.option("--model", help="Model name; by default the node's default model.")
@click.option("--max-tokens", type=int, help="Most tokens to generate.")
@click.option("--temperature", type=float, help="0 to 2; 0 takes the likeliest token.")
@click.option("--top-p", type=float, help="Above 0 up to 1.")
@click.option("--seed", type=int, help="Makes the answer repeatable.")
@click.option("--wait", is_flag=True, help="Wait for the answer and print it.")
@click.option(
    "--timeout", type=float, default=300.0, show_default=True, help="Seconds to wait at most."
)
def submit(
    *,
    prompt: str,
    data: Path,
    url: str | None,
    key: str | None,
    model: str | None,
    wait: bool,
    timeout: float,
    **params: Any,
) -> None:
    """Submit a job and print its id; with --wait, print its answer and its receipt's id."""
    given = {name: value for name, value in params.items() if value is not None}
    if url is None:
        connection = read_connection(data)
        url, key = connection.url, key or connection.client_key
    with RestClient(url, key) as client:
        job = client.submit(prompt, model=model, params=given)
        queue = job.get("queue", {})
        click.echo(job["job_id"], err=wait)
        click.echo(
            f"{job['status']}; active miners that serve {job['model']}: "
            f"{queue.get('eligible_miners', 0)}",
            err=True,
        )
        if not wait:
            return
        job = client.wait_for_job(job["job_id"], timeout_s=timeout, progress=lambda _: None)
    if job["status"] != "completed":
        raise StoreError(
            f"job {job['job_id']} {job['status']}: {job.get('error', job.get('status_reason'))}"
        )
    click.echo(job["result"])
    click.echo(f"receipt {job['receipt_id']}", err=True)
