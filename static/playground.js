// The playground: submits a job, shows its answer as it comes, and ends on the receipt. The key stays
// in this page's memory: it is sent to this node alone, and forgotten with the page.
import { element, tell, visible } from "./verify/dom.js";

const MAX_RETURNS = 20; // to a stream that broke off
const RETURN_MS = 1000;
const SILENCE_MS = 45000; // three heartbeats of the API's streams
const NUMBERS = ["max_tokens", "temperature", "top_p", "seed"];

const form = document.getElementById("ask");
const panel = document.getElementById("answer");
const [status, output, trail] = panel.children;
const stop = document.getElementById("stop");
const field = (name) => form.querySelector(`#${name}`);
const { jobs, pages, receipts, origin } = form.dataset;
let running = null;
let marks = ""; // at the end of what is shown

function readOrder() {
  const params = {};
  for (const name of NUMBERS) if (field(name).value !== "") params[name] = Number(field(name).value);
  const model = field("model").value.trim();
  return { prompt: field("prompt").value, ...(model && { model }), params };
}

async function ask(path, options) {
  const headers = { "X-Api-Key": field("key").value.trim(), ...options.headers };
  const answer = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  const reason = typeof body.detail === "string" ? body.detail : `status ${answer.status}`;
  throw Object.assign(new Error(`The node refused: ${reason}.`), { refused: true });
}

// Server-sent events by hand: an EventSource can't send a key.
async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const silence = setTimeout(() => {
      tell(status, "The node is silent. This page asks again.");
      reader.cancel();
    }, SILENCE_MS);
    const { done, value } = await reader.read().finally(() => clearTimeout(silence));
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const fields = block.split("\n").map((line) => line.match(/^(\w+): ?(.*)$/s)).filter(Boolean);
      const event = Object.fromEntries(fields.map(([, name, content]) => [name, content]));
      if (event.data) yield { name: event.event, id: event.id, data: JSON.parse(event.data) };
    }
  }
}

const show = (text) => text.split("\n").map(visible).join("\n");
const link = (path, id) => element("a", { href: path + encodeURIComponent(id) }, visible(id));

// Marks may come apart from what they stand on: no more of them pile up than if all came at once.
function grow(text) {
  const before = show(marks);
  output.append(show(marks + text).slice(before.length));
  marks = (marks + text).match(/[\p{Mn}\p{Me}]{0,2}$/u)[0];
}

function take({ name, data }) {
  if (name === "token") {
    if (data.reset || data.offset === 0) output.textContent = marks = "";
    grow(data.text);
  } else if (name === "status") {
    const told = { pending: "It waits for a miner.", running: "It runs.", cancelled: "It was cancelled." };
    if (data.status === "failed") tell(status, `It failed: ${data.error ?? data.status_reason ?? "no reason given"}.`);
    else tell(status, told[data.status] ?? "It is answered, and its receipt is signed.");
    return data.status === "failed" || data.status === "cancelled";
  } else if (name === "receipt") {
    const isFinal = data.status === "final";
    tell(status, isFinal ? "It is answered, and its receipt is final." : "It is answered; its receipt waits for a block.");
    trail.replaceChildren("Receipt ", link(receipts, data.receipt_id), isFinal ? "" : " (pending)");
    return isFinal;
  }
  return false;
}

async function follow(jobId, signal) {
  let last = "";
  for (let returns = 0; returns <= MAX_RETURNS; returns += 1) {
    try {
      const headers = last ? { "Last-Event-ID": last } : {};
      const answer = await ask(`${jobs}/${jobId}/events`, { headers, signal });
      if (answer.status === 204) return;
      for await (const event of readEvents(answer.body)) {
        last = event.id ?? last;
        if (take(event)) return;
      }
    } catch (error) {
      if (signal.aborted || error.refused) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, RETURN_MS));
  }
  throw new Error("The connection broke off too often. The job goes on without this page.");
}

async function run() {
  const abort = new AbortController();
  panel.hidden = false;
  output.textContent = "";
  trail.replaceChildren();
  tell(status, "Submitting…");
  try {
    const headers = { "Content-Type": "application/json" };
    const made = await ask(jobs, { method: "POST", headers, body: JSON.stringify(readOrder()), signal: abort.signal });
    const job = await made.json();
    running = { id: job.job_id, abort };
    stop.hidden = false;
    trail.replaceChildren("Job ", link(pages, job.job_id));
    await follow(job.job_id, abort.signal);
  } catch (error) {
    if (!abort.signal.aborted) tell(status, error.message);
  }
  stop.hidden = true;
  running = null;
}

async function cancel() {
  const { id, abort } = running;
  try {
    await ask(`${jobs}/${id}/cancel`, { method: "POST" });
    abort.abort();
    tell(status, "It was cancelled.");
  } catch (error) {
    tell(status, error.message);
  }
}

// What a shell takes as one word, and what Python reads as a text.
const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function writePrograms() {
  const order = readOrder();
  const body = JSON.stringify(order);
  document.getElementById("curl").textContent =
    `curl -s ${origin}/v1/jobs -H "X-Api-Key: $KEY" -H 'Content-Type: application/json' \\\n  -d ${show(quote(body))}`;
  const { max_tokens, temperature, top_p, seed } = order.params;
  const lines = Object.entries({ max_tokens, temperature, top_p, seed })
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => `    ${name}=${value},\n`);
  document.getElementById("python").textContent =
    `import openai\n\nclient = openai.OpenAI(base_url="${origin}/v1", api_key="aik_…")\n` +
    `answer = client.chat.completions.create(\n    model=${show(JSON.stringify(order.model ?? document.querySelector("#models option")?.value ?? "smollm2:135m"))},\n` +
    `    messages=[{"role": "user", "content": ${show(JSON.stringify(order.prompt))}}],\n${lines.join("")})\n` +
    "print(answer.choices[0].message.content)";
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running) run();
});
form.addEventListener("input", (event) => {
  if (event.target.id !== "key") writePrograms();
});
stop.addEventListener("click", cancel);
form.querySelector(".button").disabled = false;
