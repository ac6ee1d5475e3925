// Examples: text whose tokens are shaded by how strongly a feature fires, with its value on hovering.
//
// A list of examples is one stop of the Tab key: up and down go from example to example, left and right from token to
// token, whose values are then said.

const hint = byId("hint");
let hinted = null; // the token whose value is shown

/** A token of running text. `strength` from 0 to 1 is how deep its shade is. */
function shadedToken(text, value, strength, peak = false) {
  const shown = text.split(/([\n\t\r])/).filter(Boolean);
  const parts = shown.map((part) => (SIGNS[part] ? element("i", { class: part === "\n" ? "break" : null }, SIGNS[part]) : part));
  const token = element("span", { class: peak ? "shaded peak" : value ? "shaded" : null }, parts);
  if (value) token.style.setProperty("--strength", strength.toFixed(3));
  Object.assign(token, { hintText: text, hintSaid: figure(value) });
  return token;
}

function showHint(token) {
  hinted = token;
  hint.replaceChildren(tokenSign(token.hintText), element("b", {}, token.hintSaid));
  hint.hidden = false;
  placeHint();
}

function placeHint() {
  if (!hinted) return;
  const place = hinted.getBoundingClientRect();
  const left = Math.min(Math.max(8, place.left), innerWidth - hint.offsetWidth - 8);
  const above = place.top - hint.offsetHeight - 6;
  hint.style.transform = `translate(${left}px, ${above > 4 ? above : place.bottom + 6}px)`;
}

function hideHint() {
  hinted = null;
  hint.hidden = true;
}

/** Shows values of the tokens in a node. */
function withHints(node) {
  node.addEventListener("pointerover", (event) => {
    const token = event.target.closest("span");
    if (token?.hintText !== undefined) showHint(token);
    else hideHint();
  });
  node.addEventListener("pointerleave", hideHint);
  return node;
}

// Going to an example scrolls to it, which is told late: the value of its token must not vanish.
addEventListener("scroll", placeHint, { capture: true, passive: true });

/** A list of examples of a feature. */
function exampleList(examples, texts, maximum, name) {
  const rows = examples.map((example) => exampleRow(example, texts, maximum));
  rows[0]?.setAttribute("tabindex", "0");
  const box = element("ol", { class: "examples", "aria-label": name }, rows.map((row) => element("li", {}, row)));
  box.addEventListener("keydown", (event) => walk(event, rows));
  return withHints(box);
}

function exampleRow(example, texts, maximum) {
  const tokens = example.tokens.map((token, i) =>
    shadedToken(texts[token], example.activations[i], example.activations[i] / maximum, i === example.peak),
  );
  const activation = figure(example.activations[example.peak]);
  const peak = tokenName(texts[example.tokens[example.peak]]);
  return element(
    "div",
    {
      class: "example",
      role: "group",
      tabindex: "-1",
      "aria-label": `${activation} on ${peak}, document ${example.document}, token ${example.position}`,
      onblur: hideHint,
    },
    element("span", { class: "value" }, activation),
    element("div", { class: "text" }, tokens),
    element("span", { class: "place", title: "row of the dataset : token of the document" }, `${example.document}:${example.position}`),
  );
}

function walk(event, rows) {
  const row = rows.indexOf(event.target.closest(".example"));
  const steps = { ArrowDown: 1, ArrowUp: -1 };
  if (event.key in steps) {
    const next = rows[row + steps[event.key]];
    if (!next) return;
    rows.forEach((other) => other.setAttribute("tabindex", other === next ? "0" : "-1"));
    next.focus();
  } else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
    step(rows[row], event.key === "ArrowRight" ? 1 : -1);
  } else return;
  event.preventDefault();
}

/** Goes to the next token of an example, from its peak at first. */
function step(row, by) {
  const tokens = [...row.querySelectorAll(".text > span")];
  const from = tokens.findIndex((token) => token.classList.contains("current"));
  const start = from < 0 ? tokens.findIndex((token) => token.classList.contains("peak")) - by : from;
  const token = tokens[Math.min(Math.max(start + by, 0), tokens.length - 1)];
  tokens.forEach((other) => other.classList.toggle("current", other === token));
  showHint(token);
  say(`${tokenName(token.hintText)} ${token.hintSaid}`);
}
