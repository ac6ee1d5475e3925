// The first page: what was collected, and how to get about.

function overviewPage() {
  const dead = features.filter((entry) => entry.density === 0).length;
  const labelled = features.filter((entry) => labelOf(entry.feature)).length;
  const facts = [
    ["Features", count(features.length), features.length < about.n_features ? `of ${count(about.n_features)}` : "all of the SAE's"],
    ["Read on", count(about.n_tokens), "tokens"],
    // A comparison shows few features of each class, and counts the dead among all of them below.
    ...(index.comparison ? [] : [["Living", count(features.length - dead), percent(1 - dead / features.length)], ["Never fire", count(dead), percent(dead / features.length)]]),
    ["Labelled", count(labelled), percent(labelled / features.length)],
  ];
  const origin = [
    ...languageModels(),
    ["Reads at", about.hook_point],
    ["Text", about.dataset],
    ["Lists of tokens", about.left_out_note],
    ["Context", `${about.context_length} tokens`],
    ["Model read in", about.model_precision],
    ["Weights", `SHA-256 ${about.weights_sha256.slice(0, 12)}`],
  ];
  const keys = [
    ["/", "search"],
    ["j", "next feature"],
    ["k", "previous feature"],
    ["e", "edit the label"],
    ["↑ ↓", "from example to example"],
    ["← →", "from token to token"],
  ];
  const pair = ([name, value, more]) => element("div", {}, element("dt", {}, name), element("dd", {}, value, more ? element("small", {}, more) : null));
  return [
    element("header", { class: "feature-head" }, element("h1", { tabindex: "-1" }, index.title)),
    linksBeside(),
    element("dl", { class: "facts-row" }, facts.map(pair)),
    measuredSection(pair),
    classesSection(),
    element("section", {}, element("h2", {}, "How often features fire"), densityHistogram()),
    element(
      "div",
      { class: "columns even" },
      element("section", {}, element("h2", {}, "Where they are from"), element("dl", { class: "pairs" }, origin.filter(([, value]) => value).map(pair))),
      element("section", {}, element("h2", {}, "Keys"), element("dl", { class: "pairs keys" }, keys.map(([key, what]) => element("div", {}, element("dt", {}, key.split(" ").map((one) => element("kbd", {}, one))), element("dd", {}, what))))),
    ),
  ];
}

/** The card and the report, where they lie beside the page: on the web a page is by itself. */
function linksBeside() {
  if (!index.links.length || location.protocol !== "file:") return null;
  return element("p", { class: "beside" }, index.links.map(([name, href]) => element("a", { href }, name)));
}

/** What was measured of the SAE, each figure with where good SAEs lie. */
function measuredSection(pair) {
  if (!index.measured.length) return null;
  const rows = index.measured.map(({ title, value, healthy, outside }) => pair([title, figure(value), healthy && `${outside ? "outside of " : ""}healthy ${healthy}`]));
  return element("section", {}, element("h2", {}, "Measured"), element("dl", { class: "facts-row" }, rows));
}

/** The language model, or that of each source that a crosscoder compares. */
function languageModels() {
  const models = Object.entries(index.comparison?.models ?? {});
  return models.length ? models.map(([source, model]) => [`Language model, ${source}`, model]) : [["Language model", about.base_model]];
}

/** Of a crosscoder: how many of its features each class has. */
function classesSection() {
  if (!index.comparison) return null;
  const head = ["Class", "By norms", "After latent scaling", "By scaling alone"];
  const row = ([kind, ...numbers]) => element("tr", {}, element("th", { scope: "row" }, kind), numbers.map((number) => element("td", {}, count(number))));
  return element(
    "section",
    { class: "sources" },
    element("h2", {}, "What its sources share"),
    element(
      "div",
      { class: "scrolled" },
      element(
        "table",
        {},
        element("thead", {}, element("tr", {}, head.map((name) => element("th", { scope: "col" }, name)))),
        element("tbody", {}, index.comparison.classes.map(row)),
      ),
    ),
  );
}
