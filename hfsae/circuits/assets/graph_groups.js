// Groups: nodes that a reader takes for one. A group looks like a node to lists and lines; its links are the sums of its members'.

const groups = [];

const membersOf = (one) => (one.kind === "group" ? one.members : [one]);

/** What a node or a group is linked with on a side, groups of others as one, the largest first. */
function linksOf(one, side) {
  const own = new Set(membersOf(one)), sums = new Map();
  for (const member of own) {
    for (const { node, weight } of member[side]) {
      if (own.has(node)) continue;
      const other = node.group && node.group !== one.group ? node.group : node;
      sums.set(other, (sums.get(other) ?? 0) + weight);
    }
  }
  return [...sums].map(([node, weight]) => ({ node, weight })).sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
}

/** Puts nodes into the group of a name, which is made where there is none; out of the ones that they were in. */
function putInto(name, members) {
  let group = groups.find((one) => one.name === name);
  if (!group) groups.push((group = { kind: "group", name, members: [] }));
  for (const node of members) {
    takeOut(node, group);
    if (!group.members.includes(node)) group.members.push(node);
    node.group = group;
  }
  return group;
}

/** Takes a node out of its group; a group without members is none. */
function takeOut(node, keep = null) {
  const group = node.group;
  node.group = null;
  if (!group || group === keep) return;
  group.members = group.members.filter((one) => one !== node);
  if (!group.members.length) groups.splice(groups.indexOf(group), 1);
}

/** What `hfsae trace --supernodes FILE` and `Graph.group` take. */
function asJSON() {
  const named = Object.fromEntries(groups.map((group) => [group.name, group.members.map((node) => node.name)]));
  return JSON.stringify({ pinned: nodes.filter((node) => node.pinned).map((node) => node.name), supernodes: named }, null, 1);
}

/** The line under the graph: pins, groups, and what makes and keeps groups. */
function showPicked() {
  const pins = nodes.filter((node) => node.pinned);
  const chip = (one, text) => element("button", { type: "button", class: "plain", onclick: () => choose(one, true) }, text);
  const parts = [];
  if (pins.length) parts.push("Pinned: ", ...pins.map((one) => chip(one, title(one))));
  if (pins.length > 1) parts.push(element("button", { type: "button", class: "plain", id: "group-pins", onclick: groupPins }, "Group the pinned"));
  if (groups.length) parts.push(element("span", {}, "Groups: "), ...groups.map((one) => chip(one, title(one))));
  if (parts.length) parts.push(element("details", { id: "kept" }, element("summary", {}, "Keep"), element("textarea", { readonly: true, rows: 4, "aria-label": "Pins and groups as JSON, for hfsae trace --supernodes" })));
  byId("pins").replaceChildren(...parts);
  const text = byId("pins").querySelector("textarea");
  if (text) text.value = asJSON();
  for (const node of nodes) {
    node.button.classList.toggle("pinned", node.pinned);
    node.button.classList.toggle("grouped", Boolean(node.group));
    node.button.setAttribute("aria-label", inWords(node));
  }
}

/** The group that a name in a field says; all that shows groups is shown again. */
function regroup(members, name) {
  const said = name.trim();
  if (!said) return null;
  const group = putInto(said, members);
  showPicked();
  say(`${count(group.members.length)} nodes in group ${group.name}`);
  return group;
}

function groupPins() {
  const pins = nodes.filter((node) => node.pinned);
  let number = groups.length + 1;
  while (groups.some((one) => one.name === `group ${number}`)) number += 1;
  choose(regroup(pins, `group ${number}`), true);
  byId("group-name").select();
}

/** A field that names a group, with a button. */
function groupField(text, value, act) {
  const field = element("input", { type: "text", id: "group-name", value, placeholder: "a name", list: "group-names", autocomplete: "off" });
  return element(
    "form",
    { class: "group-field", onsubmit: (event) => { event.preventDefault(); act(field.value); } },
    element("label", { for: "group-name" }, "Group"),
    field,
    element("datalist", { id: "group-names" }, groups.map((group) => element("option", { value: group.name }))),
    element("button", { type: "submit" }, text),
  );
}

function groupPanel(group) {
  const rename = (name) => {
    const said = name.trim();
    if (said && said !== group.name) choose(regroup(group.members, said), true);
  };
  const apart = () => {
    for (const node of [...group.members]) takeOut(node);
    showPicked();
    say(`${group.name} is no group any more`);
    choose(null, true);
  };
  const out = (node) => {
    takeOut(node);
    showPicked();
    choose(group.members.length ? group : null, true);
  };
  const row = (node) =>
    element("li", {}, element("button", { type: "button", onclick: () => choose(node, true) }, element("span", { class: "named" }, title(node)), element("small", {}, place(node))), element("button", { type: "button", class: "plain out", "aria-label": `Take out ${title(node)}`, onclick: () => out(node) }, "×"));
  return [
    element("div", { class: "headline" }, element("h2", { tabindex: "-1" }, group.name), element("button", { type: "button", id: "apart", onclick: apart }, "Take apart")),
    element("p", { class: "quiet" }, `A group of ${count(group.members.length)}. What goes into it and comes out of it are sums over its members.`),
    groupField("Rename", group.name, rename),
    element("section", {}, element("h3", {}, "Members"), element("ol", { class: "links members" }, group.members.map(row))),
    linkList(linksOf(group, "inputs"), "Made by", "Nothing that is shown."),
    linkList(linksOf(group, "outputs"), "Goes into", "Nothing that is shown."),
  ];
}
