// Where a reader hands over the files: chosen, dropped or pasted. Nothing leaves the page.
import { describeSize, element, tell, visible } from "./dom.js";
import { fetchBytes, readFile } from "./files.js";

const SLOTS = {
  bundle: ["Proof bundle", "The proof of one receipt, as a node gave it out."],
  genesis: ["Genesis", "The network’s genesis file, from somebody you trust."],
  disclosure: ["Disclosure, if you have one", "Prompt, result and salts, as their owner shows them."],
};

/**
 * Builds the form in `root`.
 *
 * load: returns the module that checks, when it is needed. genesisAddress: where this node gives
 * out its own genesis, or null where there is no node. limits: as for report().
 */
export function buildForm(root, { load, genesisAddress = null, limits = false }) {
  const slots = Object.fromEntries(Object.keys(SLOTS).map((kind) => [kind, buildSlot(kind)]));
  const status = element("p", { role: "status", class: "verdict" });
  const output = element("div", { class: "report" });
  const form = element(
    "form", { class: "check", novalidate: true, "aria-label": "Files to verify" },
    element("p", { class: "quiet" }, "Choose, paste, or drop all files here at once: they are told apart by what they hold."),
    ...Object.values(slots).map((slot) => slot.place),
    element("button", { class: "button" }, "Verify"),
  );
  if (genesisAddress !== null) offerGenesis(slots.genesis, genesisAddress, status);
  acceptDrops(form, slots, status);
  let running = new AbortController();
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    running.abort();
    running = new AbortController();
    const { signal } = running;
    try {
      const files = await readSlots(slots, status);
      if (files === null) return output.replaceChildren();
      const { report } = await load();
      if (!signal.aborted)
        await report({ status, output, files, isNodes: slots.genesis.isNodes(), signal, limits });
    } catch (error) {
      tell(status, `The check broke off, and nothing was decided: ${error.message}.`);
    }
    status.scrollIntoView({ block: "nearest" });
  });
  root.replaceChildren(form, status, output);
}

/** One document to hand over: a file or a text, whichever came last. */
function buildSlot(kind) {
  const [title, hint] = SLOTS[kind];
  const file = element("input", { type: "file", id: `file-${kind}`, accept: ".json,application/json" });
  const text = element("textarea", {
    rows: 4, spellcheck: "false", autocomplete: "off", "aria-label": `${title}, pasted`,
  });
  const note = element("p", { class: "quiet", "aria-live": "polite" });
  const place = element(
    "div", { class: "slot" },
    element("label", { for: file.id }, title),
    element("p", { class: "quiet" }, hint),
    element("div", { class: "row" }, file),
    element("details", {}, element("summary", {}, "or paste it"), text),
    note,
  );
  let given = null; // bytes that neither a file nor a text holds
  const clear = (...others) => {
    given = null;
    note.textContent = "";
    for (const other of others) other.value = "";
  };
  file.addEventListener("change", () => clear(text));
  text.addEventListener("input", () => clear(file));
  return {
    place, file, note,
    isNodes: () => given !== null,
    drop: (dropped) => {
      const carrier = new DataTransfer();
      carrier.items.add(dropped);
      file.files = carrier.files;
      clear(text);
      note.textContent = visible(`${dropped.name}, ${describeSize(dropped.size)}`);
    },
    give: (bytes, sentence) => {
      clear(file, text);
      given = bytes;
      note.textContent = sentence;
    },
    read: async () => {
      if (given !== null) return given;
      if (text.value) return new TextEncoder().encode(text.value);
      const [chosen] = file.files;
      return chosen ? readFile(chosen) : null;
    },
  };
}

async function readSlots(slots, status) {
  const files = {};
  for (const [kind, slot] of Object.entries(slots)) {
    files[kind] = await slot.read();
    if (files[kind] === null && kind !== "disclosure") {
      tell(status, kind === "bundle" ? "There is no proof bundle yet: choose or paste one." : "There is no genesis yet: choose or paste one.");
      slot.file.focus();
      return null;
    }
  }
  return files;
}

function offerGenesis(slot, address, status) {
  const button = element("button", { type: "button" }, "Use this node’s copy");
  button.addEventListener("click", async () => {
    try {
      slot.give(await fetchBytes(address), "This node’s own copy. For this one file you then trust the node.");
    } catch (error) {
      tell(status, `There is no genesis from this node: ${error.message}.`);
    }
  });
  slot.file.after(button);
}

/** Takes files dropped anywhere: beside the form, the browser would leave the page for them. */
function acceptDrops(form, slots, status) {
  const on = (type, listener) => document.addEventListener(type, (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    listener(event);
  });
  on("dragover", () => form.classList.add("over"));
  on("dragleave", (event) => {
    if (event.relatedTarget === null) form.classList.remove("over");
  });
  on("drop", async (event) => {
    form.classList.remove("over");
    try {
      for (const file of [...event.dataTransfer.files].slice(0, Object.keys(SLOTS).length))
        slots[classify(new TextDecoder().decode(await readFile(file)))].drop(file);
    } catch (error) {
      tell(status, `${error.message}.`);
    }
  });
}

/** Which document a text looks like. What is none of them is taken for a bundle, and told so. */
function classify(text) {
  let fields = [];
  try {
    fields = Object.keys(JSON.parse(text) ?? {});
  } catch { /* no JSON */ }
  if (fields.includes("authority_set")) return "genesis";
  return fields.includes("envelope") || !fields.length ? "bundle" : "disclosure";
}
