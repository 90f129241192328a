// The verdict on a bundle, claim by claim, in the order of docs/protocol.md, section 11.2.
//
// Nothing in a bundle is believed before it was checked, and no bundle brings its own root of
// trust: the genesis is the verifier's.
import { allowsCoordinator, checkCertificate, quorumOf, walkEpochs } from "./authorities.js";
import { ClaimError, decodeBase64url, encode } from "./encoding.js";
import {
  buildReceiptId, buildSignedMessage, hashGenesis, hashHeader, hashPayload, hashSet, hashText,
  hashTokens,
} from "./hashing.js";
import { checkSignature, isAccount } from "./keys.js";
import { checkInclusion } from "./merkle.js";

const SALT_BYTES = 32;
const MICROS = 1_000_000;
const MICROS_PER_MS = 1000;
const TOKEN_IDS = 2 ** 32;

export const NOT_PROVED = [
  "That the answer is good, or that the named model really produced it (see audits).",
  "That the times are exact: they are the coordinator's and the provider's clocks.",
  "That a payment was made: the receipt states a price, settlement happens elsewhere.",
];

/**
 * Checks a parsed bundle against a parsed genesis and disclosure.
 *
 * Yields each claim {name, status, detail, inputs} when it is judged, and nothing in particular
 * after each signature in between. Returns the verdict of docs/protocol.md, section 11.4.
 */
export function* verify(bundle, genesis, shown = {}) {
  const claims = [];
  for (const step of judge(bundle, genesis, shown)) {
    if (step) claims.push(step);
    yield step;
  }
  return {
    verified: claims.every((claim) => claim.status !== "failed"),
    receipt_id: bundle.envelope.payload.receipt_id,
    transaction_id: hashPayload(bundle.envelope.payload),
    genesis: hashGenesis(genesis),
    block_height: bundle.header.height,
    block_hash: hashHeader(bundle.header),
    claims,
    not_proved: NOT_PROVED,
  };
}

function* judge(bundle, genesis, shown) {
  const { envelope, header } = bundle;
  const { payload } = envelope;
  const network = hashGenesis(genesis);
  yield claim("receipt", {
    "your genesis": network, "network it names": payload.genesis, "receipt id": payload.receipt_id,
    job: payload.job_id, transaction: hashPayload(payload),
  }, () => checkReceipt(envelope, network));
  yield judgeSignature(envelope, "provider");
  yield judgeSignature(envelope, "coordinator");
  yield claim("inclusion", {
    leaf: bundle.index, "tree size": header.tree_size, "hashes in the path": bundle.path.length,
    "root in the header": header.tree_root,
  }, () => checkPlace(bundle));
  yield claim("header", {
    "your genesis": network, "network it names": header.genesis, height: header.height,
  }, () => checkHeader(header, network));
  yield* judgeAuthorities(bundle, genesis);
  yield* judgeDisclosure(payload, shown);
}

/** Turns a check, which returns or throws a sentence, into a claim. */
function claim(name, inputs, check) {
  try {
    return { name, status: "verified", detail: check(), inputs };
  } catch (error) {
    if (!(error instanceof ClaimError)) throw error;
    return { name, status: "failed", detail: error.message, inputs };
  }
}

function demand(holds, sentence) {
  if (!holds) throw new ClaimError(sentence);
}

// --- the receipt --------------------------------------------------------------------------------

/** [role, account] of everybody who must sign, in envelope order. A provider without a key cannot. */
function listSigners(payload) {
  const coordinator = ["coordinator", payload.coordinator];
  const hasKey = isAccount(payload.provider);
  return hasKey ? [coordinator, ["provider", payload.provider]] : [coordinator];
}

function checkReceipt(envelope, network) {
  const { payload } = envelope;
  const { coordinator, provider } = payload;
  demand(payload.genesis === network, `it is for the network ${payload.genesis}, yours is ${network}`);
  const expected = buildReceiptId(network, coordinator, payload.job_id);
  demand(payload.receipt_id === expected, `receipt_id: this job’s is ${expected}, not ${payload.receipt_id}`);
  demand(isAccount(coordinator), "the coordinator is not an account");
  demand(!provider.startsWith("ait1") || isAccount(provider), "the provider looks like an account, but is none");
  const elapsed = payload.completed_at_ms - payload.started_at_ms;
  demand(elapsed >= 0, "it was completed before it was started");
  demand(payload.completion_tokens <= payload.max_tokens, "it has more tokens than the job allowed");
  checkUnits(payload, elapsed);
  const signers = envelope.signatures.map(({ role, key_id: account }) => [role, account]);
  const wanted = listSigners(payload);
  demand(
    JSON.stringify(signers) === JSON.stringify(wanted),
    `signers: expected ${nameSigners(wanted)}; got ${nameSigners(signers)}`,
  );
  return `canonical bytes, consistent fields, transaction ${hashPayload(payload)}`;
}

/** Amounts are multiplied as BigInt: a count of 2^53 - 1 times a million is past exact numbers. */
function checkUnits(payload, elapsed) {
  const units = BigInt(payload.units_micros);
  const tokens = BigInt(payload.prompt_tokens) + BigInt(payload.completion_tokens);
  if (payload.unit_type === "tokens")
    demand(units === tokens * BigInt(MICROS), "the units are not the sum of the tokens");
  else
    demand(units <= BigInt(elapsed) * BigInt(MICROS_PER_MS), "more GPU time is charged than the job took");
}

function nameSigners(signers) {
  return signers.map(([role, account]) => `${account} as ${role}`).join(" and ") || "nobody";
}

function judgeSignature(envelope, role) {
  const account = envelope.payload[role];
  const name = `${role}_signature`;
  const found = envelope.signatures.find((one) => one.role === role && one.key_id === account);
  const inputs = {
    account, "signed message": `transaction ${hashPayload(envelope.payload)}`,
    signature: found?.sig ?? "none",
  };
  if (role === "provider" && !isAccount(account)) {
    const detail = `${account} has no key: only the coordinator vouches for this receipt`;
    return { name, status: "not_applicable", detail, inputs: { provider: account } };
  }
  return claim(name, inputs, () => {
    demand(found, `${account} did not sign as ${role}`);
    checkSignature(account, buildSignedMessage(envelope.payload), found.sig);
    return `signed by ${account}`;
  });
}

// --- its place ----------------------------------------------------------------------------------

function checkPlace({ envelope, index, path, header }) {
  const { tree_size: size, tree_root: root } = header;
  checkInclusion({ envelope: encode(envelope), index, size, path, root });
  return `leaf ${index} of ${size} under root ${root}`;
}

function checkHeader(header, network) {
  demand(header.genesis === network, `it is of the network ${header.genesis}, yours is ${network}`);
  return `block ${header.height} is ${hashHeader(header)}`;
}

// --- the authorities ----------------------------------------------------------------------------

/** Votes count only under the set that genesis leads to. */
function* judgeAuthorities(bundle, genesis) {
  const { header, certificate, epochs } = bundle;
  const { coordinator } = bundle.envelope.payload;
  const votes = { block: hashHeader(header), view: certificate.view, votes: certificate.votes.length };
  const chain = {
    "set in your genesis": hashSet(genesis.authority_set), "changes since": epochs.length,
    "set in the header": header.set_hash,
  };
  const { value: authorities, failure } = yield* attempt(walkEpochs(bundle, genesis));
  if (failure) {
    const detail = "your genesis does not lead to the authority set of this header";
    yield { name: "quorum", status: "failed", detail, inputs: votes };
    yield { name: "authority_chain", status: "failed", detail: failure, inputs: chain };
    yield { name: "coordinator", status: "failed", detail, inputs: { coordinator } };
    return;
  }
  const counted = yield* attempt(checkCertificate(certificate, header, authorities));
  yield {
    name: "quorum", status: counted.failure ? "failed" : "verified",
    detail: counted.failure ?? counted.value,
    inputs: { ...votes, authorities: authorities.members.length, needed: quorumOf(authorities) },
  };
  yield claim("authority_chain", chain, () => (
    `${epochs.length} changes since genesis lead to epoch ${authorities.epoch}`
  ));
  yield claim("coordinator", { coordinator, epoch: authorities.epoch }, () => {
    const isAllowed = allowsCoordinator(authorities, coordinator);
    demand(isAllowed, `${coordinator} is not a coordinator of this network`);
    return `${coordinator} may issue receipts`;
  });
}

/** Runs a check that yields; returns what it returns, or the sentence that it fails with. */
function* attempt(check) {
  try {
    return { value: yield* check, failure: null };
  } catch (error) {
    if (!(error instanceof ClaimError)) throw error;
    return { value: null, failure: error.message };
  }
}

// --- what the owner shows -----------------------------------------------------------------------

function* judgeDisclosure(payload, shown) {
  const { prompt, result, output_token_ids: ids } = shown;
  if (prompt != null)
    yield judgeDigest("prompt_digest", payload, shown.prompt_salt, (salt) => hashText(salt, prompt));
  if (result != null)
    yield judgeDigest("result_digest", payload, shown.result_salt, (salt) => hashText(salt, result));
  if (ids != null)
    yield judgeDigest("tokens_digest", payload, shown.result_salt, (salt) => {
      demand(ids.every((id) => 0 <= id && id < TOKEN_IDS), "a token id is not one of 0 to 2^32 - 1");
      return hashTokens(salt, ids);
    });
}

function judgeDigest(name, payload, salt = "", digest) {
  const signed = payload[name];
  return claim(name, { "digest in the receipt": signed || "none", salt: salt || "none" }, () => {
    demand(signed, "the receipt names none to compare with");
    const shown = digest(decodeBase64url(salt, SALT_BYTES));
    demand(shown === signed, `what was disclosed has the digest ${shown}`);
    return "what was disclosed has the digest that was signed";
  });
}
