// Puts the page together: what the address names is shown, what is typed is searched.

const main = byId("main");
const search = byId("search");
const order = byId("order");
let shownNow = 0;

/** Goes to `feature/17`, `map`, `map/17`, `prompt/0` or `overview`. */
function go(place) {
  location.hash = place;
}

/** Shows what the address names. The focus stays in the list, where arrows go on; from a link it goes to the page. */
async function route() {
  const [kind, number] = location.hash.slice(1).split("/");
  const entry = kind === "feature" ? byFeature.get(Number(number)) : undefined;
  const ticket = ++shownNow;
  let content;
  if (entry) {
    list.choose(entry.feature);
    content = await details(entry).then((data) => featurePage(entry, data), failure);
  } else if (kind === "prompt" && index.prompts[Number(number)]) content = promptPage(Number(number));
  else if (kind === "map" && index.map) content = mapPage(Number(number));
  else if (kind === "feature") content = failure(new Error(`There is no feature ${number} in this collection.`));
  else content = overviewPage();
  if (ticket !== shownNow) return; // another one was asked for in the meantime
  show(content, entry ? "feature" : kind === "prompt" || (kind === "map" && index.map) ? kind : "overview");
}

const failure = (error) => [element("h1", { tabindex: "-1" }, "This cannot be shown"), element("p", {}, error.message)];

function show(content, kind) {
  const stays = document.activeElement === list.box || document.activeElement === search || document.activeElement === document.body;
  const title = content.flat(Infinity).map((node) => node?.querySelector?.("h1") ?? node).find((node) => node?.tagName === "H1");
  hideHint();
  document.body.dataset.page = kind;
  main.replaceChildren(...content.flat(Infinity).filter(Boolean));
  main.scrollTop = 0;
  document.title = kind === "overview" ? index.title : `${title.textContent} – ${index.title}`;
  for (const link of byId("pages").children) {
    if (link.hash === `#${kind}` || (kind === "prompt" && link.hash.startsWith("#prompt"))) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (stays) say(title.textContent);
  else title.focus({ preventScroll: true });
}

function update() {
  const entries = found(search.value, order.value);
  list.box.scrollTop = 0;
  list.show(entries);
  list.choose(list.active);
  const all = features.length;
  byId("count").textContent = entries.length === all ? `${count(all)} features` : `${count(entries.length)} of ${count(all)} features`;
}

const pages = [["Overview", "#overview"], ...(index.map ? [["Map", "#map"]] : []), ...(index.prompts.length ? [[index.prompts.length > 1 ? "Prompts" : "Prompt", "#prompt/0"]] : [])];
byId("pages").append(...pages.map(([name, href]) => element("a", { href }, name)));
order.append(...Object.entries(CLASSED).map(([key, { name }]) => element("option", { value: key }, name)));
search.addEventListener("input", update);
order.addEventListener("change", update);
search.addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" || event.key === "Enter") {
    event.preventDefault();
    list.box.focus();
    if (!list.places.has(list.active) || event.key === "Enter") list.shown[0] && go(`feature/${list.shown[0].feature}`);
  } else if (event.key === "Escape" && search.value) {
    search.value = "";
    update();
  }
});
byId("save").addEventListener("click", saveLabels);
byId("skip").addEventListener("click", () => main.focus());

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
  if (event.key === "/") search.focus();
  else if (event.key === "j") list.move(1);
  else if (event.key === "k") list.move(-1);
  else if (event.key === "e") document.querySelector(".edit")?.click();
  else return;
  event.preventDefault();
});
addEventListener("hashchange", route);

showDrafts();
update();
route();
