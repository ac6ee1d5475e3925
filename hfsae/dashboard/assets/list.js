// The list of features. Only the rows in view exist, so its length does not matter. It is one stop of the Tab key, in
// which arrows move; screen readers hear the active row and its place among all.

const ROW_HEIGHT = 56;
const ROWS_BEYOND = 6;

const list = {
  box: byId("list"),
  height: byId("list").firstElementChild,
  shown: [],
  active: null, // a feature's number

  show(entries) {
    this.shown = entries;
    this.places = new Map(entries.map((entry, place) => [entry.feature, place]));
    this.height.style.height = `${entries.length * ROW_HEIGHT}px`;
    this.draw();
  },

  draw() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / ROW_HEIGHT) - ROWS_BEYOND);
    const last = Math.ceil((this.box.scrollTop + this.box.clientHeight) / ROW_HEIGHT) + ROWS_BEYOND;
    const rows = this.shown.slice(first, last).map((entry, i) => this.row(entry, first + i));
    this.height.replaceChildren(...rows);
    const place = this.places.get(this.active);
    const visible = place !== undefined && place >= first && place < last;
    if (visible) this.box.setAttribute("aria-activedescendant", `option-${this.active}`);
    else this.box.removeAttribute("aria-activedescendant");
  },

  row(entry, place) {
    const label = labelOf(entry.feature);
    const chosen = entry.feature === this.active;
    const facts = [`${entry.feature}`, entry.density ? percent(entry.density) : "never fires"];
    // A class needs the room of two figures; the largest activation stands on the feature's own page.
    if (entry.kind) facts.push(entry.kind);
    else if (entry.density) facts.push(`max ${figure(entry.maximum)}`);
    const row = element(
      "div",
      {
        role: "option",
        id: `option-${entry.feature}`,
        class: "row",
        "aria-selected": String(chosen),
        "aria-setsize": this.shown.length,
        "aria-posinset": place + 1,
        "aria-label": `Feature ${entry.feature}, ${label || entry.peaks.map(tokenName).join(" ") || "no examples"}, ${facts.slice(1).join(", ")}`,
        onclick: () => go(`feature/${entry.feature}`),
      },
      element("div", { class: label ? "name" : "name tokens" }, label || entry.peaks.map(tokenSign), label || entry.peaks.length ? null : "—"),
      element("div", { class: entry.kind ? "facts classed" : "facts" }, facts.map((fact) => element("span", {}, fact))),
    );
    row.style.transform = `translateY(${place * ROW_HEIGHT}px)`;
    return row;
  },

  /** Marks a feature and brings it into view. */
  choose(feature) {
    this.active = feature;
    const place = this.places.get(feature);
    if (place !== undefined) {
      const top = place * ROW_HEIGHT;
      const bottom = top + ROW_HEIGHT - this.box.clientHeight;
      if (this.box.scrollTop > top) this.box.scrollTop = top;
      else if (this.box.scrollTop < bottom) this.box.scrollTop = bottom;
    }
    this.draw();
  },

  /** The feature so many rows further down; the first or the last one at the ends. */
  beyond(step) {
    const place = this.places.get(this.active);
    const next = place === undefined ? 0 : Math.min(Math.max(place + step, 0), this.shown.length - 1);
    return this.shown[next];
  },

  move(step) {
    const entry = this.beyond(step);
    if (entry) go(`feature/${entry.feature}`);
  },
};

list.box.addEventListener("scroll", () => requestAnimationFrame(() => list.draw()), { passive: true });
new ResizeObserver(() => list.draw()).observe(list.box);
list.box.addEventListener("keydown", (event) => {
  const page = Math.max(1, Math.floor(list.box.clientHeight / ROW_HEIGHT) - 1);
  const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
  if (event.key in steps) list.move(steps[event.key]);
  else if (event.key === "Enter") byId("main").focus();
  else return;
  event.preventDefault();
});
