"""From registration to receipt with the client that openapi-generator makes for Python."""

import sys
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from aitbc_reference import (
    ApiClient,
    ApiException,
    Configuration,
    Error,
    ExplorerApi,
    Job,
    JobRequest,
    JobRequestParams,
    JobResult,
    JobsApi,
    MinerRegistration,
    MinerRegistrationGpuInfo,
    MinersApi,
    Receipt,
    ReceiptsApi,
    SystemApi,
    V1JobsJobIdClaimPostRequest,
)

MODEL = "model-of-openapi-generator"
MINER = "miner-of-openapi-generator"


def refused(call: Callable[[], object], status: int, code: str) -> None:
    """Hold a refusal to the reference's Error."""
    with pytest.raises(ApiException) as caught:
        call()
    error = caught.value
    assert error.status == status
    assert isinstance(error.data, Error)
    assert error.data.error_code == code
    assert error.data.detail


def submit(jobs: JobsApi, prompt: str) -> Job:
    """Submit a job."""
    params = JobRequestParams(max_tokens=32, temperature=0.5, top_p=0.8)
    job = jobs.v1_jobs_post(JobRequest(prompt=prompt, model=MODEL, params=params))
    assert (job.status, job.model) == ("pending", MODEL)
    assert job.created_at.utcoffset() is not None
    return job


def walk_jobs(jobs: JobsApi, miners: MinersApi, stranger: ApiClient) -> Job:
    """Walk a job up to its miner."""
    assert SystemApi(stranger).health_get().status == "ok"
    for name, model in ((MINER, MODEL), (f"{MINER}-2", "another")):
        gpu = MinerRegistrationGpuInfo(name="RTX 4090", memory="24GB")
        made = miners.v1_miners_register_post(
            MinerRegistration(miner_id=name, capabilities=[model], gpu_info=gpu)
        )
        assert made.miner_id == name
    assert miners.v1_jobs_available_get(MINER) is None
    unsigned = JobsApi(stranger)
    refused(lambda: unsigned.v1_jobs_post(JobRequest(prompt="Why?")), 401, "AUTH_MISSING_KEY")
    job = submit(jobs, "Why is the sky blue?")
    assert job.job_id in {each.job_id for each in jobs.v1_jobs_get(status="pending", limit=100)}
    refused(lambda: jobs.v1_jobs_job_id_get("none"), 404, "JOB_NOT_FOUND")
    assert miners.v1_jobs_available_get(MINER).job_id == job.job_id
    return job


def walk_result(miners: MinersApi, jobs: JobsApi, job: Job) -> Receipt:
    """Claim, complete, and look at what came of it."""

    def claim(name: str) -> Job:
        return miners.v1_jobs_job_id_claim_post(
            job.job_id, V1JobsJobIdClaimPostRequest(miner_id=name)
        )

    claimed = claim(MINER)
    assert (claimed.status, claimed.prompt) == ("running", "Why is the sky blue?")
    assert (claimed.params.max_tokens, claimed.params.temperature) == (32, 0.5)
    refused(lambda: claim(f"{MINER}-2"), 409, "JOB_ALREADY_CLAIMED")
    receipt = miners.v1_jobs_job_id_complete_post(
        job.job_id, JobResult(miner_id=MINER, result="Rayleigh scattering.")
    )
    assert (receipt.job_id, receipt.provider, receipt.model) == (job.job_id, MINER, MODEL)
    done = jobs.v1_jobs_job_id_get(job.job_id)
    assert (done.status, done.result) == ("completed", "Rayleigh scattering.")
    refused(lambda: jobs.v1_jobs_job_id_cancel_post(job.job_id), 409, "JOB_ALREADY_COMPLETED")
    return receipt


def walk_records(stranger: ApiClient, receipt: Receipt) -> None:
    """Read what everybody may read."""
    receipts, explorer = ReceiptsApi(stranger), ExplorerApi(stranger)
    same = receipts.v1_receipts_receipt_id_get(receipt.receipt_id)
    assert (same.price, same.units, same.client) == (receipt.price, receipt.units, receipt.client)
    (only,) = receipts.v1_receipts_get(provider=MINER, limit=5)
    assert only.receipt_id == receipt.receipt_id
    assert isinstance(explorer.explorer_blocks_get(limit=3), list)
    assert explorer.explorer_transactions_get()
    assert explorer.explorer_receipts_get()
    assert explorer.explorer_stats_get().total_jobs >= 1


def main(url: str, client_key: str, miner_key: str) -> None:
    """Walk, and print the receipt's id."""
    with ExitStack() as stack:

        def connect(key: str) -> ApiClient:
            configuration = Configuration(host=url, api_key={"ApiKey": key} if key else {})
            return stack.enter_context(ApiClient(configuration))

        owner, miner, stranger = connect(client_key), connect(""), connect("")
        if miner_key:  # the reference asks miners for no key, so its client must be told
            miner.set_default_header("X-Api-Key", miner_key)
        jobs, miners = JobsApi(owner), MinersApi(miner)
        if miner_key:
            owner.set_default_header("X-Api-Key", client_key)
        job = walk_jobs(jobs, miners, stranger)
        receipt = walk_result(miners, jobs, job)
        walk_records(stranger, receipt)
        unwanted = submit(jobs, "Never mind.")
        assert jobs.v1_jobs_job_id_cancel_post(unwanted.job_id).status == "cancelled"
    print(receipt.receipt_id)


if __name__ == "__main__":
    main(*sys.argv[1:])
