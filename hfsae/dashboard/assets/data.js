// What the page was given: an index of all features, and packed groups that are opened when one of theirs is shown.

const index = JSON.parse(byId("index").textContent);
const about = index.about;

/** Every feature with what lists need; `row` is its place in the collection. */
const features = index.features.index.map((feature, row) => {
  const peaks = index.features.peaks[row];
  return {
    row,
    feature,
    density: index.features.density[row],
    maximum: index.features.maximum[row],
    peaks,
    kind: index.features.kinds[row],
    words: `${peaks.join("\n")}\n${index.features.kinds[row]}`.toLowerCase(),
  };
});
const byFeature = new Map(features.map((entry) => [entry.feature, entry]));

const GROUPS_KEPT = 8;
const groups = new Map();

/** The rest of a feature: examples, histogram, effects, neighbours. */
async function details(entry) {
  const number = Math.floor(entry.row / index.group_size);
  if (!groups.has(number)) {
    const opened = packed(number).then(unpacked);
    opened.catch(() => groups.delete(number));
    groups.set(number, opened);
    if (groups.size > GROUPS_KEPT) groups.delete(groups.keys().next().value);
  }
  const group = await groups.get(number);
  return { ...group.features[entry.row % index.group_size], texts: group.texts };
}

function packed(number) {
  return index.files ? loaded(number) : Promise.resolve(byId(`group-${number}`).textContent);
}

const awaited = new Map();

// What the files beside the page call.
if (index.files) window.receiveFeatures = (number, text) => awaited.get(number)(text);

function loaded(number) {
  return new Promise((resolve, reject) => {
    awaited.set(number, resolve);
    const file = index.files[number];
    const lost = () => reject(new Error(`${file} cannot be read. It belongs beside this page.`));
    document.head.append(element("script", { src: file, onerror: lost }));
  });
}

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
}
