// A job's prompt and answer, for whoever holds its key, and the button that cancels it. The key
// stays in this page's memory: it is sent to this node alone, and forgotten with the page.
import { element, tell, visible } from "./verify/dom.js";

const TEXTS = { prompt: "Prompt", result: "Answer", error: "What its miner said" };
const REFUSALS = {
  401: "This key is unknown to this node, or was revoked.",
  403: "This key is good, but not for this job.",
  404: "This node does not know this job any more.",
  409: "It is too late: this job has ended.",
  429: "That were too many requests: try again in a moment.",
};

const place = document.getElementById("disclosure");
const address = place.dataset.job;
const key = element("input", { id: "key", type: "password", autocomplete: "off", spellcheck: "false", placeholder: "aik_…" });
const status = element("p", { class: "verdict", role: "status" });
const texts = element("div");

async function ask(path, method) {
  const headers = key.value ? { "X-Api-Key": key.value.trim() } : {};
  const answer = await fetch(path, { method, headers, cache: "no-store", credentials: "omit" });
  if (!answer.ok) throw new Error(REFUSALS[answer.status] ?? `The node answered with status ${answer.status}.`);
  return answer.json();
}

function showTexts(job) {
  const shown = Object.entries(TEXTS).filter(([name]) => typeof job[name] === "string");
  texts.replaceChildren(...shown.flatMap(([name, heading]) => {
    const text = element("pre", { dir: "auto", tabindex: "0", "hx-ignore": true });
    text.textContent = job[name].split("\n").map(visible).join("\n");
    return [element("h3", {}, heading), text];
  }));
  tell(status, shown.length ? "" : "This key may not read the texts of this job.");
}

function offer(label, run) {
  const button = element("button", { type: "button" }, label);
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      await run();
    } catch (error) {
      texts.replaceChildren();
      tell(status, error.message);
    }
    button.disabled = false;
  });
  return button;
}

const show = offer("Show", async () => showTexts(await ask(address, "GET")));
const cancel = offer("Cancel this job", async () => {
  await ask(`${address}/cancel`, "POST");
  tell(status, "It is cancelled.");
});
const label = element("label", { for: "key" }, "API key, kept in this page only");
const buttons = "open" in place.dataset ? [show, cancel] : [show];
place.prepend(element("div", { class: "filters" }, element("div", {}, label, key), ...buttons), status, texts);
