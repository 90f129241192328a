// Reading what a reader chooses, within the bound of docs/protocol.md, section 11.

export const MAX_FILE_BYTES = 16 * 1024 * 1024;

/** Bytes of a chosen file. Throws before reading if it is longer than a bundle with a line feed. */
export async function readFile(file) {
  if (file.size > MAX_FILE_BYTES + 1) throw new Error(`${file.name} is longer than any proof can be`);
  return new Uint8Array(await file.arrayBuffer());
}

/** Bytes that this page's own node gives out. */
export async function fetchBytes(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`the node answered ${answer.status}`);
  return new Uint8Array(await answer.arrayBuffer());
}
