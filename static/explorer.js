// Comforts on top of pages that are whole without them: theme, ages, "/", copying, tasks, pausing.
(() => {
  "use strict";

  const THEMES = ["system", "light", "dark"];
  const SILENCE_MS = 15000; // three heartbeats of a stream, as explorer_ui/live.py has them
  const root = document.documentElement;

  function readTheme() {
    try { return localStorage.getItem("theme"); } catch { return null; }
  }

  function applyTheme(theme) {
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    else delete root.dataset.theme;
  }

  applyTheme(readTheme()); // before the first paint: this script blocks on purpose

  function describeAge(ms) {
    const s = Math.floor(ms / 1000);
    if (s < 1) return "just now";
    if (s < 60) return `${s} s ago`;
    if (s < 3600) return `${Math.floor(s / 60)} min ago`;
    if (s < 86400) return `${Math.floor(s / 3600)} h ago`;
    return `${Math.floor(s / 86400)} d ago`;
  }

  function showAges() {
    for (const time of document.querySelectorAll("time[data-age]")) {
      time.title ||= `${time.textContent} UTC`;
      const text = describeAge(Date.now() - Date.parse(time.dateTime));
      if (time.textContent !== text) time.textContent = text;
    }
  }

  function addThemeButton() {
    const button = document.createElement("button");
    let theme = readTheme() ?? THEMES[0];
    const label = () => { button.textContent = `Theme: ${theme}`; };
    button.type = "button";
    button.addEventListener("click", () => {
      theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
      try { localStorage.setItem("theme", theme); } catch { /* private mode: this page only */ }
      applyTheme(theme);
      label();
    });
    label();
    document.getElementById("theme")?.append(button);
  }

  function addCopyButtons() {
    if (!navigator.clipboard) return; // plain HTTP on another machine has none
    for (const source of document.querySelectorAll("[data-copy]")) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "copy";
      button.textContent = "Copy";
      button.setAttribute("aria-label", `Copy the ${source.dataset.copy}`);
      button.addEventListener("click", async () => {
        try {
          await navigator.clipboard.writeText(source.textContent);
          button.textContent = "Copied";
        } catch {
          button.textContent = "Refused";
        }
        setTimeout(() => { button.textContent = "Copy"; }, 1500);
      });
      source.after(button);
    }
  }

  function focusSearchOnSlash(event) {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, textarea, select, [contenteditable]")) return;
    const field = document.getElementById("find");
    if (!field) return;
    event.preventDefault();
    field.focus();
    field.select();
  }

  // What was typed may be the beginning of an id or a name: the browser offers what there is.
  function addSuggestions() {
    const field = document.getElementById("find");
    const address = field?.form.dataset.suggest;
    if (!address) return;
    const offers = document.createElement("datalist");
    offers.id = "offers";
    field.after(offers);
    field.setAttribute("list", offers.id);
    let asked = new AbortController();
    let timer = 0;
    const forget = () => {
      clearTimeout(timer);
      asked.abort();
    };
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !offers.firstChild) return;
      event.preventDefault(); // it would empty the field; the next one does
      forget();
      offers.replaceChildren();
    });
    field.addEventListener("input", () => {
      forget();
      const typed = field.value.trim();
      if (typed.length < 2) return;
      timer = setTimeout(async () => {
        asked = new AbortController();
        try {
          const answer = await fetch(`${address}?q=${encodeURIComponent(typed)}`, { signal: asked.signal });
          const [, names] = await answer.json();
          offers.replaceChildren(...names.map((name) => new Option(name, name)));
        } catch { /* typed on, or cut off: a search works without */ }
      }, 150);
    });
  }

  // A live page says how it stands: live, paused, or left alone by its node, which closes its
  // connection, or falls silent with its whole host. While paused a swap is held back; the last one
  // held is made up for on resuming.
  function addLiveness() {
    const bar = document.getElementById("pause");
    if (!bar) return;
    const button = bar.querySelector("button");
    const note = bar.querySelector("[role=status]");
    const mark = document.createElement("span");
    mark.className = "state absent";
    mark.textContent = "stale";
    let paused = false;
    let held = null;
    let lost = "";
    let stream = null;
    let heard = 0; // when anything came; 0 where nothing more will

    function describe() {
      if (lost) return `The node has not answered since ${lost} UTC. This page shows what it said before, and goes on by itself.`;
      if (held) return "Paused: there is something newer.";
      return paused ? "This page stands still." : "This page is live.";
    }

    function hear(answers, since = Date.now()) {
      if (answers) heard = since;
      if (answers === !lost) return;
      lost = answers ? "" : new Date(since).toISOString().slice(11, 19);
      if (answers) mark.remove();
      else document.getElementById("status")?.prepend(mark);
      note.textContent = describe();
    }

    function listen() {
      if (document.hidden || !heard || Date.now() - heard < SILENCE_MS) return;
      hear(false, heard);
      heard = Date.now();
      stream?.reader?.cancel(); // asks for another one
    }

    document.addEventListener("htmx:before:response", (event) => {
      const { status, headers } = event.detail.ctx.response.raw;
      hear(status < 500);
      const goes = headers.get("HX-Trigger") || headers.get("Content-Type")?.startsWith("text/event-stream");
      if (status < 500 && !goes) heard = 0;
    });
    document.addEventListener("htmx:sse:after:connection", (event) => {
      stream = event.detail.connection;
      hear(true);
    });
    document.addEventListener("htmx:sse:after:message", () => hear(true));
    document.addEventListener("htmx:sse:close", () => { heard = 0; });
    document.addEventListener("visibilitychange", () => { if (heard) heard = Date.now(); });
    setInterval(listen, 1000);
    document.addEventListener("htmx:sse:error", (event) => {
      // No place for a stream: of one that broke off the node may not know yet.
      if (event.detail.status === 503) window.htmx.trigger(document.body, "poll");
      else hear(false);
    });
    document.addEventListener("htmx:error", () => hear(false));
    document.addEventListener("htmx:before:swap", (event) => {
      if (!paused) return;
      event.preventDefault();
      held = event.detail.ctx;
      note.textContent = describe();
    });
    button.addEventListener("click", async () => {
      paused = !paused;
      button.setAttribute("aria-pressed", String(paused));
      button.textContent = paused ? "Resume" : "Pause";
      const ctx = paused ? null : held;
      held = null;
      note.textContent = describe();
      if (ctx) await window.htmx.swap(ctx);
    });
    note.textContent = describe();
    button.hidden = false;
  }

  // What few readers ask for is fetched when they do: `data-module` exports start(button).
  function addTasks() {
    for (const button of document.querySelectorAll("button[data-module]")) {
      button.disabled = false;
      button.addEventListener("click", async () => {
        if (button.ariaBusy) return;
        button.ariaBusy = "true";
        try {
          const task = await import(button.dataset.module);
          await task.start(button);
        } catch {
          button.textContent = "This did not load: reload the page";
        }
        button.ariaBusy = null;
      });
    }
  }

  document.addEventListener("keydown", focusSearchOnSlash);
  document.addEventListener("htmx:after:swap", showAges);
  document.addEventListener("DOMContentLoaded", () => {
    showAges();
    addThemeButton();
    addCopyButtons();
    addTasks();
    addSuggestions();
    addLiveness();
    setInterval(() => { if (!document.hidden) showAges(); }, 1000);
  });
})();
