// The page of `hfsae serve`: asks the server that it came from for features, continuations and graphs.

const about = JSON.parse(byId("content").textContent);
const SHOWN = 30; // features of a text
const steering = []; // {sae, feature, strength}
let found = null;

byId("sae").replaceChildren(...about.saes.map(({ name }) => element("option", { value: name }, name)));
byId("which").hidden = about.saes.length < 2;
byId("new_tokens").max = about.limits.new_tokens;
byId("generate").hidden = about.saes.every(({ no_steering }) => no_steering !== null);
byId("trace").hidden = about.no_trace !== null;
byId("no-trace").hidden = about.no_trace === null;
byId("no-trace").textContent = about.no_trace && `There is no graph here: ${about.no_trace}`;

/** What is known of the SAE that is chosen. */
const chosen = () => about.saes.find(({ name }) => name === byId("sae").value);

function showChosen() {
  const { n_features, hook_point, left_out_note, no_steering } = chosen();
  byId("about").textContent = `${count(n_features)} features of ${hook_point}; at most ${about.limits.prompt_tokens} tokens`;
  byId("number").max = n_features - 1;
  byId("add").hidden = no_steering !== null;
  byId("no-steering").hidden = no_steering === null;
  byId("no-steering").textContent = no_steering && `There is no steering here: ${no_steering}`;
  byId("left-out").textContent = left_out_note && `Of the tokens that features promote ${left_out_note}`;
}

/** What the server answers; what it refuses is shown, and gives null. */
async function ask(path, question) {
  byId("wrong").textContent = "";
  document.body.setAttribute("aria-busy", "true");
  for (const button of document.querySelectorAll(".asks button")) button.disabled = true;
  try {
    const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(question) };
    const answer = await (await fetch(path, options)).json();
    if (answer.error) byId("wrong").textContent = answer.error;
    return answer.error ? null : answer;
  } catch {
    byId("wrong").textContent = "the server does not answer: is `hfsae serve` still running?";
    return null;
  } finally {
    document.body.removeAttribute("aria-busy");
    for (const button of document.querySelectorAll(".asks button")) button.disabled = false;
  }
}

/** The features of the text, the nearest to their largest activation first. */
function ranked() {
  const strongest = new Map();
  found.features.forEach((features, token) =>
    features.forEach((feature, i) => strongest.set(feature, Math.max(strongest.get(feature) ?? 0, found.activations[token][i]))),
  );
  const share = ([feature, value]) => value / (found.known[feature].maximum ?? value);
  return [...strongest].sort((a, b) => share(b) - share(a) || a[0] - b[0]).slice(0, SHOWN);
}

function showText(feature) {
  const largest = Math.max(found.known[feature]?.maximum ?? 0, 1e-9);
  byId("tokens").replaceChildren(
    ...found.tokens.map((text, token) => {
      const place = found.features[token].indexOf(feature);
      const value = place < 0 ? 0 : found.activations[token][place];
      return shadedToken(text, value, Math.min(1, value / largest));
    }),
  );
  for (const row of byId("features").children) row.classList.toggle("current", row.dataset.feature === String(feature));
}

function showFeatures() {
  const rows = ranked().map(([feature, value]) => {
    const known = found.known[feature];
    return element(
      "li",
      { "data-feature": feature },
      element("button", { type: "button", class: "show", onclick: () => showText(feature) }, String(feature)),
      element("span", { class: "value" }, figure(value)),
      element("span", {}, known.label),
      known.promoted.map(tokenSign),
      chosen().no_steering ? [] : element("button", { type: "button", class: "steer", onclick: () => steerWith(found.sae, feature) }, "Steer"),
    );
  });
  byId("features").replaceChildren(...rows);
  byId("left-out").hidden = !chosen().left_out_note;
  const first = ranked()[0];
  showText(first ? first[0] : null);
}

function steerWith(sae, feature) {
  const known = steering.some((one) => one.sae === sae && one.feature === feature);
  if (!known && steering.length >= about.limits.features) {
    byId("wrong").textContent = `at most ${about.limits.features} features at once`;
    return;
  }
  const label = found?.sae === sae ? found.known[feature]?.label : "";
  if (!known) steering.push({ sae, feature, strength: 1, label: label ?? "" });
  showSliders();
}

function showSliders() {
  const most = Math.min(8, about.limits.strength);
  const rows = steering.map((one) => {
    const named = about.saes.length > 1 ? `feature ${one.feature} of ${one.sae}` : `feature ${one.feature}`;
    const told = element("output", {}, figure(one.strength));
    const slide = (event) => {
      one.strength = Number(event.target.value);
      told.textContent = figure(one.strength);
    };
    const remove = () => {
      steering.splice(steering.indexOf(one), 1);
      showSliders();
    };
    return element(
      "li",
      {},
      element("span", {}, `${named} ${one.label}`),
      element("input", { type: "range", min: -most, max: most, step: 0.25, value: one.strength, "aria-label": `Strength of ${named}`, oninput: slide }),
      told,
      element("button", { type: "button", onclick: remove, "aria-label": `Steer no longer with ${named}` }, "×"),
    );
  });
  byId("sliders").replaceChildren(...rows);
}

/** Strengths by SAE and feature. */
function strengths() {
  const asked = {};
  for (const { sae, feature, strength } of steering) (asked[sae] ??= {})[feature] = strength;
  return asked;
}

/** A row for a graph, the newest first. No more rows stay than the server keeps graphs. */
function showGraph(text, made) {
  const next = made.says.slice(0, 3).flatMap(({ token, probability }) => [tokenSign(token), ` ${percent(probability)} `]);
  const scores = `${count(made.features)} of ${count(made.active)} features, replacement ${figure(made.replacement)}, completeness ${figure(made.completeness)}`;
  const row = element(
    "li",
    {},
    element("a", { href: `/graph/${made.graph}`, target: "_blank", rel: "noopener" }, text),
    element("span", {}, "then ", ...next),
    element("span", { class: "quiet" }, scores),
    ...made.notes.map((note) => element("span", { class: "quiet" }, note)),
  );
  byId("graphs").prepend(row);
  while (byId("graphs").children.length > about.limits.graphs) byId("graphs").lastChild.remove();
}

byId("read").addEventListener("click", async () => {
  const answer = await ask("/read", { text: byId("text").value, sae: byId("sae").value });
  if (answer === null) return;
  found = answer;
  showFeatures();
  say(`${byId("features").children.length} features`);
});

byId("generate").addEventListener("click", async () => {
  const question = { text: byId("text").value, strengths: strengths(), new_tokens: Number(byId("new_tokens").value) };
  const answer = await ask("/generate", question);
  if (answer === null) return;
  byId("plain").textContent = answer.plain;
  byId("steered").textContent = answer.steered;
  say("continued");
});

byId("trace").addEventListener("click", async () => {
  const text = byId("text").value;
  const answer = await ask("/trace", { text });
  if (answer === null) return;
  showGraph(text, answer);
  say("traced");
});

byId("sae").addEventListener("change", () => {
  showChosen();
  if (found) byId("read").click();
});

byId("add").addEventListener("submit", (event) => {
  event.preventDefault();
  const feature = Number(byId("number").value);
  if (byId("number").value !== "" && Number.isInteger(feature) && feature >= 0 && feature < chosen().n_features) steerWith(chosen().name, feature);
  else byId("wrong").textContent = `there is no such feature: expected 0 to ${chosen().n_features - 1}`;
});

withHints(byId("tokens"));
showChosen();
