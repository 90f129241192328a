// The documents that a verifier reads, and their bounds. Source: docs/protocol.md, sections 4 to 11.
//
// A shape throws MalformedError unless a value has it.
import { validateAuthoritySet } from "./authorities.js";
import {
  ClaimError, MalformedError, compareText, decode, decodeJson, encode,
} from "./encoding.js";

const MAX_ENVELOPE_BYTES = 64 * 1024 - 1;
const MAX_INTEGER = Number.MAX_SAFE_INTEGER;
const MAX_SHOWN = 60;

function demand(holds, where, expected) {
  if (!holds) throw new MalformedError(`${where}: expected ${expected}`);
}

/** An integer from low to high. */
function integer(low, high) {
  return (value, where) =>
    demand(Number.isInteger(value) && low <= value && value <= high, where, `${low} to ${high}`);
}

/** A string that matches as a whole; lengths count code points. */
function text(pattern) {
  const whole = new RegExp(`^(?:${pattern})$`, "su");
  return (value, where) =>
    demand(typeof value === "string" && whole.test(value), where, `text of the form ${pattern}`);
}

/** A list of least to most values of one shape. */
function list(shape, least, most) {
  return (value, where) => {
    const fits = Array.isArray(value) && least <= value.length && value.length <= most;
    demand(fits, where, `a list of ${least} to ${most}`);
    value.forEach((item, i) => shape(item, `${where}[${i}]`));
  };
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** An object with exactly these fields. */
function record(fields) {
  return (value, where) => {
    demand(isObject(value), where, "an object");
    const missing = Object.keys(fields).filter((name) => !Object.hasOwn(value, name));
    const unknown = Object.keys(value).filter((name) => !Object.hasOwn(fields, name));
    demand(!missing.length, where, `the field ${missing.join(", ")}`);
    demand(!unknown.length, where, `no field ${JSON.stringify(unknown.join(", ").slice(0, MAX_SHOWN))}`);
    for (const [name, shape] of Object.entries(fields)) shape(value[name], `${where}.${name}`);
  };
}

/** A pair of member index and signature. */
function vote(value, where) {
  demand(Array.isArray(value) && value.length === 2, where, "a pair");
  integer(0, 99)(value[0], `${where}[0]`);
  text(".*")(value[1], `${where}[1]`);
}

const VERSION = integer(1, 1);
const COUNT = integer(0, MAX_INTEGER);
const HASH = text("[0-9a-f]{64}");
const OPTIONAL_HASH = text("(?:[0-9a-f]{64})?");
const IDENTIFIER = text("[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}");
const ACCOUNT_TEXT = text(".{0,90}");
const PLAIN = "[^\\x00-\\x1f\\x7f]";

const RECEIPT = record({
  v: VERSION,
  type: text("receipt"),
  genesis: HASH,
  receipt_id: text("rcp_[a-z2-7]{26}"),
  job_id: text("job_[0-9A-HJKMNP-TV-Z]{26}"),
  attempt: integer(1, 1000),
  client: IDENTIFIER,
  provider: IDENTIFIER,
  coordinator: IDENTIFIER,
  model: text(`${PLAIN}{1,128}`),
  model_digest: OPTIONAL_HASH,
  prompt_digest: HASH,
  result_digest: HASH,
  tokens_digest: OPTIONAL_HASH,
  max_tokens: integer(1, 1_000_000),
  temperature_micros: integer(0, 2_000_000),
  top_p_micros: integer(1, 1_000_000),
  seed: COUNT,
  sampler: text("[a-z0-9.-]{0,64}"),
  prompt_tokens: COUNT,
  completion_tokens: COUNT,
  unit_type: text("tokens|gpu_seconds"),
  units_micros: COUNT,
  price_micros: COUNT,
  started_at_ms: COUNT,
  completed_at_ms: COUNT,
  metered_by: text("coordinator|provider"),
});
/** Only receipts have bundles: another type is told before fields are missed. */
function payload(value, where) {
  if (isObject(value)) text("receipt")(value.type, `${where}.type`);
  RECEIPT(value, where);
}

const SIGNATURE = record({
  key_id: ACCOUNT_TEXT,
  role: text("auditor|authority|coordinator|provider"),
  sig: text(".{0,86}"),
});
const ENVELOPE = record({ payload, signatures: list(SIGNATURE, 0, 256) });
const HEADER = record({
  v: VERSION,
  genesis: HASH,
  height: integer(1, MAX_INTEGER),
  prev_hash: HASH,
  time_ms: COUNT,
  tree_size: COUNT,
  tree_root: HASH,
  set_hash: HASH,
  next_set_hash: HASH,
  proposer: ACCOUNT_TEXT,
});
const CERTIFICATE = record({ view: COUNT, votes: list(vote, 0, 100) });
const MEMBER = record({
  account: ACCOUNT_TEXT, name: text(`${PLAIN}{1,64}`), url: text("[!-~]{0,256}"),
});
const AUTHORITY_SET = record({
  v: VERSION,
  epoch: COUNT,
  members: list(MEMBER, 1, 100),
  coordinators: list(text(".*"), 0, 100),
});
const EPOCH = record({ header: HEADER, certificate: CERTIFICATE, authority_set: AUTHORITY_SET });
const BUNDLE = record({
  v: VERSION,
  envelope: ENVELOPE,
  index: COUNT,
  path: list(HASH, 0, 63),
  header: HEADER,
  certificate: CERTIFICATE,
  epochs: list(EPOCH, 0, 10_000),
});
const GENESIS = record({
  v: VERSION,
  network: text("[a-z0-9][a-z0-9-]{0,62}"),
  created_ms: COUNT,
  authority_set: AUTHORITY_SET,
  limits: record({
    max_block_transactions: integer(1, 65_536),
    max_block_bytes: integer(65_536, 64 * 1024 * 1024),
  }),
  settlement: text("off_chain"),
});

/** Parses a proof bundle. Throws MalformedError if it is none. */
export function parseBundle(data) {
  const bundle = decode(data, BUNDLE, "bundle");
  const { envelope } = bundle;
  demand(encode(envelope).length <= MAX_ENVELOPE_BYTES, "envelope", `at most ${MAX_ENVELOPE_BYTES} bytes`);
  envelope.signatures.slice(1).forEach((later, i) => {
    const earlier = envelope.signatures[i];
    const order = compareText(earlier.role, later.role) || compareText(earlier.key_id, later.key_id);
    demand(order < 0, "signatures", "distinct ones, sorted by role and key_id");
  });
  return bundle;
}

/** Parses the verifier's own genesis document. Throws MalformedError if it is none. */
export function parseGenesis(data) {
  const genesis = decode(data, GENESIS, "genesis");
  try {
    validateAuthoritySet(genesis.authority_set);
  } catch (error) {
    throw error instanceof ClaimError ? new MalformedError(error.message) : error;
  }
  demand(genesis.authority_set.epoch === 0, "genesis.authority_set.epoch", "0");
  return genesis;
}

/** Parses a disclosure in any spelling. Throws MalformedError if it is none. */
export function parseDisclosure(data) {
  let { value: shown } = decodeJson(data);
  if (isObject(shown) && isObject(shown.disclosure)) {
    // The API's answer about a job: texts beside salts, and much else.
    const texts = ["prompt", "result"].filter((name) => Object.hasOwn(shown, name));
    shown = { ...Object.fromEntries(texts.map((name) => [name, shown[name]])), ...shown.disclosure };
  }
  demand(isObject(shown), "disclosure", "an object");
  for (const [name, value] of Object.entries(shown)) {
    const isText = typeof value === "string";
    const fits = {
      prompt: () => isText || value === null,
      prompt_salt: () => isText,
      result: () => isText || value === null,
      result_salt: () => isText,
      output_token_ids: () => value === null || (Array.isArray(value) && value.every(Number.isInteger)),
    };
    const isField = Object.hasOwn(fits, name) && fits[name]();
    demand(isField, JSON.stringify(name.slice(0, MAX_SHOWN)), "a field of a disclosure");
  }
  const texts = [shown.prompt, shown.result, shown.output_token_ids];
  demand(texts.some((part) => part != null), "disclosure", "a prompt, a result or token ids");
  encode(shown); // refuses text that is not Unicode
  return shown;
}
