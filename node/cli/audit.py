"""`aitbc audit`: replay an answer with one's own copy of the model."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
import msgspec

from ledger.block import parse_genesis
from ledger.encoding import encode
from ledger.errors import LedgerError, StoreError
from ledger.jobs import parse_job_id
from ledger.proof import (
    Claim,
    judge_signature,
    parse_bundle,
    verify_bundle,
)
from ledger.replay import METHOD, NOT_SHOWN
from ledger.transaction import ReceiptPayload, parse_transaction
from miner.audit.alone import Finding, audit_alone
from miner.audit.case import Case, parse_case
from miner.errors import MinerError
from miner.models.embedded import (
    DIGEST,
    HALF_DIGEST,
    default_cache,
    prepare_embedded_model,
)
from node.cli.options import data_option, file_type, option, read_connection, url_option
from node.cli.verify import MAX_FILE_BYTES
from node.files import load_document, read_bounded
from node.report import print_audit
from node.restclient import RestClient


def _check_job_id(
    _context: click.Context, _option: click.Parameter, value: str | None
) -> str | None:
    """An id that is none, such as an empty variable's, would be looked for as another path."""
    if value is None or parse_job_id(value) is not None:
        return value
    raise click.BadParameter(f"{value!a} is no job id: job_ and 26 capital letters and digits")


@click.command()
@click.argument("bundle", type=file_type, required=False)
@click.option(
    "--disclosure",
    type=file_type,
    help="JSON with prompt, result, token ids and salts, as GET /v1/jobs/{id} gives its owner.",
)
@click.option(
    "--job",
    "job_id",
    callback=_check_job_id,
    help="Fetch bundle and disclosure of this job from a node.",
)
@data_option
@url_option
@option("--key", help="API key of the job's owner; without --url, from connection.json.")
@click.option(
    "--model",
    type=click.Path(path_type=Path, exists=True),
    help="Your own copy of the model: its directory, or one of several ONNX files in it; by "
    "default the embedded model, if it is that.",
)
@click.option(
    "--genesis",
    type=file_type,
    help="Your own copy of the network's genesis file, to verify the bundle too.",
)
@option("--threads", type=click.IntRange(0, 256), default=0, help="0: as many as there are cores.")
@click.option("--json", "as_json", is_flag=True, help="Print the finding as JSON.")
def audit(
    *,
    bundle: Path | None,
    disclosure: Path | None,
    job_id: str | None,
    data: Path,
    url: str | None,
    key: str | None,
    model: Path | None,
    genesis: Path | None,
    threads: int,
    as_json: bool,
) -> None:
    """Audit an answer: replay it with your own copy of the model.

    Give a proof BUNDLE with the --disclosure that its owner has, or a --job to fetch both.

    Exit status 0 if the answer passes, 1 if a claim fails, 2 if something that is needed is missing
    or malformed.
    """
    if (job_id is None) == (bundle is None or disclosure is None):
        raise click.UsageError("give BUNDLE and --disclosure FILE, or --job ID")
    try:
        if job_id is not None:
            proof, texts = _fetch(job_id, data=data, url=url, key=key)
        else:
            proof, texts = _read(bundle), _read(disclosure)
        case = parse_case(proof, texts)
        proved = _prove(proof, genesis)
        directory = model or _find_model(case)
        finding = audit_alone(case, directory, threads=threads or os.cpu_count() or 1)
    except (LedgerError, MinerError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    passed = finding.passed and all(claim.status != "failed" for claim in proved)
    if as_json:
        click.echo(msgspec.json.format(_render(case, proved, finding, passed=passed)).decode())
    else:
        print_audit(case.receipt.receipt_id, (*proved, *finding.claims), passed=passed)
    sys.exit(0 if passed else 1)


def _read(path: Path | None) -> bytes:
    assert path is not None, "click and the command refuse that"
    return read_bounded(path, MAX_FILE_BYTES)


def _fetch(job_id: str, *, data: Path, url: str | None, key: str | None) -> tuple[bytes, bytes]:
    """Return the proof bundle of a job, and the job as its owner sees it."""
    if url is None:
        connection = read_connection(data)
        url, key = connection.url, key or connection.client_key
    with RestClient(url, key) as client:
        job = client.job(job_id)
        receipt_id = job.get("receipt_id")
        if not isinstance(receipt_id, str):
            raise StoreError(f"job {job_id} is {job.get('status')!s:.40} and has no receipt")
        return client.proof(receipt_id), msgspec.json.encode(job)


def _prove(bundle: bytes, genesis: Path | None) -> tuple[Claim, ...]:
    """Judge what the bundle says by itself; without a genesis file, the signatures alone."""
    if genesis is not None:
        return verify_bundle(bundle, genesis=load_document(genesis, parse_genesis)).claims
    transaction = parse_transaction(encode(parse_bundle(bundle).envelope))
    receipt = transaction.payload
    assert isinstance(receipt, ReceiptPayload), "parse_bundle lets no other type through"
    return (
        judge_signature(transaction, "provider", receipt.provider),
        judge_signature(transaction, "coordinator", receipt.coordinator),
        Claim(
            name="finality",
            status="not_applicable",
            detail="not looked at: give your own copy of the network's genesis file with --genesis",
        ),
    )


def _find_model(case: Case) -> Path:
    """The embedded model, if the receipt names it."""
    half = case.receipt.model_digest == HALF_DIGEST
    if case.receipt.model_digest != DIGEST and not half:
        raise StoreError(
            f"give --model DIR with your own copy of {case.receipt.model!a}, "
            f"digest {case.receipt.model_digest or 'unknown'}"
        )
    cache = default_cache(os.environ)
    return prepare_embedded_model(cache, lambda line: click.echo(line, err=True), half=half).path


def _render(case: Case, proved: tuple[Claim, ...], finding: Finding, *, passed: bool) -> bytes:
    return msgspec.json.encode(
        {
            "passed": passed,
            "method": METHOD,
            "receipt_id": case.receipt.receipt_id,
            "model_digest": finding.model_digest,
            "measures": finding.measures,
            "claims": [*proved, *finding.claims],
            "not_shown": NOT_SHOWN,
        }
    )
