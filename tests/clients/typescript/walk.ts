// From registration to receipt with the fetch client that openapi-generator makes for TypeScript.
// The compiler holds every use of it to the types that the generator made of the reference.

import {
  Configuration,
  ExplorerApi,
  type Job,
  JobsApi,
  MinersApi,
  type Receipt,
  ReceiptsApi,
  ResponseError,
  SystemApi,
  V1JobsGetStatusEnum,
} from "./aitbc_reference/index.js";

declare const process: { argv: string[] };

const MODEL = "model-of-typescript";
const MINER = "miner-of-typescript";
const [url, clientKey, minerKey] = process.argv.slice(2) as [string, string, string];

function equal<T>(got: T, expected: T): void {
  if (got !== expected) throw new Error(`expected ${String(expected)}, got ${String(got)}`);
}

// The reference asks for a key where jobs are submitted and nowhere else; who needs one elsewhere
// sends it as a header.
function connect(key: string, everywhere: boolean): Configuration {
  return new Configuration({
    basePath: url,
    ...(key ? { apiKey: key } : {}),
    ...(key && everywhere ? { headers: { "X-Api-Key": key } } : {}),
  });
}

async function refused(call: Promise<unknown>, status: number, code: string): Promise<void> {
  try {
    await call;
  } catch (error) {
    if (!(error instanceof ResponseError)) throw error;
    equal(error.response.status, status);
    equal(((await error.response.json()) as { error_code: string }).error_code, code);
    return;
  }
  throw new Error(`expected ${code}`);
}

function present<T>(value: T | null | undefined): T {
  if (value === null || value === undefined) throw new Error("a field is missing");
  return value;
}

const strict = minerKey !== "";
const stranger = connect("", false);
const jobs = new JobsApi(connect(clientKey, strict));
const miners = new MinersApi(connect(minerKey, strict));

async function submit(prompt: string): Promise<string> {
  const job: Job = await jobs.v1JobsPost({
    jobRequest: {
      prompt,
      model: MODEL,
      params: { maxTokens: 32, temperature: 0.5, topP: 0.8 },
    },
  });
  equal(job.status, "pending");
  equal(job.model, MODEL);
  equal(Number.isFinite(present(job.createdAt).getTime()), true);
  return present(job.jobId);
}

async function walkJobs(): Promise<string> {
  equal((await new SystemApi(stranger).healthGet()).status, "ok");
  for (const [minerId, model] of [
    [MINER, MODEL],
    [`${MINER}-2`, "another"],
  ] as const) {
    const gpuInfo = { name: "RTX 4090", memory: "24GB" };
    const made = await miners.v1MinersRegisterPost({
      minerRegistration: { minerId, capabilities: [model], gpuInfo },
    });
    equal(made.minerId, minerId);
  }
  equal<Job | null>(await miners.v1JobsAvailableGet({ minerId: MINER }), null);
  const unsigned = new JobsApi(stranger).v1JobsPost({ jobRequest: { prompt: "Why?" } });
  await refused(unsigned, 401, "AUTH_MISSING_KEY");
  const jobId = await submit("Why is the sky blue?");
  const listed = await jobs.v1JobsGet({ status: V1JobsGetStatusEnum.Pending, limit: 100 });
  equal(listed.some((job) => job.jobId === jobId), true);
  await refused(jobs.v1JobsJobIdGet({ jobId: "none" }), 404, "JOB_NOT_FOUND");
  equal((await miners.v1JobsAvailableGet({ minerId: MINER })).jobId, jobId);
  return jobId;
}

async function walkResult(jobId: string): Promise<Receipt> {
  const claim = (minerId: string): Promise<Job> =>
    miners.v1JobsJobIdClaimPost({ jobId, v1JobsJobIdClaimPostRequest: { minerId } });
  const claimed = await claim(MINER);
  equal(claimed.status, "running");
  equal(claimed.prompt, "Why is the sky blue?");
  equal(present(claimed.params).maxTokens, 32);
  await refused(claim(`${MINER}-2`), 409, "JOB_ALREADY_CLAIMED");
  const receipt = await miners.v1JobsJobIdCompletePost({
    jobId,
    jobResult: { minerId: MINER, result: "Rayleigh scattering." },
  });
  equal(receipt.jobId, jobId);
  equal(receipt.provider, MINER);
  const done = await jobs.v1JobsJobIdGet({ jobId });
  equal(done.status, "completed");
  equal(done.result, "Rayleigh scattering.");
  await refused(jobs.v1JobsJobIdCancelPost({ jobId }), 409, "JOB_ALREADY_COMPLETED");
  return receipt;
}

async function walkRecords(receipt: Receipt): Promise<void> {
  const receipts = new ReceiptsApi(stranger);
  const explorer = new ExplorerApi(stranger);
  const receiptId = present(receipt.receiptId);
  equal((await receipts.v1ReceiptsReceiptIdGet({ receiptId })).price, receipt.price);
  const found = await receipts.v1ReceiptsGet({ provider: MINER, limit: 5 });
  equal(found.map((each) => each.receiptId).join(), receiptId);
  equal(Array.isArray(await explorer.explorerBlocksGet({ limit: 3 })), true);
  equal((await explorer.explorerTransactionsGet()).length > 0, true);
  equal((await explorer.explorerReceiptsGet()).length > 0, true);
  equal(present((await explorer.explorerStatsGet()).totalJobs) > 0, true);
}

const receipt = await walkResult(await walkJobs());
await walkRecords(receipt);
const cancelled = await jobs.v1JobsJobIdCancelPost({ jobId: await submit("Never mind.") });
equal(cancelled.status, "cancelled");
console.log(receipt.receiptId);
