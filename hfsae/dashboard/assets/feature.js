// The page of one feature.

const BANDS = ["The strongest fifth", "The second fifth", "The middle fifth", "The fourth fifth", "The weakest fifth"];
let breaksShown = false;

/** A link to a feature, by its label or the tokens it fires on most. */
function featureLink(feature) {
  const entry = byFeature.get(feature);
  if (!entry) return element("span", { class: "feature-link" }, element("span", { class: "number" }, String(feature)), "not collected");
  const label = labelOf(feature);
  const name = label || (entry.peaks.length ? entry.peaks.slice(0, 3).map(tokenSign) : "never fires");
  return element("a", { class: "feature-link", href: `#feature/${feature}` }, element("span", { class: "number" }, String(feature)), element("span", { class: "named" }, name));
}

function featurePage(entry, data) {
  return [heading(entry), statistics(entry, data), sourcesSection(data), ...(entry.density ? firingSections(entry, data) : []), neighbourSection(entry, data), matchSection(entry)];
}

function firingSections(entry, data) {
  const effects = data.promoted.length
    ? [effectList(data.promoted, "Makes likelier", "promoted"), effectList(data.suppressed, "Makes less likely", "suppressed")]
    : [element("p", { class: "quiet" }, data.sources ? "Each source has its own: see the table above." : "The output at this place does not reach the logits directly.")];
  return [
    element(
      "div",
      { class: "columns" },
      element("section", { class: "activations" }, element("h2", {}, "Activations"), activationHistogram(data, entry.maximum)),
      element("section", { class: "logits" }, element("h2", {}, "Direct effect on logits"), element("div", { class: "sides" }, effects), data.promoted.length && about.left_out_note ? element("p", { class: "quiet left-out-note" }, about.left_out_note) : null),
    ),
    element(
      "section",
      {},
      element("div", { class: "section-head" }, element("h2", {}, "Strongest examples"), breaksButton()),
      exampleList(data.top, data.texts, entry.maximum, "Strongest examples"),
    ),
    element(
      "section",
      {},
      element("h2", {}, "Across its range"),
      element("p", { class: "quiet" }, "A random sample of the contexts in which it fires, from strong to weak."),
      data.bands.map((band, i) => bandSection(band, i, entry, data)),
    ),
  ];
}

function bandSection(band, number, entry, data) {
  if (!band.length) return null;
  const values = band.map((example) => example.activations[example.peak]);
  const range = element("span", { class: "quiet" }, `${figure(values.at(-1))} to ${figure(values[0])}`);
  return [element("h3", { class: "band" }, BANDS[number], " ", range), exampleList(band, data.texts, entry.maximum, BANDS[number])];
}

/** Line breaks as signs alone, which is short, or as breaks. */
function breaksButton() {
  const apply = () => document.body.classList.toggle("breaks", breaksShown);
  apply();
  const toggle = (event) => {
    breaksShown = !breaksShown;
    event.currentTarget.setAttribute("aria-pressed", String(breaksShown));
    apply();
  };
  return element("button", { type: "button", class: "plain", "aria-pressed": String(breaksShown), onclick: toggle }, "Line breaks");
}

function heading(entry) {
  const box = element("header", { class: "feature-head" });
  const read = () => {
    const label = labelOf(entry.feature);
    box.replaceChildren(
      element("p", { class: "number" }, label ? `Feature ${entry.feature}` : "Unlabelled"),
      element("div", { class: "headline" }, element("h1", { tabindex: "-1" }, label || `Feature ${entry.feature}`), editButton(label)),
      toldOf(entry.feature) ? element("p", { class: "quiet explained" }, toldOf(entry.feature)) : "",
    );
  };
  const editButton = (label) =>
    element("button", { type: "button", class: "plain edit", "aria-keyshortcuts": "e", onclick: edit }, label ? "Edit label" : "Add a label");
  const edit = () => {
    const input = element("input", { type: "text", value: labelOf(entry.feature), "aria-label": `Label of feature ${entry.feature}`, maxlength: "200" });
    const done = (keep) => {
      if (keep) {
        setLabel(entry.feature, input.value.trim());
        list.draw();
        say(input.value.trim() ? "Label kept; save labels to write the file" : "Label removed");
      }
      read();
      box.querySelector(".edit").focus();
    };
    const form = element(
      "form",
      { class: "headline", onsubmit: (event) => (event.preventDefault(), done(true)), onkeydown: (event) => event.key === "Escape" && done(false) },
      input,
      element("button", { type: "submit" }, "Keep"),
      element("button", { type: "button", class: "plain", onclick: () => done(false) }, "Cancel"),
    );
    box.replaceChildren(element("p", { class: "number" }, `Feature ${entry.feature}`), form);
    input.select();
  };
  read();
  return box;
}

function statistics(entry, data) {
  if (!entry.density) {
    return element("p", { class: "never" }, `Fires on none of the ${count(about.n_tokens)} tokens that were read.`);
  }
  const facts = [
    ["Fires on", percent(entry.density), `1 token in ${count(Math.round(1 / entry.density))}`],
    ["Largest activation", figure(entry.maximum), "over all tokens"],
    ["Mean", figure(data.mean), "where it fires"],
    ["Tokens", count(data.tokens_firing), `of ${count(about.n_tokens)}`],
  ];
  return element(
    "dl",
    { class: "facts-row" },
    facts.map(([name, value, more]) => element("div", {}, element("dt", {}, name), element("dd", {}, value, element("small", {}, more)))),
  );
}

/** Of a crosscoder: what each of its sources has of the feature. */
function sourcesSection(data) {
  if (!data.sources) return null;
  const head = ["", "Decoder norm", "In its error (β)", "In its reconstruction (β)", "Makes likelier"];
  const row = (source) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, source.name),
      [source.norm, source.error, source.reconstruction].map((value) => element("td", {}, figure(value))),
      element("td", { class: "tokens" }, source.promoted.length ? source.promoted.map(tokenSign) : "–"),
    );
  const names = element("tr", {}, head.map((name) => element("th", { scope: "col" }, name)));
  return element(
    "section",
    { class: "sources" },
    element("h2", {}, "In each source: ", data.kind),
    element("div", { class: "scrolled" }, element("table", {}, element("thead", {}, names), element("tbody", {}, data.sources.map(row)))),
  );
}

/** The features of other SAEs that are the same: links where their pages stand, which a page on the web has not. */
function matchSection(entry) {
  if (!index.matches.length) return null;
  const row = ({ name, page, chance, pairs }) => {
    const [theirs, cosine] = pairs[entry.feature] ?? [];
    if (theirs === undefined) return element("li", {}, name, element("span", { class: "value" }, "no partner"));
    const shown = [element("span", { class: "number" }, String(theirs)), element("span", { class: "named" }, name)];
    const link = page ? element("a", { class: "feature-link", href: `${page}#feature/${theirs}` }, shown) : element("span", { class: "feature-link" }, shown);
    return element("li", { "--share": Math.max(0, cosine).toFixed(3) }, link, element("span", { class: "value", title: `random directions have ${figure(chance)}` }, figure(cosine)));
  };
  const told = element("p", { class: "quiet" }, "Its partner in each, by the cosine of decoder rows.");
  return element("section", {}, element("h2", {}, "In other SAEs"), told, element("ol", { class: "neighbours matches" }, index.matches.map(row)));
}

function neighbourSection(entry, data) {
  const cosine = ([feature, value]) => [feature, value, figure(value)];
  const columns = [
    ["Writes alike", "cosine of decoder rows", data.decoder_neighbours.map(cosine)],
    ["Reads alike", "cosine of encoder rows", data.encoder_neighbours.map(cosine)],
    ["Fires together", "most telling first", data.co_firing.slice(0, 10).map(([feature, share]) => [feature, share, percent(share)])],
  ];
  const row = ([feature, value, shown]) =>
    element("li", { "--share": Math.max(0, value).toFixed(3) }, featureLink(feature), element("span", { class: "value" }, shown));
  const column = ([name, what, rows]) =>
    element(
      "section",
      {},
      element("h3", {}, name, " ", element("span", { class: "quiet" }, what)),
      rows.length ? element("ol", {}, rows.map(row)) : element("p", { class: "quiet" }, "None."),
    );
  const place = placeOnMap.has(entry.feature) ? element("a", { href: `#map/${entry.feature}` }, "On the map") : null;
  return element("section", {}, element("div", { class: "section-head" }, element("h2", {}, "Neighbours"), place), element("div", { class: "neighbours" }, columns.map(column)));
}
