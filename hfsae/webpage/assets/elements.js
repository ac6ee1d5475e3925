// Elements, numbers and tokens as people read them. All text goes in as text nodes: nothing is ever parsed as HTML.

/** An element with attributes and children; functions under `on...` listen, false and null leave an attribute out. */
function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
function drawing(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) node.style.setProperty(name, value);
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

const byId = (id) => document.getElementById(id);

/** Tells screen readers. */
function say(text) {
  byId("said").textContent = text;
}

const count = (value) => value.toLocaleString("en");

// What stands in the place of a figure that is none.
const NOT_KNOWN = "not known";

/** Three significant digits. */
function figure(value) {
  if (value === null) return NOT_KNOWN;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  if (size < 0.001) return value.toExponential(1).replace("-", "−");
  return String(Number(value.toPrecision(3))).replace("-", "−");
}

/** A share as a percentage. */
function percent(share) {
  if (share === null) return NOT_KNOWN;
  const value = share * 100;
  if (value === 0) return "0%";
  const rounded = Number(value.toPrecision(value >= 10 ? 3 : 2));
  return rounded < 0.0001 ? "< 0.0001%" : `${rounded}%`;
}

// Spaces of a token are seen one by one up to so many; beyond that their number is more telling.
const SPACES_SHOWN = 3;

const SIGNS = { " ": "·", "\n": "↵", "\t": "⇥", "\r": "␍" };

/** A token by itself, its spaces seen. */
function tokenSign(text) {
  if (text === "") return element("code", { class: "token none", title: "part of a character" }, "…");
  const parts = text.split(/( +|[\n\t\r])/).filter(Boolean);
  return element("code", { class: "token" }, parts.map((part) => (/\s/.test(part) ? element("i", {}, spaceSign(part)) : part)));
}

const spaceSign = (spaces) => (spaces.length > SPACES_SHOWN ? `·×${spaces.length}` : spaces.replace(/./gs, (space) => SIGNS[space] ?? space));

/** A token in words, for hints and screen readers. */
const tokenName = (text) => (text === "" ? "part of a character" : `“${text.replace(/ +|[\n\t\r]/g, spaceSign)}”`);
