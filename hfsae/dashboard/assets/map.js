// The map: features that write alike stand near each other, in groups. A canvas, so that many thousands are drawn at
// once. It is one stop of the Tab key, in which arrows go from feature to feature and Enter opens one; the groups are
// listed below it, which says the same without a picture.

const MAP_HUES = [212, 32, 145, 275, 0, 185, 60, 320, 100, 240, 15, 165];
const MAP_MARGIN = 14;
const NEAR_ENOUGH = 24; // pixels between the pointer and a feature

/** Every feature that has a place, with that from 0 to 1. */
const onMap = (index.map?.features ?? []).map((feature, i) => ({
  entry: byFeature.get(feature),
  x: index.map.x[i] / 1000,
  y: 1 - index.map.y[i] / 1000,
  group: index.map.groups[i],
}));
const placeOnMap = new Map(onMap.map((place) => [place.entry.feature, place]));
const mapView = { chosen: null, group: null, zoom: 1, x: 0.5, y: 0.5 };

const groupColour = (group, dark) => `hsl(${MAP_HUES[group % MAP_HUES.length]} ${dark ? "62% 66%" : "58% 42%"})`;
/** In words, after what stands before it; nothing where the map has no groups. */
const groupName = (place, before = "") => (index.map.words.length ? `${before}group ${place.group + 1}` : "");
const nameOnMap = (entry) => labelOf(entry.feature) || entry.peaks.slice(0, 3).map(tokenName).join(" ") || "no examples";

function mapPage(feature) {
  Object.assign(mapView, { chosen: placeOnMap.get(feature) ?? null, group: null, zoom: 1, x: 0.5, y: 0.5 });
  const canvas = element("canvas", {
    id: "feature-map",
    tabindex: "0",
    role: "application",
    "aria-label": "Map of features. Arrows go to the next feature in a direction, Enter opens it, plus and minus zoom.",
  });
  const told = element("p", { class: "map-told", "aria-hidden": "true" });
  const draw = () => {
    drawMap(canvas);
    const { chosen } = mapView;
    told.replaceChildren(...(chosen ? [featureLink(chosen.entry.feature), " ", element("span", { class: "quiet" }, groupName(chosen))] : ["Choose a feature."]));
  };
  const choose = (place) => {
    mapView.chosen = place;
    keepInView(place);
    say(`Feature ${place.entry.feature}, ${nameOnMap(place.entry)}${groupName(place, ", ")}`);
    draw();
  };
  const zoom = (by) => {
    mapView.zoom = Math.min(32, Math.max(1, mapView.zoom * by));
    if (mapView.chosen) Object.assign(mapView, { x: mapView.chosen.x, y: mapView.chosen.y });
    if (mapView.zoom === 1) Object.assign(mapView, { x: 0.5, y: 0.5 });
    say(`Zoom ${mapView.zoom}`);
    draw();
  };
  canvas.addEventListener("keydown", (event) => {
    const directions = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in directions) {
      const next = towards(directions[event.key]);
      if (next) choose(next);
    } else if (event.key === "Enter" && mapView.chosen) go(`feature/${mapView.chosen.entry.feature}`);
    else if (event.key === "+" || event.key === "=") zoom(2);
    else if (event.key === "-") zoom(0.5);
    else return;
    event.preventDefault();
  });
  canvas.addEventListener("pointermove", (event) => hintAt(canvas, event));
  canvas.addEventListener("pointerleave", hideHint);
  canvas.addEventListener("click", (event) => {
    const place = placeAt(canvas, event);
    if (place) go(`feature/${place.entry.feature}`);
  });
  const button = (name, by, what) => element("button", { type: "button", "aria-label": what, onclick: () => zoom(by) }, name);
  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  const left = features.length - onMap.length;
  const grouped = index.map.words.length > 0;
  const shares = index.map.explained?.map(percent);
  const laidOut = shares ? `the two leading principal components of their decoder rows, ${shares[0]} and ${shares[1]} of the variance` : "UMAP of their decoder rows, by cosine, where distances between groups say little";
  const inGroups = grouped ? `Groups are by k-means in ${index.map.components} components.` : "Groups need scikit-learn where the page is made.";
  return [
    element("header", { class: "feature-head" }, element("h1", { tabindex: "-1" }, "Map")),
    element("p", { class: "quiet" }, `Features that write alike stand near each other: ${laidOut}. ${inGroups}`, left ? ` Without a place, since they never fire: ${count(left)}.` : ""),
    element("div", { class: "map-frame" }, canvas, element("div", { class: "map-zoom" }, button("+", 2, "Zoom in"), button("−", 0.5, "Zoom out"))),
    told,
    grouped ? element("section", {}, element("h2", {}, "Groups"), element("ol", { class: "map-groups" }, index.map.words.map((words, group) => groupRow(group, words, draw)))) : "",
  ];
}

/** A group in words: how many it has, the tokens that tell it from others, its most frequent features. */
function groupRow(group, words, draw) {
  const members = onMap.filter((place) => place.group === group).map((place) => place.entry);
  const most = members.sort((a, b) => b.density - a.density).slice(0, 3);
  const mark = (event) => {
    mapView.group = mapView.group === group ? null : group;
    for (const other of document.querySelectorAll(".map-groups .swatch")) other.setAttribute("aria-pressed", String(other === event.currentTarget && mapView.group !== null));
    draw();
  };
  return element(
    "li",
    {},
    element("button", { type: "button", class: "swatch", "aria-pressed": "false", "aria-label": `Show group ${group + 1} alone`, "--hue": MAP_HUES[group % MAP_HUES.length], onclick: mark }),
    element("span", { class: "map-size" }, `Group ${group + 1}`, element("small", {}, `${count(members.length)} features`)),
    element("span", { class: "tokens" }, words.map(tokenSign)),
    element("span", { class: "map-members" }, most.map((entry) => featureLink(entry.feature))),
  );
}

/** Where a place stands on the canvas, in pixels of the page. */
function pixels(place, width, height) {
  const along = (value, middle, size) => MAP_MARGIN + ((value - middle) * mapView.zoom + 0.5) * (size - 2 * MAP_MARGIN);
  return [along(place.x, mapView.x, width), along(place.y, mapView.y, height)];
}

function keepInView(place) {
  const reach = 0.5 / mapView.zoom;
  if (Math.abs(place.x - mapView.x) > reach || Math.abs(place.y - mapView.y) > reach) Object.assign(mapView, { x: place.x, y: place.y });
}

function drawMap(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  if (!width) return;
  const sharp = devicePixelRatio || 1;
  Object.assign(canvas, { width: Math.round(width * sharp), height: Math.round(height * sharp) });
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const ink = getComputedStyle(document.body).color;
  const drawn = canvas.getContext("2d");
  drawn.scale(sharp, sharp);
  const size = (onMap.length > 4000 ? 1.6 : 2.6) * Math.min(2, Math.sqrt(mapView.zoom));
  for (const place of onMap) {
    const [x, y] = pixels(place, width, height);
    drawn.globalAlpha = mapView.group === null || mapView.group === place.group ? 0.8 : 0.1;
    drawn.fillStyle = groupColour(place.group, dark);
    drawn.beginPath();
    drawn.arc(x, y, size, 0, 2 * Math.PI);
    drawn.fill();
  }
  if (!mapView.chosen) return;
  const [x, y] = pixels(mapView.chosen, width, height);
  drawn.globalAlpha = 1;
  drawn.strokeStyle = ink;
  drawn.lineWidth = 2;
  drawn.beginPath();
  drawn.arc(x, y, size + 4, 0, 2 * Math.PI);
  drawn.stroke();
}

/** The feature under the pointer, or next to it. */
function placeAt(canvas, event) {
  const box = canvas.getBoundingClientRect();
  const far = (place) => {
    const [x, y] = pixels(place, canvas.clientWidth, canvas.clientHeight);
    return Math.hypot(x - (event.clientX - box.left), y - (event.clientY - box.top));
  };
  let best = null;
  let least = NEAR_ENOUGH;
  for (const place of onMap) {
    const distance = far(place);
    if (distance < least) [best, least] = [place, distance];
  }
  return best;
}

function hintAt(canvas, event) {
  const place = placeAt(canvas, event);
  canvas.style.cursor = place ? "pointer" : "";
  if (!place) return hideHint();
  hinted = null;
  hint.replaceChildren(element("b", {}, String(place.entry.feature)), labelOf(place.entry.feature) || element("span", { class: "tokens" }, place.entry.peaks.slice(0, 3).map(tokenSign)));
  hint.hidden = false;
  const left = Math.min(Math.max(8, event.clientX + 12), innerWidth - hint.offsetWidth - 8);
  hint.style.transform = `translate(${left}px, ${Math.max(4, event.clientY - hint.offsetHeight - 10)}px)`;
}

/** The next feature in a direction: the nearest one, where a step aside counts double. The first one is the middle. */
function towards([dx, dy]) {
  const from = mapView.chosen;
  if (!from) return onMap.reduce((best, place) => (Math.hypot(place.x - 0.5, place.y - 0.5) < Math.hypot(best.x - 0.5, best.y - 0.5) ? place : best));
  let best = null;
  let least = Infinity;
  for (const place of onMap) {
    const along = (place.x - from.x) * dx + (place.y - from.y) * dy;
    const aside = Math.abs((place.x - from.x) * dy) + Math.abs((place.y - from.y) * dx);
    if (along <= 0 || place === from) continue;
    if (along + 2 * aside < least) [best, least] = [place, along + 2 * aside];
  }
  return best;
}
