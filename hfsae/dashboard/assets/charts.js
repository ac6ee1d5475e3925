// Histograms and bars.

/**
 * A histogram. `bars` have a `size` (0 to 1), a `name` that hovering shows, and a `shade` (0 to 1) if they mean
 * activations; `ticks` are pairs of a place on the axis (0 to 1) and what stands there.
 */
function histogram(bars, ticks, name) {
  const [width, height] = [100, 40];
  const step = width / bars.length;
  const columns = bars.map((bar, i) =>
    drawing(
      "g",
      {},
      drawing("rect", { class: "room", x: i * step, width: step, y: 0, height }),
      drawing("rect", {
        x: i * step + step * 0.08,
        width: step * 0.84,
        y: height * (1 - bar.size),
        height: height * bar.size,
        class: bar.shade === undefined ? "column plain" : "column",
        "--strength": bar.shade,
      }),
      drawing("title", {}, bar.name),
    ),
  );
  return element(
    "figure",
    { class: "histogram" },
    drawing("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": name }, columns),
    element("div", { class: "ticks", "aria-hidden": "true" }, ticks.map(([at, tick]) => element("span", { "--at": at }, tick))),
    element("figcaption", {}, name),
  );
}

/** How often a feature has which activation. */
function activationHistogram(data, maximum) {
  const bins = Math.max(1, Math.ceil(maximum / data.bin_width));
  const counts = data.histogram.slice(0, bins);
  const most = Math.log1p(Math.max(...counts));
  const bars = counts.map((tokens, i) => ({
    size: Math.log1p(tokens) / most,
    shade: Math.min(1, ((i + 0.5) * data.bin_width) / maximum),
    name: `${figure(i * data.bin_width)} to ${figure((i + 1) * data.bin_width)}: ${count(tokens)} tokens`,
  }));
  const end = counts.length * data.bin_width;
  return histogram(bars, roundTicks(end), "Tokens by activation, on a logarithmic scale");
}

/** Round numbers from 0 to an axis' end: steps of 1, 2 or 5 times a power of ten. */
function roundTicks(end) {
  const power = 10 ** Math.floor(Math.log10(end));
  const step = [0.2, 0.5, 1, 2].map((times) => times * power).find((size) => end / size <= 6);
  return Array.from({ length: Math.floor(end / step + 1e-9) + 1 }, (_, i) => [(i * step) / end, figure(i * step)]);
}

/** How many features fire how often, in quarters of a power of ten. */
function densityHistogram() {
  const quarter = (density) => Math.floor(4 * Math.log10(density) + 1e-9);
  const firing = features.filter((entry) => entry.density > 0);
  const lowest = 4 * Math.floor(Math.min(-1, ...firing.map((entry) => quarter(entry.density))) / 4);
  const counts = new Array(-lowest).fill(0);
  for (const entry of firing) counts[Math.min(quarter(entry.density), -1) - lowest] += 1;
  const most = Math.max(1, ...counts);
  const bars = counts.map((size, i) => ({
    size: size / most,
    name: `${percent(10 ** ((i + lowest) / 4))} to ${percent(10 ** ((i + 1 + lowest) / 4))} of tokens: ${count(size)} features`,
  }));
  const ticks = Array.from({ length: 1 - lowest / 4 }, (_, power) => [(-4 * power) / lowest, percent(10 ** (power + lowest / 4))]);
  return histogram(bars, ticks, "Features by the share of tokens on which they fire");
}

/** Tokens and by how much their logits change. */
function effectList(effects, name, kind) {
  const most = Math.abs(effects[0]?.[1] ?? 1);
  const rows = effects.map(([text, effect]) =>
    element(
      "li",
      { "--share": (Math.abs(effect) / most).toFixed(3) },
      tokenSign(text),
      element("span", { class: "value" }, (effect > 0 ? "+" : "") + figure(effect)),
    ),
  );
  return element("section", { class: `effects ${kind}` }, element("h3", {}, name), element("ol", {}, rows));
}
