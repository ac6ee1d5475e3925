// Which features the list shows, and in which order.

const collate = new Intl.Collator("en", { numeric: true }).compare;
const byNumber = (a, b) => a.feature - b.feature;

const ORDERS = {
  frequent: { name: "frequency, most frequent first", compare: (a, b) => b.density - a.density || byNumber(a, b) },
  rare: {
    name: "frequency, rarest first",
    // Features that never fire come last.
    compare: (a, b) => (a.density || 2) - (b.density || 2) || byNumber(a, b),
  },
  maximum: { name: "largest activation", compare: (a, b) => b.maximum - a.maximum || byNumber(a, b) },
  label: { name: "label", compare: byLabel },
  number: { name: "number", compare: byNumber },
};

// Of a crosscoder's sources people look for what one alone has.
const CLASSED = index.comparison ? { class: { name: "class, what one source has first", compare: byClass }, ...ORDERS } : ORDERS;

function byClass(a, b) {
  const shared = (entry) => Number(!entry.kind.includes("-only"));
  return shared(a) - shared(b) || collate(a.kind, b.kind) || ORDERS.frequent.compare(a, b);
}

/** Labelled features come first. */
function byLabel(a, b) {
  const [one, other] = [labelOf(a.feature), labelOf(b.feature)];
  return Number(!one) - Number(!other) || collate(one, other) || byNumber(a, b);
}

/** The features that match every word of a query, by number, label or the tokens they fire on most. */
function found(query, order) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const matches = (entry, word) =>
    String(entry.feature) === word.replace(/^#/, "") ||
    entry.words.includes(word) ||
    labelOf(entry.feature).toLowerCase().includes(word);
  const chosen = features.filter((entry) => words.every((word) => matches(entry, word)));
  return chosen.sort(CLASSED[order].compare);
}
