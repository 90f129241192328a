// The page /redoc: ReDoc, to read and to search.
import { show } from "./document.js";

// ReDoc's menu shows a picture from its maker's host, and has no option that leaves it out. The
// policy would block it, with an error in the console of every reader: so it is never asked for.
const { setAttribute } = Element.prototype;
const src = Object.getOwnPropertyDescriptor(HTMLImageElement.prototype, "src");

function isOurs(address) {
  const { protocol, origin } = new URL(address, location.href);
  return protocol === "data:" || origin === location.origin;
}

HTMLImageElement.prototype.setAttribute = function (name, value) {
  if (name !== "src" || isOurs(value)) setAttribute.call(this, name, value);
};
Object.defineProperty(HTMLImageElement.prototype, "src", {
  ...src,
  set(value) { if (isOurs(value)) src.set.call(this, value); },
});

show((spec, place) => {
  window.Redoc.init(spec, { hideDownloadButton: true, nativeScrollbars: true, scrollYOffset: ".bar" }, place);
});
