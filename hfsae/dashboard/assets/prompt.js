// The page of a prompt: which features fire where in it.

const RANKINGS = {
  relative: "share of its maximum",
  strongest: "activation",
  tokens: "number of tokens",
  rare: "rarity",
};
const promptState = { feature: null, token: null, ranking: "relative" };

/** What each feature does in a prompt. */
function firingIn(prompt) {
  const firing = new Map();
  prompt.features.forEach((numbers, token) =>
    numbers.forEach((feature, i) => {
      if (!firing.has(feature)) firing.set(feature, { feature, values: new Map(), strongest: 0 });
      const entry = firing.get(feature);
      entry.values.set(token, prompt.activations[token][i]);
      entry.strongest = Math.max(entry.strongest, prompt.activations[token][i]);
    }),
  );
  for (const entry of firing.values()) {
    const known = byFeature.get(entry.feature);
    entry.maximum = Math.max(known?.maximum ?? 0, entry.strongest);
    entry.density = known?.density ?? 0;
  }
  return firing;
}

function ranked(entries, token) {
  const value = (entry) => (token === null ? entry.strongest : entry.values.get(token));
  const keys = {
    relative: (entry) => value(entry) / entry.maximum,
    strongest: value,
    tokens: (entry) => entry.values.size,
    rare: (entry) => -entry.density,
  };
  const key = keys[promptState.ranking];
  return entries.sort((a, b) => key(b) - key(a) || value(b) - value(a) || a.feature - b.feature);
}

function promptPage(number) {
  const prompt = index.prompts[number];
  const firing = firingIn(prompt);
  Object.assign(promptState, { feature: null, token: null });
  const text = element("div", { class: "prompt-text", role: "listbox", tabindex: "0", "aria-label": "Tokens of the prompt", "aria-orientation": "horizontal" });
  const side = element("div", { class: "prompt-features" });

  const draw = () => {
    const shown = firing.get(promptState.feature);
    text.replaceChildren(
      ...prompt.tokens.map((token, i) => {
        const value = shown ? shown.values.get(i) ?? 0 : 0;
        const node = shadedToken(token, value, shown ? value / shown.maximum : 0);
        const chosen = promptState.token === i;
        node.classList.toggle("current", chosen);
        node.classList.toggle("left-out", !prompt.kept[i]);
        const spoken = shown ? figure(value) : `${prompt.features[i].length} features`;
        node.hintSaid = spoken;
        const attributes = { role: "option", id: `token-${i}`, "aria-selected": String(chosen), "aria-label": `${tokenName(token)} ${spoken}` };
        return filled(node, { ...attributes, onclick: () => chooseToken(chosen ? null : i) }, []);
      }),
    );
    if (promptState.token === null) text.removeAttribute("aria-activedescendant");
    else text.setAttribute("aria-activedescendant", `token-${promptState.token}`);
    side.replaceChildren(...featureRanking(firing, prompt, draw));
  };
  const chooseToken = (token) => {
    promptState.token = token;
    draw();
  };
  text.addEventListener("keydown", (event) => {
    const last = prompt.tokens.length - 1;
    const next = { ArrowRight: (promptState.token ?? -1) + 1, ArrowLeft: (promptState.token ?? 1) - 1, Home: 0, End: last };
    if (event.key === "Escape") chooseToken(null);
    else if (event.key in next) chooseToken(Math.min(Math.max(next[event.key], 0), last));
    else return;
    event.preventDefault();
  });
  draw();
  return [
    element("header", { class: "feature-head" }, element("h1", { tabindex: "-1" }, "Prompt", index.prompts.length > 1 ? ` ${number + 1}` : ""), promptTabs(number)),
    element("p", { class: "quiet" }, "Choose a token to see its features; choose a feature to see where it fires."),
    element("div", { class: "prompt" }, withHints(text), side),
  ];
}

function promptTabs(number) {
  if (index.prompts.length < 2) return null;
  const tab = (prompt, i) => element("a", { href: `#prompt/${i}`, "aria-current": i === number ? "page" : null }, prompt.tokens.join("").trim().replace(/\s+/g, " ").slice(0, 32));
  return element("nav", { class: "tabs", "aria-label": "Prompts" }, index.prompts.map(tab));
}

/** The features of the prompt, or of the token that was chosen. */
function featureRanking(firing, prompt, redraw) {
  const { token, feature } = promptState;
  const here = token === null ? [...firing.values()] : prompt.features[token].map((number) => firing.get(number));
  const order = element(
    "select",
    { id: "ranking", onchange: (event) => ((promptState.ranking = event.target.value), redraw(), byId("ranking").focus()) },
    Object.entries(RANKINGS).map(([key, name]) => element("option", { value: key, selected: key === promptState.ranking }, name)),
  );
  const rows = ranked(here, token).map((entry) => {
    const value = token === null ? entry.strongest : entry.values.get(token);
    const chosen = entry.feature === feature;
    const toggle = () => {
      promptState.feature = chosen ? null : entry.feature;
      redraw();
      side().querySelector(`[data-feature="${entry.feature}"]`)?.focus();
    };
    return element(
      "li",
      { class: chosen ? "chosen" : null, "--share": (value / entry.maximum).toFixed(3) },
      element("button", { type: "button", class: "swatch", "data-feature": entry.feature, "aria-pressed": String(chosen), "aria-label": `Shade the prompt by feature ${entry.feature}`, onclick: toggle }),
      featureLink(entry.feature),
      element("span", { class: "value", title: `${percent(value / entry.maximum)} of its maximum; fires on ${entry.values.size} tokens here` }, figure(value)),
    );
  });
  const side = () => document.querySelector(".prompt-features");
  const what = token === null ? `${count(rows.length)} features in the prompt` : [`${count(rows.length)} features on `, tokenSign(prompt.tokens[token])];
  const nothing = token !== null && !prompt.kept[token] ? "The SAE leaves this token out." : "No feature fires here.";
  return [
    element("h2", {}, what),
    element("div", { class: "order" }, element("label", { for: "ranking" }, "Rank by"), order),
    rows.length ? element("ol", { class: "ranking" }, rows) : element("p", { class: "quiet" }, nothing),
  ];
}
