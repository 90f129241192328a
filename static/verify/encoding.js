// Canonical bytes: one value, one spelling. Source: docs/protocol.md, section 1.
//
// A document is parsed leniently, held to its shape, written again, and compared. What a lenient
// parser lets pass (a key twice, white space, other escapes, keys out of order, 1.0, minus zero)
// differs from the canonical form when it is written again.
import canonicalize from "../vendor/canonicalize/canonicalize.js";
import { base64urlnopad } from "../vendor/scure-base/index.js";
import { MAX_FILE_BYTES } from "./files.js";

/** A file is not the document it should be, so there is nothing to judge. */
export class MalformedError extends Error {}
/** A claim does not hold; the message is the sentence that says why. */
export class ClaimError extends Error {}

const LINE_FEED = 10;
const writer = new TextEncoder();
// A byte order mark is no part of a document: keep it, so that it is refused.
const reader = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** UTF-8 bytes of a text without lone surrogates. */
export function toBytes(text) {
  return writer.encode(text);
}

/** Bytes joined. */
export function join(...parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let end = 0;
  for (const part of parts) {
    whole.set(part, end);
    end += part.length;
  }
  return whole;
}

/** Canonical bytes of a value that has a shape. */
export function encode(value) {
  return toBytes(write(value));
}

function write(value) {
  try {
    return canonicalize(value);
  } catch {
    throw new MalformedError("it holds text that is not Unicode");
  }
}

/** Parses JSON in any spelling. */
export function decodeJson(data) {
  if (data.length > MAX_FILE_BYTES + 1) throw new MalformedError(`it is longer than ${MAX_FILE_BYTES} bytes`);
  let text;
  try {
    text = reader.decode(data);
  } catch {
    throw new MalformedError("it holds text that is not Unicode");
  }
  try {
    return { text, value: JSON.parse(text) };
  } catch {
    throw new MalformedError("it is not JSON");
  }
}

/** Parses canonical bytes of one shape, with one optional line feed behind them. */
export function decode(data, shape, name) {
  const bare = data.at(-1) === LINE_FEED ? data.subarray(0, -1) : data;
  const { text, value } = decodeJson(bare);
  shape(value, name); // first: it bounds how deep the writer has to go
  if (write(value) !== text) throw new MalformedError("it is not in canonical form (RFC 8785)");
  return value;
}

/** Parses base64url without padding, in its only spelling. */
export function decodeBase64url(text, size) {
  let data = new Uint8Array();
  try {
    data = base64urlnopad.decode(text);
  } catch { /* the wrong length says it */ }
  if (data.length !== size || base64urlnopad.encode(data) !== text)
    throw new ClaimError(`expected ${size} bytes as base64url without padding`);
  return data;
}

/** Lower-case hex of bytes. */
export function toHex(data) {
  return Array.from(data, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Bytes of hex that has the shape of a hash. */
export function fromHex(text) {
  return Uint8Array.from(text.match(/../g) ?? [], (pair) => parseInt(pair, 16));
}

/** Orders texts by code point; JavaScript alone would compare halves of characters. */
export function compareText(first, second) {
  const [a, b] = [[...first], [...second]];
  const place = a.findIndex((character, i) => character !== b[i]);
  if (place < 0) return a.length - b.length;
  return place < b.length ? a[place].codePointAt(0) - b[place].codePointAt(0) : 1;
}
