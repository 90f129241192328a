// Accounts and signatures. Source: docs/protocol.md, section 3.
//
// Signatures are Ed25519 exactly as libsodium accepts them, which the curve library's own verify()
// is not: it multiplies by the cofactor. So the equation stands here, over the library's points.
import { Point } from "../vendor/noble-ed25519/index.js";
import { sha512 } from "../vendor/noble-hashes/sha2.js";
import { bech32m } from "../vendor/scure-base/index.js";
import { ClaimError, decodeBase64url, join, toHex } from "./encoding.js";

const ACCOUNT = /^ait1[02-9ac-hj-np-z]{58}$/;
const POINT_BYTES = 32;
const SIGNATURE_BYTES = 64;
const ORDER = Point.CURVE().n;

/** The Ed25519 key of an account, or null if the text is none. */
export function decodeAccount(account) {
  if (!ACCOUNT.test(account)) return null;
  try {
    return bech32m.fromWords(bech32m.decode(account).words);
  } catch {
    return null; // checksum or padding
  }
}

export const isAccount = (text) => decodeAccount(text) !== null;

function toNumber(littleEndian) {
  return BigInt(`0x${toHex(littleEndian.toReversed())}`);
}

function decodePoint(data) {
  try {
    return Point.fromBytes(data, false); // strict: y below p, no negative zero
  } catch {
    return null;
  }
}

/** Whether S·B − k·A is, byte for byte, the R of the signature. */
function satisfies(key, message, signature) {
  const R = signature.subarray(0, POINT_BYTES);
  const S = toNumber(signature.subarray(POINT_BYTES));
  const A = decodePoint(key);
  if (S >= ORDER || A === null || A.isSmallOrder()) return false;
  const k = toNumber(sha512(join(R, key, message))) % ORDER;
  const expected = Point.BASE.multiply(S, false).subtract(A.multiply(k, false));
  return toHex(expected.toBytes()) === toHex(R) && !expected.isSmallOrder();
}

/** Checks one base64url signature. Throws ClaimError unless it verifies. */
export function checkSignature(account, message, encoded) {
  const key = decodeAccount(account);
  if (key === null) throw new ClaimError(`“${account}” is not an account`);
  if (!satisfies(key, message, decodeBase64url(encoded, SIGNATURE_BYTES)))
    throw new ClaimError(`the signature of ${account} does not verify`);
}
