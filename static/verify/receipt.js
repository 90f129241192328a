// The button on a receipt's page: this receipt's proof, checked in place.
import { element, tell } from "./dom.js";
import { fetchBytes, readFile } from "./files.js";
import { report } from "./report.js";

let running = new AbortController();

/** Runs the checks that `button` asks for; its panel says how they went. */
export async function start(button) {
  const { proof, genesis, receipt } = button.dataset;
  const panel = document.getElementById(button.getAttribute("aria-controls"));
  const status = panel.querySelector("[role=status]");
  const output = panel.querySelector(".report");
  const check = async (readGenesis, isNodes) => {
    running.abort();
    running = new AbortController();
    const { signal } = running;
    try {
      tell(status, "Fetching the proof…");
      const files = { bundle: await fetchBytes(proof), genesis: await readGenesis(), disclosure: null };
      if (!signal.aborted)
        await report({ status, output, files, isNodes, expected: receipt, signal });
    } catch (error) {
      output.replaceChildren();
      tell(status, `The check broke off, and nothing was decided: ${error.message}.`);
    }
  };
  await check(() => fetchBytes(genesis), true);
  if (!panel.querySelector(".own")) panel.append(offerOwn((file) => check(() => readFile(file), false)));
}

/** The offer to check again, against a genesis that the reader holds. */
function offerOwn(check) {
  const file = element("input", { type: "file", id: "own-genesis", accept: ".json,application/json" });
  file.addEventListener("change", () => {
    if (file.files.length) check(file.files[0]);
  });
  const label = element("label", { for: file.id }, "Check again, against your own genesis file");
  return element("div", { class: "own" }, label, file);
}
