// The graph as a table: a row a layer, a column a token, a button a node, and lines to what the chosen one is linked with.

const graph = JSON.parse(byId("content").textContent);
const nodes = graph.nodes.map((node, row) => ({ ...node, row, inputs: [], outputs: [], button: null, pinned: graph.pinned.includes(node.name), group: null }));
for (const [target, source, weight] of graph.edges) {
  nodes[target].inputs.push({ node: nodes[source], weight });
  nodes[source].outputs.push({ node: nodes[target], weight });
}
for (const node of nodes) for (const links of [node.inputs, node.outputs]) links.sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));

// Lines that are drawn from one node at most; the panel lists all.
const LINES = 24;

const layers = [...new Set(nodes.filter((node) => node.layer !== null).map((node) => node.layer))].sort((a, b) => b - a);
const rowNames = ["logits", ...layers.map((layer) => `layer ${layer}`), "tokens"];
const grid = rowNames.map(() => graph.tokens.map(() => []));
const rowOf = (node) => (node.kind === "logit" ? 0 : node.kind === "embedding" ? rowNames.length - 1 : 1 + layers.indexOf(node.layer));
for (const node of nodes) grid[rowOf(node)][node.position].push(node);
const KINDS = { feature: 0, logit: 0, embedding: 0, error: 1 };
const strongest = Math.max(...nodes.filter((node) => node.kind === "feature" || node.kind === "error").map((node) => node.influence), 1e-9);
for (const row of grid) for (const cell of row) cell.sort((a, b) => KINDS[a.kind] - KINDS[b.kind] || b.influence - a.influence);

/** What a node is called in lists. */
function title(node) {
  if (node.kind === "group") return node.name;
  if (node.kind === "logit") return `${node.against === null ? "says " : ""}${tokenName(node.label)}`;
  if (node.kind === "embedding") return tokenName(node.label);
  if (node.kind === "error") return `error of ${node.source}`;
  return node.label || `${node.source}/${node.feature}`;
}

/** A logit's probability; of the difference of two, which has none, its value. */
const logitFigure = (node) => (node.against === null ? percent(node.probability) : figure(node.value));

/** All of it in words, for screen readers and hints. */
function inWords(node) {
  if (node.kind === "group") return `group ${node.name}, ${count(node.members.length)} nodes`;
  const grouped = node.group ? `, in group ${node.group.name}` : "";
  return `${inWordsAlone(node)}${grouped}${node.pinned ? ", pinned" : ""}`;
}

function inWordsAlone(node) {
  if (node.kind === "logit") return node.against === null ? `logit of ${tokenName(node.label)}, probability ${logitFigure(node)}` : `difference of logits ${tokenName(node.label)}, ${logitFigure(node)}`;
  const at = `at token ${node.position} ${tokenName(graph.tokens[node.position])}`;
  if (node.kind === "embedding") return `token ${tokenName(node.label)} at ${node.position}, influence ${percent(node.influence)}`;
  if (node.kind === "error") return `error of ${node.source} ${at}, influence ${percent(node.influence)}`;
  return `feature ${node.source}/${node.feature}${node.label ? ` “${node.label}”` : ""} ${at}, value ${figure(node.value)}, influence ${percent(node.influence)}`;
}

function nodeButton(node) {
  const named = node.kind === "logit" || node.kind === "embedding";
  const parts = node.label.split(/([\n\t\r ])/).filter(Boolean);
  const text = named ? parts.map((part) => (SIGNS[part] ? element("i", {}, SIGNS[part]) : part)) : [];
  if (node.kind === "logit") text.push(element("i", {}, ` ${logitFigure(node)}`));
  node.button = element("button", {
    type: "button",
    class: `node ${node.kind}`,
    id: `node-${node.row}`,
    tabindex: "-1",
    "aria-pressed": "false",
    "aria-label": inWords(node),
    "--strength": Math.min(1, node.influence / strongest).toFixed(3),
  }, text);
  return node.button;
}

function buildTable() {
  const rows = grid.map((cells, row) =>
    element("tr", {}, element("th", { scope: "row" }, rowNames[row]), cells.map((cell) => element("td", {}, element("div", { class: "cell" }, cell.map(nodeButton))))),
  );
  byId("grid").append(element("caption", { class: "unseen" }, "Nodes by layer and token"), element("tbody", {}, rows));
}

const visible = (one) => (one.kind === "group" ? one.members.some(visible) : !one.button.hidden);

/** Draws lines from a node or a group to what goes into it and comes out of it, and marks those. */
function draw(node) {
  const lines = byId("lines"), scroller = byId("scroller");
  for (const other of nodes) other.button.classList.remove("linked", "against");
  lines.replaceChildren();
  if (!node || !visible(node)) return;
  const frame = scroller.getBoundingClientRect();
  const middle = (one) => {
    const boxes = membersOf(one).filter(visible).map((member) => member.button.getBoundingClientRect());
    const mean = (at) => boxes.reduce((sum, box) => sum + at(box), 0) / boxes.length;
    return [mean((box) => box.left + box.width / 2) - frame.left + scroller.scrollLeft, mean((box) => box.top + box.height / 2) - frame.top + scroller.scrollTop];
  };
  lines.setAttribute("width", byId("grid").offsetWidth);
  lines.setAttribute("height", byId("grid").offsetHeight);
  for (const links of [linksOf(node, "inputs"), linksOf(node, "outputs")]) {
    const seen = links.filter((link) => visible(link.node)).slice(0, LINES);
    const most = Math.abs(seen[0]?.weight ?? 1);
    for (const { node: other, weight } of seen) {
      const [x, y] = middle(node), [u, v] = middle(other), half = (y + v) / 2;
      const against = weight < 0;
      lines.append(drawing("path", { d: `M${x} ${y}C${x} ${half} ${u} ${half} ${u} ${v}`, class: against ? "against" : null, "stroke-width": (0.6 + (3.4 * Math.abs(weight)) / most).toFixed(2) }));
      for (const member of membersOf(other)) {
        member.button.classList.add("linked");
        member.button.classList.toggle("against", against);
      }
    }
  }
}
