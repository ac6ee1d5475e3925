// Why heads look where they do: terms of two nodes each, which together are a score.

function attentionSections() {
  return graph.attention.map((found) => {
    const at = (position) => [`token ${position} `, tokenSign(graph.tokens[position])];
    const most = Math.max(...found.terms.map((term) => Math.abs(term.value)), 1e-12);
    return element(
      "section",
      { class: "attention" },
      element("h3", {}, `Why head ${found.head} of layer ${found.layer} looks there`),
      element("p", {}, "From ", at(found.query), " at ", at(found.key), `: ${percent(found.probability)} of its attention, a score of ${figure(found.score)} before the softmax.`),
      element("ol", { class: "links terms" }, found.terms.map((term) => termRow(term, most))),
      element("p", { class: "quiet" }, `All other terms are ${signed(found.left_out)} together; the sum misses the score by ${figure(found.error)}.`),
    );
  });
}

function termRow({ query, key, value }, most) {
  return element(
    "li",
    { class: value < 0 ? "against" : null, "--share": (Math.abs(value) / most).toFixed(3) },
    element("span", { class: "pair" }, ofTerm(query), " × ", ofTerm(key)),
    element("span", { class: "value" }, signed(value)),
  );
}

/** A node of a term: a button where the page has it, else its name. */
function ofTerm(name) {
  const node = nodes.find((one) => one.name === name);
  if (!node) return element("span", {}, name);
  return element("button", { type: "button", class: "plain", title: place(node), onclick: () => choose(node, true) }, title(node));
}
