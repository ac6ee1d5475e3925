// The page of `hfsae serve`: asks the server that it came from for features and continuations.

const about = JSON.parse(byId("content").textContent);
const SHOWN = 30; // features of a text
const steering = new Map(); // feature to strength
let found = null;

byId("about").textContent = `${count(about.n_features)} features of ${about.hook_point}; at most ${about.limits.prompt_tokens} tokens`;
byId("new_tokens").max = about.limits.new_tokens;
byId("number").max = about.n_features - 1;

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
      element("button", { type: "button", class: "steer", onclick: () => steerWith(feature) }, "Steer"),
    );
  });
  byId("features").replaceChildren(...rows);
  byId("left-out").textContent = about.left_out_note && `Of the tokens that features promote ${about.left_out_note}`;
  byId("left-out").hidden = !about.left_out_note;
  const first = ranked()[0];
  showText(first ? first[0] : null);
}

function steerWith(feature) {
  if (!steering.has(feature) && steering.size >= about.limits.features) {
    byId("wrong").textContent = `at most ${about.limits.features} features at once`;
    return;
  }
  if (!steering.has(feature)) steering.set(feature, 1);
  showSliders();
}

function showSliders() {
  const most = Math.min(8, about.limits.strength);
  const rows = [...steering].map(([feature, strength]) => {
    const told = element("output", {}, figure(strength));
    const slide = (event) => {
      steering.set(feature, Number(event.target.value));
      told.textContent = figure(steering.get(feature));
    };
    const remove = () => {
      steering.delete(feature);
      showSliders();
    };
    return element(
      "li",
      {},
      element("span", {}, `feature ${feature} ${found?.known[feature]?.label ?? ""}`),
      element("input", { type: "range", min: -most, max: most, step: 0.25, value: strength, "aria-label": `Strength of feature ${feature}`, oninput: slide }),
      told,
      element("button", { type: "button", onclick: remove, "aria-label": `Steer no longer with feature ${feature}` }, "×"),
    );
  });
  byId("sliders").replaceChildren(...rows);
}

byId("read").addEventListener("click", async () => {
  const answer = await ask("/read", { text: byId("text").value });
  if (answer === null) return;
  found = answer;
  showFeatures();
  say(`${byId("features").children.length} features`);
});

byId("generate").addEventListener("click", async () => {
  const question = { text: byId("text").value, strengths: Object.fromEntries(steering), new_tokens: Number(byId("new_tokens").value) };
  const answer = await ask("/generate", question);
  if (answer === null) return;
  byId("plain").textContent = answer.plain;
  byId("steered").textContent = answer.steered;
  say("continued");
});

byId("add").addEventListener("submit", (event) => {
  event.preventDefault();
  const feature = Number(byId("number").value);
  if (byId("number").value !== "" && Number.isInteger(feature) && feature >= 0 && feature < about.n_features) steerWith(feature);
  else byId("wrong").textContent = `there is no such feature: expected 0 to ${about.n_features - 1}`;
});

withHints(byId("tokens"));
