// Runs the checks over three files and shows what they find, claim by claim, as it is found.
import { NOT_PROVED, verify } from "./claims.js";
import { parseBundle, parseDisclosure, parseGenesis } from "./documents.js";
import { describeMicros, element, short, visible } from "./dom.js";
import { MalformedError } from "./encoding.js";
import { hashGenesis } from "./hashing.js";

const SLICE_MS = 12;
const EXACT = /(ait1[a-z0-9]{58}|\b[0-9a-f]{64}\b)/;
const STATES = { verified: "final", failed: "absent", not_applicable: "none" };
const LABELS = {
  receipt: "The receipt in itself",
  provider_signature: "The miner’s signature",
  coordinator_signature: "The coordinator’s signature",
  inclusion: "Its place in the ledger",
  header: "The block’s network",
  quorum: "The authorities’ votes",
  authority_chain: "The authorities since genesis",
  coordinator: "The coordinator’s permission",
  prompt_digest: "The disclosed prompt",
  result_digest: "The disclosed result",
  tokens_digest: "The disclosed token ids",
};

/** Lets the page paint and answer, without the wait that timers add. */
function breathe() {
  const { port1, port2 } = new MessageChannel();
  return new Promise((resolve) => {
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

/**
 * Verifies and shows.
 *
 * status: the live region that says the verdict; output: an element to fill. files: {bundle,
 * genesis, disclosure} as bytes, the last one or null. expected: the receipt id that the bundle
 * must be about, or null. isNodes: whether the genesis came from the node that is being checked.
 * limits: whether to say below what no proof shows, where the page around does not.
 * Returns the verdict, or null if there was nothing to judge or `signal` was aborted.
 */
export async function report({
  status, output, files, expected = null, isNodes = false, signal, limits = false,
}) {
  say(status, "none", "Checking…");
  output.replaceChildren();
  const read = readFiles(status, files);
  if (read === null) return null;
  const claims = element("ol", { class: "claims" });
  const progress = element("p", { class: "quiet" });
  output.append(claims, progress);
  const verdict = await run(verify(read.bundle, read.genesis, read.shown), claims, progress, signal);
  if (verdict === null) return null;
  progress.remove();
  conclude(status, verdict, expected);
  claims.before(...describe(read, verdict, isNodes));
  if (limits) {
    const sentences = NOT_PROVED.map((sentence) => element("li", {}, sentence));
    output.append(element("h3", {}, "What this does not prove"), element("ul", { class: "plain" }, ...sentences));
  }
  return verdict;
}

function say(status, state, sentence) {
  status.className = `verdict state ${state}`;
  status.textContent = sentence;
}

function readFiles(status, { bundle, genesis, disclosure }) {
  const read = (what, parse, data) => {
    try {
      return parse(data);
    } catch (error) {
      if (!(error instanceof MalformedError)) throw error;
      say(status, "absent", visible(`${what} ${error.message}.`));
      return null;
    }
  };
  const parsed = {
    genesis: read("Your genesis file is not one:", parseGenesis, genesis),
    shown: disclosure === null ? {} : read("The disclosure is not one:", parseDisclosure, disclosure),
  };
  if (parsed.genesis === null || parsed.shown === null) return null;
  parsed.bundle = read("Not verified, this is no proof bundle:", parseBundle, bundle);
  return parsed.bundle === null ? null : parsed;
}

async function run(checks, claims, progress, signal) {
  let [started, signatures] = [performance.now(), 0];
  for (;;) {
    const { done, value } = checks.next();
    if (done) return value;
    if (value) claims.append(describeClaim(value));
    else signatures += 1;
    if (performance.now() - started > SLICE_MS) {
      progress.textContent = `${signatures.toLocaleString("en")} votes of authorities checked so far`;
      await breathe();
      if (signal?.aborted) return null;
      started = performance.now();
    }
  }
}

function conclude(status, verdict, expected) {
  const { claims, receipt_id: id } = verdict;
  const failed = claims.filter((claim) => claim.status === "failed").length;
  if (failed) say(status, "absent", `Not verified: ${failed} of ${claims.length} claims failed.`);
  else if (expected !== null && id !== expected)
    say(status, "absent", "Not verified: the node sent the proof of another receipt.");
  else say(status, "final", `Verified: none of ${claims.length} claims failed.`);
}

function code(text) {
  return element("code", { class: "long" }, element("bdi", {}, visible(text)));
}

/** What the proof is about, in its own words, and whose genesis it was held against. */
function describe({ bundle, genesis }, verdict, isNodes) {
  const { payload } = bundle.envelope;
  const name = (text) => element("bdi", {}, visible(short(text)));
  const amount = describeMicros(payload.units_micros, payload.unit_type === "tokens" ? "token" : "GPU second");
  const said = element(
    "p", {},
    verdict.verified ? "It says: " : "It claims, and that is not proved: ",
    name(payload.provider), " ran ", name(payload.model), " for ", name(payload.client),
    `: ${amount} for ${describeMicros(payload.price_micros, "credit")}. Receipt `,
    code(payload.receipt_id), `, block #${verdict.block_height.toLocaleString("en")}.`,
  );
  const held = element(
    "p", { class: "quiet" },
    isNodes ? "Held against this node’s own genesis of " : "Held against your genesis of ",
    name(genesis.network), ", ", code(hashGenesis(genesis)),
    isNodes ? ". For that one file you trusted the node." : ".",
  );
  return [said, held];
}

function describeClaim({ name, status, detail, inputs }) {
  const rows = Object.entries(inputs).map(([label, value]) =>
    element("div", {}, element("dt", {}, label), element("dd", {}, code(value))));
  return element(
    "li", {},
    element(
      "p", {},
      element("strong", {}, LABELS[name]), " ",
      element("span", { class: `state ${STATES[status]}` }, status.replace("_", " ")),
    ),
    element("p", { class: "long" }, ...visible(detail).split(EXACT).map((part, i) => (i % 2 ? code(part) : part))),
    element(
      "details", {},
      element("summary", {}, "Inputs of ", element("code", {}, name)),
      element("dl", { class: "facts" }, ...rows),
    ),
  );
}
