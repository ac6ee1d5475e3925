// Puts the page together: what the address names is chosen, what the slider hides is hidden, arrows go from node to node.

let chosen = null;
let stop = null; // the node that Tab comes to
const prune = byId("prune"), panel = byId("panel");

function applySlider() {
  const limit = Number(prune.value) / 100;
  let features = 0;
  for (const node of nodes) {
    const fixed = node.kind === "logit" || node.kind === "embedding" || node.pinned || node.group || node === chosen;
    node.button.hidden = !fixed && (node.share > limit || (node.kind === "error" && !byId("errors").checked));
    if (node.kind === "feature" && !node.button.hidden) features += 1;
  }
  byId("shown").textContent = `${prune.value}%, ${count(features)} features`;
  if (!stop || !visible(stop)) stopAt(nodes.find((node) => node.kind === "logit"));
  draw(chosen);
}

function stopAt(node) {
  stop?.button.setAttribute("tabindex", "-1");
  stop = node;
  stop.button.setAttribute("tabindex", "0");
}

/** Shows a node in the panel; with `go` the focus goes there. */
function choose(node, go = false) {
  location.hash = node ? `${node.kind === "group" ? "group" : "node"}/${node.name}` : "";
  show(node, go);
}

function show(node, go) {
  for (const member of chosen ? membersOf(chosen) : []) member.button.setAttribute("aria-pressed", "false");
  chosen = node;
  panel.replaceChildren(...(node ? nodePanel(node) : wholePanel()));
  panel.scrollTop = 0;
  applySlider();
  if (go) panel.querySelector("h2").focus({ preventScroll: true });
  if (!node) return;
  for (const member of membersOf(node)) member.button.setAttribute("aria-pressed", "true");
  stopAt(membersOf(node)[0]);
  say(inWords(node));
}

function togglePin(node) {
  node.pinned = !node.pinned;
  const button = byId("pin");
  if (button && node === chosen) {
    button.textContent = node.pinned ? "Unpin" : "Pin";
    button.setAttribute("aria-pressed", String(node.pinned));
  }
  showPicked();
  say(`${node.pinned ? "pinned" : "unpinned"} ${title(node)}`);
  applySlider();
}

/** The node that an arrow leads to: along the row, or to the nearest column of the next row that has any. */
function neighbour(node, key) {
  const row = rowOf(node);
  if (key === "ArrowLeft" || key === "ArrowRight") {
    const line = grid[row].flat().filter(visible);
    return line[line.indexOf(node) + (key === "ArrowRight" ? 1 : -1)];
  }
  const step = key === "ArrowUp" ? -1 : 1;
  for (let next = row + step; grid[next]; next += step) {
    const line = grid[next].flat().filter(visible);
    if (line.length) return line.reduce((best, one) => (Math.abs(one.position - node.position) < Math.abs(best.position - node.position) ? one : best));
  }
}

const nodeOf = (target) => (target.closest?.(".node") ? nodes[Number(target.closest(".node").id.slice(5))] : null);

function route() {
  const [, kind, name] = /^(node|group)\/(.*)$/s.exec(decodeURIComponent(location.hash.slice(1))) ?? [];
  const node = (kind === "group" ? groups : nodes).find((one) => one.name === name) ?? null;
  if (node !== chosen || !panel.querySelector("h2")) show(node, false);
}

buildTable();
for (const [name, members] of Object.entries(graph.supernodes)) putInto(name, nodes.filter((node) => members.includes(node.name)));
showPicked();
const table = byId("grid");
table.addEventListener("click", (event) => nodeOf(event.target) && choose(nodeOf(event.target)));
table.addEventListener("pointerover", (event) => {
  const node = nodeOf(event.target);
  if (!node) return;
  draw(node);
  Object.assign(node.button, { hintText: title(node), hintSaid: node.kind === "feature" ? figure(node.value) : node.kind === "logit" ? logitFigure(node) : percent(node.influence) });
  hinted = node.button;
  hint.replaceChildren(element("span", {}, inWords(node)));
  hint.hidden = false;
  placeHint();
});
table.addEventListener("pointerout", (event) => {
  if (!nodeOf(event.target)) return;
  hideHint();
  draw(chosen);
});
table.addEventListener("focusin", (event) => {
  const node = nodeOf(event.target);
  if (node) stopAt(node), draw(node);
});
table.addEventListener("keydown", (event) => {
  const node = nodeOf(event.target);
  if (!node || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "p") togglePin(node);
  else if (event.key === "g") choose(node), byId("group-name").focus();
  else if (event.key.startsWith("Arrow")) {
    const next = neighbour(node, event.key);
    if (next) next.button.focus(), say(inWords(next));
  } else return;
  event.preventDefault();
});
prune.addEventListener("input", applySlider);
byId("errors").addEventListener("change", applySlider);
byId("skip").addEventListener("click", () => panel.focus());
byId("keys").addEventListener("click", (event) => {
  byId("help").hidden = !byId("help").hidden;
  event.currentTarget.setAttribute("aria-expanded", String(!byId("help").hidden));
});
addEventListener("keydown", (event) => event.key === "Escape" && chosen && choose(null));
addEventListener("hashchange", route);
addEventListener("resize", () => draw(chosen));
byId("scroller").scrollLeft = byId("scroller").scrollWidth; // what the model says stands at the end
byId("figures").textContent = `replacement ${figure(graph.figures.replacement)} · completeness ${figure(graph.figures.completeness)}`;
route();
