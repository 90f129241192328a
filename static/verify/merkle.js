// Inclusion in the tree of all envelopes. Source: RFC 9162, section 2.1.3.2.
//
// Positions reach 2^53, so they are halved by division: bit operators stop at 32 bits.
import { sha256 } from "../vendor/noble-hashes/sha2.js";
import { ClaimError, fromHex, join, toHex } from "./encoding.js";

const half = (number) => Math.floor(number / 2);
const isOdd = (number) => number % 2 === 1;
const hashLeaf = (envelope) => sha256(join(Uint8Array.of(0), envelope));
const hashChildren = (left, right) => sha256(join(Uint8Array.of(1), left, right));

/** Folds a path (hex, leaf side first) from an envelope's leaf to a root (hex), or throws. */
export function checkInclusion({ envelope, index, size, path, root }) {
  if (index >= size) throw new ClaimError(`there is no leaf ${index} in a tree of ${size}`);
  let [position, last, node] = [index, size - 1, hashLeaf(envelope)];
  for (const sibling of path.map(fromHex)) {
    if (last === 0) throw new ClaimError("the path is longer than the tree is high");
    if (isOdd(position) || position === last) {
      node = hashChildren(sibling, node);
      while (!isOdd(position) && position !== 0) [position, last] = [half(position), half(last)];
    } else {
      node = hashChildren(node, sibling);
    }
    [position, last] = [half(position), half(last)];
  }
  if (last !== 0) throw new ClaimError("the path is shorter than the tree is high");
  if (toHex(node) !== root)
    throw new ClaimError(`the path leads to ${toHex(node)}, the header’s root is ${root}`);
}
