// BLAKE3 identities, each under its own domain. Source: docs/protocol.md, section 2.
import { blake3 } from "../vendor/noble-hashes/blake3.js";
import { base32nopad } from "../vendor/scure-base/index.js";
import { encode, join, toBytes, toHex } from "./encoding.js";

const RECEIPT_ID_BYTES = 16;
const TOKEN_ID_BYTES = 4;

function hash(domain, data) {
  return toHex(blake3(join(toBytes(`${domain}\n`), data)));
}

export const hashGenesis = (genesis) => hash("aitbc/genesis/v1", encode(genesis));
export const hashHeader = (header) => hash("aitbc/block/v1", encode(header));
export const hashSet = (authoritySet) => hash("aitbc/set/v1", encode(authoritySet));
export const hashPayload = (payload) => toHex(blake3(buildSignedMessage(payload)));
export const hashText = (salt, text) => hash("aitbc/text/v1", join(salt, toBytes(text)));

/** The bytes that every signer of a payload signs. */
export function buildSignedMessage(payload) {
  return join(toBytes("aitbc/tx/v1\n"), encode(payload));
}

/** Digest of token ids below 2^32. */
export function hashTokens(salt, ids) {
  const packed = new DataView(new ArrayBuffer(ids.length * TOKEN_ID_BYTES));
  ids.forEach((id, i) => packed.setUint32(i * TOKEN_ID_BYTES, id, true));
  return hash("aitbc/tokens/v1", join(salt, new Uint8Array(packed.buffer)));
}

/** The one receipt id that a job can have. */
export function buildReceiptId(genesis, coordinator, jobId) {
  const message = toBytes(`aitbc/receipt-id/v1\n${genesis}\n${coordinator}\n${jobId}\n`);
  return `rcp_${base32nopad.encode(blake3(message, { dkLen: RECEIPT_ID_BYTES })).toLowerCase()}`;
}
