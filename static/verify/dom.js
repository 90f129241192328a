// Elements, and text that strangers wrote, made safe to look at.

const MAX_TEXT = 4096;
// Controls, format (bidi, zero width), surrogates, private use, unassigned, separators; characters
// that draw nothing though they are letters or marks; marks stacked higher than two. As format.py.
const HIDDEN = new RegExp(
  "\\p{Cc}|\\p{Cf}|\\p{Cs}|\\p{Co}|\\p{Cn}|\\p{Zl}|\\p{Zp}|(?! )\\p{Zs}" +
  "|[\\u034f\\u115f\\u1160\\u17b4\\u17b5\\u2800\\u3164\\uffa0\\u180b-\\u180d\\u180f\\ufe00-\\ufe0f]" +
  "|[\\u{e0100}-\\u{e01ef}]|(?<=[\\p{Mn}\\p{Me}]{2})[\\p{Mn}\\p{Me}]",
  "gu",
);

/** Text with everything that hides or reorders written as ⟨U+202E⟩, folded if it is long. */
export function visible(value) {
  const text = String(value);
  const name = (character) =>
    `⟨U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
  return text.slice(0, MAX_TEXT).replace(HIDDEN, name) + (text.length > MAX_TEXT ? "…" : "");
}

/** An element with attributes (true: present, false or null: left out) and children. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (value !== false && value !== null) made.setAttribute(name, value === true ? "" : value);
  made.append(...children);
  return made;
}

/** Says a sentence in a live region, without a verdict. */
export function tell(status, sentence) {
  status.className = "verdict";
  status.textContent = visible(sentence);
}

/** `640 bytes`, `1.2 KB`, `3.4 MB`. */
export function describeSize(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  return bytes < 1e6 ? `${(bytes / 1000).toFixed(1)} KB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

/** Integer micros with their word: `0.00038 credits`, `1 token`. */
export function describeMicros(micros, word) {
  const whole = Math.floor(micros / 1e6).toLocaleString("en");
  const number = `${whole}.${String(micros % 1e6).padStart(6, "0")}`.replace(/\.?0+$/, "");
  return `${number} ${word}${micros === 1e6 ? "" : "s"}`;
}

/** The two ends of a long name. */
export function short(text) {
  return text.length <= 20 ? text : `${text.slice(0, 10)}…${text.slice(-6)}`;
}
