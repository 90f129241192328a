"""From registration to receipt with the client that openapi-python-client makes."""

import sys
from http import HTTPStatus

from aitbc_reference import AuthenticatedClient, Client
from aitbc_reference.api.explorer import (
    get_explorer_blocks,
    get_explorer_receipts,
    get_explorer_stats,
    get_explorer_transactions,
)
from aitbc_reference.api.jobs import (
    get_v1_jobs,
    get_v1_jobs_job_id,
    post_v1_jobs,
    post_v1_jobs_job_id_cancel,
)
from aitbc_reference.api.miners import (
    get_v1_jobs_available,
    post_v1_jobs_job_id_claim,
    post_v1_jobs_job_id_complete,
    post_v1_miners_register,
)
from aitbc_reference.api.receipts import get_v1_receipts, get_v1_receipts_receipt_id
from aitbc_reference.api.system import get_health
from aitbc_reference.models import (
    Error,
    GetV1JobsStatus,
    Job,
    JobRequest,
    JobRequestParams,
    JobResult,
    JobStatus,
    MinerRegistration,
    MinerRegistrationGpuInfo,
    PostV1JobsJobIdClaimBody,
    Receipt,
)

MODEL = "model-of-openapi-python-client"
MINER = "miner-of-openapi-python-client"


def connect(url: str, key: str) -> Client | AuthenticatedClient:
    """Return a client; with a key, one that sends it as the reference says."""
    options = {
        "base_url": url,
        "raise_on_unexpected_status": True,
        "httpx_args": {"trust_env": False},
    }
    if not key:
        return Client(**options)
    return AuthenticatedClient(token=key, prefix="", auth_header_name="X-Api-Key", **options)


def refused(response, status: HTTPStatus, code: str) -> None:
    """Hold a refusal to the reference's Error."""
    assert response.status_code == status
    assert isinstance(response.parsed, Error)
    assert response.parsed.error_code == code
    assert response.parsed.detail


def submit(client, prompt: str) -> Job:
    """Submit a job."""
    params = JobRequestParams(max_tokens=32, temperature=0.5, top_p=0.8)
    job = post_v1_jobs.sync(
        client=client, body=JobRequest(prompt=prompt, model=MODEL, params=params)
    )
    assert isinstance(job, Job)
    assert (job.status, job.model) == (JobStatus.PENDING, MODEL)
    assert job.created_at.utcoffset() is not None
    return job


def register(client, name: str, model: str) -> None:
    """Register a miner with the reference's fields alone."""
    body = MinerRegistration(
        miner_id=name,
        capabilities=[model],
        gpu_info=MinerRegistrationGpuInfo(name="RTX 4090", memory="24GB"),
    )
    made = post_v1_miners_register.sync_detailed(client=client, body=body)
    assert made.status_code == HTTPStatus.CREATED


def walk_jobs(owner, miner, stranger) -> Job:
    """Walk a job up to its miner."""
    assert get_health.sync(client=stranger).status == "ok"
    register(miner, MINER, MODEL)
    register(miner, f"{MINER}-2", "another")
    assert get_v1_jobs_available.sync(client=miner, miner_id=MINER) is None
    body = JobRequest(prompt="Why?")
    refused(
        post_v1_jobs.sync_detailed(client=stranger, body=body),
        HTTPStatus.UNAUTHORIZED,
        "AUTH_MISSING_KEY",
    )
    job = submit(owner, "Why is the sky blue?")
    listed = get_v1_jobs.sync(client=owner, status=GetV1JobsStatus.PENDING, limit=100)
    assert job.job_id in {each.job_id for each in listed}
    missing = get_v1_jobs_job_id.sync_detailed("none", client=owner)
    refused(missing, HTTPStatus.NOT_FOUND, "JOB_NOT_FOUND")
    offered = get_v1_jobs_available.sync(client=miner, miner_id=MINER)
    assert offered.job_id == job.job_id
    return job


def walk_result(miner, owner, job: Job) -> Receipt:
    """Claim, complete, and look at what came of it."""
    claim = post_v1_jobs_job_id_claim
    claimed = claim.sync(job.job_id, client=miner, body=PostV1JobsJobIdClaimBody(miner_id=MINER))
    assert (claimed.status, claimed.prompt) == (JobStatus.RUNNING, "Why is the sky blue?")
    assert claimed.params.max_tokens == 32
    assert claimed.params.temperature == 0.5
    late = claim.sync_detailed(
        job.job_id, client=miner, body=PostV1JobsJobIdClaimBody(miner_id=f"{MINER}-2")
    )
    refused(late, HTTPStatus.CONFLICT, "JOB_ALREADY_CLAIMED")
    receipt = post_v1_jobs_job_id_complete.sync(
        job.job_id, client=miner, body=JobResult(miner_id=MINER, result="Rayleigh scattering.")
    )
    assert isinstance(receipt, Receipt)
    assert (receipt.job_id, receipt.provider, receipt.model) == (job.job_id, MINER, MODEL)
    done = get_v1_jobs_job_id.sync(job.job_id, client=owner)
    assert (done.status, done.result) == (JobStatus.COMPLETED, "Rayleigh scattering.")
    refused(
        post_v1_jobs_job_id_cancel.sync_detailed(job.job_id, client=owner),
        HTTPStatus.CONFLICT,
        "JOB_ALREADY_COMPLETED",
    )
    return receipt


def walk_records(stranger, receipt: Receipt) -> None:
    """Read what everybody may read."""
    same = get_v1_receipts_receipt_id.sync(receipt.receipt_id, client=stranger)
    assert (same.price, same.units, same.client) == (receipt.price, receipt.units, receipt.client)
    (only,) = get_v1_receipts.sync(client=stranger, provider=MINER, limit=5)
    assert only.receipt_id == receipt.receipt_id
    assert isinstance(get_explorer_blocks.sync(client=stranger, limit=3), list)
    assert get_explorer_transactions.sync(client=stranger)
    assert get_explorer_receipts.sync(client=stranger)
    assert get_explorer_stats.sync(client=stranger).total_jobs >= 1


def main(url: str, client_key: str, miner_key: str) -> None:
    """Walk, and print the receipt's id."""
    owner, miner, stranger = (connect(url, key) for key in (client_key, miner_key, ""))
    with owner, miner, stranger:
        job = walk_jobs(owner, miner, stranger)
        receipt = walk_result(miner, owner, job)
        walk_records(stranger, receipt)
        unwanted = submit(owner, "Never mind.")
        cancelled = post_v1_jobs_job_id_cancel.sync(unwanted.job_id, client=owner)
        assert cancelled.status == JobStatus.CANCELLED
    print(receipt.receipt_id)


if __name__ == "__main__":
    main(*sys.argv[1:])
