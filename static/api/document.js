// The API document of the node that this page came from, for its viewers.
// Every address is relative to the page, so it holds under /api and behind a proxy's prefix too.

/** Where the documented paths begin: the page's own address without its last part. */
export const base = new URL(".", location.href).href.replace(/\/$/, "");

/**
 * The published document, with this node as its one server. The servers it names are of other
 * addresses, which the page must not and, by its policy, cannot call.
 */
export async function fetchDocument() {
  const answer = await fetch("openapi.json");
  if (!answer.ok) throw new Error(`the node answered ${answer.status}`);
  const document = await answer.json();
  return { ...document, servers: [{ url: base, description: "this node" }] };
}

/** Shows the document in `#viewer` with `view`, or says why that failed. */
export async function show(view) {
  const place = document.getElementById("viewer");
  try {
    const spec = await fetchDocument();
    place.replaceChildren();
    view(spec, place);
  } catch (error) {
    const line = Object.assign(document.createElement("p"), { className: "wait" });
    line.textContent = `The document could not be shown: ${error.message}.`;
    place.replaceChildren(line);
  }
}
