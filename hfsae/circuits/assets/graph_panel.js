// The panel: the graph as a whole, or the node that was chosen.

const pair = (name, value) => element("div", {}, element("dt", {}, name), element("dd", {}, value));

// Links that a list shows before it is asked for all.
const SHOWN = 20;

const signed = (weight) => `${weight > 0 ? "+" : ""}${figure(weight)}`;

function linkList(links, name, empty, inFigures = signed) {
  if (!links.length) return element("section", {}, element("h3", {}, name), element("p", { class: "quiet" }, empty));
  const list = element("ol", { class: "links" }, linkRows(links.slice(0, SHOWN), links, inFigures));
  const section = element("section", {}, element("h3", {}, name), list);
  if (links.length > SHOWN) {
    const more = element("button", { type: "button", class: "plain" }, `All ${count(links.length)}`);
    more.addEventListener("click", () => {
      list.append(...linkRows(links.slice(SHOWN), links, inFigures));
      list.children[SHOWN].querySelector("button").focus();
      more.remove();
    });
    section.append(more);
  }
  return section;
}

function linkRows(some, links, inFigures) {
  const most = Math.abs(links[0].weight);
  return some.map(({ node, weight }) =>
    element(
      "li",
      { class: weight < 0 ? "against" : null, "--share": (Math.abs(weight) / most).toFixed(3) },
      element("button", { type: "button", onclick: () => choose(node, true) }, element("span", { class: "named" }, title(node)), element("small", {}, place(node)), element("span", { class: "value" }, inFigures(weight))),
    ),
  );
}

const place = (node) =>
  node.kind === "group" ? `${count(node.members.length)} nodes` : node.kind === "logit" ? "" : node.kind === "embedding" ? `token ${node.position}` : `layer ${node.layer}, token ${node.position} ${tokenName(graph.tokens[node.position])}`;

function nodePanel(node) {
  if (node.kind === "group") return groupPanel(node);
  const facts = [];
  if (node.kind === "feature") facts.push(pair("activation", figure(node.value)));
  if (node.kind === "logit" && node.against === null) facts.push(pair("probability", logitFigure(node)));
  if (node.kind === "logit") facts.push(pair(graph.about.values, figure(node.value)));
  if (node.kind !== "logit") facts.push(pair("influence", percent(node.influence)));
  if (node.kind === "feature" || node.kind === "logit") {
    facts.push(pair("from biases", figure(node.constant)));
    if (node.left_out) facts.push(pair("from what is not shown", figure(node.left_out)));
  }
  const pin = element("button", { type: "button", id: "pin", "aria-pressed": String(node.pinned), onclick: () => togglePin(node) }, node.pinned ? "Unpin" : "Pin");
  const dashboard = graph.dashboards[node.source];
  const sections = [
    element("div", { class: "headline" }, element("h2", { tabindex: "-1" }, title(node)), pin),
    element("p", { class: "quiet" }, place(node), node.label && node.kind === "feature" ? `, ${node.source}/${node.feature}` : null),
    element("dl", { class: "facts-row" }, facts),
    groupField(node.group ? "Move" : "Add", node.group?.name ?? "", (name) => regroup([node], name) && choose(node, true)),
  ];
  if (node.group) {
    const { group } = node;
    const leave = () => { takeOut(node); showPicked(); say(`out of group ${group.name}`); show(node, true); };
    sections.push(element("p", { class: "quiet" }, "In ", element("button", { type: "button", class: "plain", onclick: () => choose(group, true) }, group.name), element("button", { type: "button", class: "plain", id: "leave", onclick: leave }, "Take out")));
  }
  if (node.kind === "feature" && dashboard) sections.push(element("p", {}, element("a", { href: `${dashboard}#feature/${node.feature}` }, "Its page in the dashboard")));
  if (node.kind === "feature" || node.kind === "logit") sections.push(linkList(linksOf(node, "inputs"), "Made by", "Nothing that is shown."));
  if (node.kind !== "logit") sections.push(linkList(linksOf(node, "outputs"), "Goes into", "Nothing that is shown."));
  const collected = graph.features[`${node.source}/${node.feature}`];
  if (node.kind === "feature" && collected) sections.push(...examples(collected));
  return sections;
}

function examples(collected) {
  const found = [];
  if (collected.top.length) found.push(element("section", {}, element("h3", {}, "Fires most on"), exampleList(collected.top, graph.texts, collected.maximum, "Strongest examples")));
  if (collected.promoted.length) found.push(element("section", {}, element("h3", {}, "Makes likelier by itself"), element("p", {}, collected.promoted.map(([text]) => tokenSign(text))), collected.left_out_note ? element("p", { class: "quiet left-out-note" }, collected.left_out_note) : null));
  return found;
}

function wholePanel() {
  const { figures, validation } = graph;
  const sections = [
    element("h2", { tabindex: "-1" }, "What the model says, and why"),
    element("p", {}, "Every dot is a feature that fires at a token. Choose one, or a token that the model says, to see what makes it and what it goes into."),
    element(
      "dl",
      { class: "facts-row" },
      pair("replacement score", figure(figures.replacement)),
      pair("completeness score", figure(figures.completeness)),
      pair("relative error of sums", figure(figures.error_features)),
      pair("logits differ by", figure(figures.error_logits)),
    ),
    element("p", { class: "quiet" }, `${count(figures.active)} features fire; ${count(figures.features)} are in the graph, ${count(figures.shown)} on this page.`),
  ];
  if (validation) sections.push(validationSection(validation));
  const said = nodes.filter((node) => node.kind === "logit");
  const differs = said.some((node) => node.against !== null);
  sections.push(linkList(said.map((node) => ({ node, weight: differs ? node.value : node.probability })), differs ? "Explained difference" : "It says", "", differs ? signed : percent));
  const most = nodes.filter((node) => node.kind === "feature").sort((a, b) => b.influence - a.influence).slice(0, 15);
  sections.push(linkList(most.map((node) => ({ node, weight: node.influence })), "Features with most influence", "No feature fires.", percent));
  sections.push(...attentionSections());
  if (graph.notes.length) sections.push(element("section", {}, element("h3", {}, "Notes"), element("ul", { class: "notes" }, graph.notes.map((note) => element("li", {}, note)))));
  return sections;
}

function validationSection({ strongest: own, others }) {
  const row = (name, found) => element("p", {}, `${name}: predicted and measured changes correlate by ${figure(found.correlation)}, direct edges alone by ${figure(found.direct)}; a change is ${figure(found.mean_change)} on average (${count(found.n)} features).`);
  return element("section", {}, element("h3", {}, "Held against the model"), row("The strongest features, taken away one by one", own), row("Others of like activation", others));
}
