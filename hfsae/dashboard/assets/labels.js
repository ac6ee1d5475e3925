// Labels: they come with the page, or are edits, which this browser keeps until a page comes that has them.

const given = new Map(Object.entries(index.labels).map(([feature, label]) => [Number(feature), label]));
/** What a language model says of the labels that it wrote: which one it is, and how well they foretell. */
const explained = new Map(Object.entries(index.explained).map(([feature, record]) => [Number(feature), record]));
const weights = `hfsae labels ${about.weights_sha256}`;
/** With other settings, such as k, the same weights have other features. */
const store = about.settings ? `${weights} ${JSON.stringify(about.settings)}` : weights;
const drafts = readDrafts();

function readDrafts() {
  let kept = {};
  try {
    // Pages of an earlier version kept drafts by the weights alone.
    kept = JSON.parse(localStorage.getItem(store) ?? localStorage.getItem(weights)) ?? {};
  } catch {
    // No storage here, or not ours: there are no drafts.
  }
  const edits = new Map(Object.entries(kept.edits ?? {}).map(([feature, label]) => [Number(feature), String(label)]));
  for (const [feature, label] of edits) if (label === (given.get(feature) ?? "")) edits.delete(feature);
  return { edits, saved: edits.size === 0 || kept.saved === true };
}

function keepDrafts() {
  try {
    localStorage.setItem(store, JSON.stringify({ edits: Object.fromEntries(drafts.edits), saved: drafts.saved }));
  } catch {
    // Without storage an edit lasts as long as the page, and can be saved all the same.
  }
  showDrafts();
}

const labelOf = (feature) => drafts.edits.get(feature) ?? given.get(feature) ?? "";

/** Who wrote a label and how well it foretells; nothing once a person has changed it. */
const explanationOf = (feature) => (drafts.edits.has(feature) ? null : (explained.get(feature) ?? null));

/** Two digits behind the point, with a sign of subtraction; what rounds to 0 has none. */
const hundredths = (value) => (Math.round(100 * value) / 100 || 0).toFixed(2).replace("-", "−");

/** What the page says of it. */
function toldOf(feature) {
  const record = explanationOf(feature);
  if (!record) return "";
  const scores = Object.entries(record.scores).map(
    ([name, score]) => `${index.scores[name]} ${hundredths(score.accuracy)} (${hundredths(score.low)} to ${hundredths(score.high)})`,
  );
  return [`Written by ${record.model}`, ...scores].join("; ");
}

function setLabel(feature, label) {
  if (label === (given.get(feature) ?? "")) drafts.edits.delete(feature);
  else drafts.edits.set(feature, label);
  drafts.saved = drafts.edits.size === 0;
  keepDrafts();
}

function showDrafts() {
  const edits = drafts.edits.size;
  byId("unsaved").textContent = drafts.saved ? "" : `${edits} unsaved label${edits === 1 ? "" : "s"}`;
  byId("save").classList.toggle("urgent", !drafts.saved);
}

/** The content of labels.json. */
function labelFile() {
  const named = [...new Map([...given, ...drafts.edits])].filter(([, label]) => label).sort(([a], [b]) => a - b);
  const content = { format: 1, weights_sha256: about.weights_sha256 };
  if (about.settings) content.settings = about.settings;
  content.labels = Object.fromEntries(named);
  const told = named.map(([feature]) => [feature, explanationOf(feature)]).filter(([, record]) => record);
  if (told.length) content.explained = Object.fromEntries(told);
  return `${JSON.stringify(content, null, 2)}\n`;
}

/** Writes labels.json where the user says, or into the downloads where a page may not write files. */
async function saveLabels() {
  try {
    if (!window.showSaveFilePicker) throw new DOMException("no file system access", "SecurityError");
    const types = [{ description: "Labels", accept: { "application/json": [".json"] } }];
    const file = await window.showSaveFilePicker({ suggestedName: "labels.json", types });
    const stream = await file.createWritable();
    await stream.write(labelFile());
    await stream.close();
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error.name !== "SecurityError") {
      byId("unsaved").textContent = `not saved: ${error.message}`;
      return;
    }
    download("labels.json", labelFile());
  }
  drafts.saved = true;
  keepDrafts();
  say("Labels saved");
}

function download(name, content) {
  const address = URL.createObjectURL(new Blob([content], { type: "application/json" }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
