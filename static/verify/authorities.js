// Authority sets, certificates and their changes since genesis.
// Source: docs/protocol.md, sections 7, 9 and 11.2.
//
// What checks many signatures is a generator: it yields after each one, so that whoever runs it can
// let the page breathe, or stop.
import { ClaimError, toBytes } from "./encoding.js";
import { hashGenesis, hashHeader, hashSet } from "./hashing.js";
import { checkSignature, isAccount } from "./keys.js";

/** Votes that decide: floor(2n/3) + 1 of n members. */
export function quorumOf(authoritySet) {
  return Math.floor((2 * authoritySet.members.length) / 3) + 1;
}

function isAscending(values) {
  return values.slice(1).every((value, i) => values[i] < value);
}

/** Checks that accounts are well formed, distinct and, for coordinators, sorted. */
export function validateAuthoritySet({ members, coordinators }) {
  const accounts = members.map((member) => member.account);
  if (![...accounts, ...coordinators].every(isAccount))
    throw new ClaimError("an authority set lists something that is not an account");
  if (new Set(accounts).size !== accounts.length || !isAscending(coordinators))
    throw new ClaimError("an authority set lists an account twice or out of order");
}

/** Checks that a quorum of a set voted to finalize a header, and every vote in the certificate. */
export function* checkCertificate(certificate, header, authoritySet) {
  if (hashSet(authoritySet) !== header.set_hash)
    throw new ClaimError("the header names another authority set");
  const { members } = authoritySet;
  const voters = certificate.votes.map(([index]) => index);
  const quorum = quorumOf(authoritySet);
  if (voters.length < quorum)
    throw new ClaimError(`${voters.length} of ${members.length} authorities voted, ${quorum} are needed`);
  if (!isAscending(voters) || voters.at(-1) >= members.length)
    throw new ClaimError("votes: expected distinct members in ascending order");
  const message = toBytes(
    `aitbc/vote/v1\n${header.genesis}\nfinalize\n${header.height}\n${certificate.view}\n` +
    `${hashHeader(header)}\n`,
  );
  for (const [index, signature] of certificate.votes) {
    checkSignature(members[index].account, message, signature);
    yield;
  }
  return `${voters.length} of ${members.length} authorities signed, ${quorum} are needed`;
}

/** Follows the changes of the authority set from genesis to a bundle's header; returns the set. */
export function* walkEpochs(bundle, genesis) {
  const network = hashGenesis(genesis);
  let [current, height] = [genesis.authority_set, 0];
  for (const { header, certificate, authority_set: following } of bundle.epochs) {
    const name = `epoch ${following.epoch}`;
    if (header.genesis !== network) throw new ClaimError(`${name}: its header is of another network`);
    if (header.height <= height || header.height >= bundle.header.height)
      throw new ClaimError(`${name}: its header is out of place`);
    try {
      yield* checkCertificate(certificate, header, current);
      validateAuthoritySet(following);
    } catch (error) {
      throw error instanceof ClaimError ? new ClaimError(`${name}: ${error.message}`) : error;
    }
    if (hashSet(following) !== header.next_set_hash)
      throw new ClaimError(`${name}: its header names another set`);
    if (following.epoch !== current.epoch + 1)
      throw new ClaimError(`${name}: it does not follow epoch ${current.epoch}`);
    [current, height] = [following, header.height];
  }
  if (hashSet(current) !== bundle.header.set_hash)
    throw new ClaimError("your genesis does not lead to the authority set of the header");
  return current;
}

/** Whether a set allows an account to issue receipts. Every member may. */
export function allowsCoordinator({ members, coordinators }, account) {
  return coordinators.includes(account) || members.some((member) => member.account === account);
}
