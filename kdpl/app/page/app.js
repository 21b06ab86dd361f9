// Photos in groups by name. The state is the server's: each change is sent, written there, and comes back sorted.
import {Grid, Viewer, byText, counted, element, percent, photoCard} from "./parts.js";

const $ = id => document.getElementById(id);
const NONE = -1, UNLABELLED = -2, NOBODY = "(none of these)", TYPICAL = 3;
let state = {version: -1, names: [], best: [], label: []}, paths = [], groups = null, renaming = null;
const chosen = new Set(); // ids of the names that are shown alone

async function send(change) {
  const began = performance.now();
  document.body.setAttribute("aria-busy", "true");
  try {
    const answer = await fetch("api/change", {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(change)});
    const content = await answer.json().catch(() => ({error: `The server answered ${answer.status}.`}));
    if (content.error) throw new Error(content.error);
    take(content);
    document.body.dataset.took = Math.round(performance.now() - began); // milliseconds until the page was sorted again
    return true;
  } catch (error) {
    complain(error instanceof TypeError ? "The server does not answer: start kdpl open again and go to its new page. All that was shown as saved is there." : error.message);
    return false;
  } finally {
    document.body.removeAttribute("aria-busy");
  }
}

function complain(text) {
  $("error").textContent = text;
  $("error").hidden = false;
  clearTimeout(complain.timer);
  complain.timer = setTimeout(() => { $("error").hidden = true; }, 8000);
}

async function follow() { // news from the pass over the photos and from other tabs
  for (;;) {
    try {
      const since = paths.length < state.best.length ? -1 : state.version;
      const news = await (await fetch(`api/state?since=${since}&paths=${paths.length}`)).json();
      paths.push(...news.paths);
      if (news.version > state.version || since < 0) take(news);
    } catch {
      await new Promise(done => setTimeout(done, 1500));
    }
  }
}

function take(news) {
  if (news.best.length !== state.best.length) groups = null;
  state = news;
  for (const id of chosen) if (id !== NONE && !state.names.some(name => name.id === id)) chosen.delete(id);
  document.title = $("title").textContent = state.title;
  $("progress").hidden = !state.doing;
  $("bar").max = state.total || 1;
  $("bar").value = state.seen;
  $("bar").hidden = state.seen >= state.total;
  $("doing").textContent = state.doing;
  $("verdict").textContent = state.verdict;
  $("verdict").classList.toggle("bad", !state.fits);
  $("undo").disabled = !state.undo;
  $("undo").title = state.undo;
  $("undo").textContent = state.undo ? `Undo: ${state.undo}` : "Undo";
  $("known").replaceChildren(...state.names.map(name => element("option", {value: name.name})));
  showNames();
  show().then(() => viewer.dialog.open && viewer.fill());
}

function showNames() {
  const focus = [...$("names").querySelectorAll("button")].indexOf(document.activeElement);
  const of = new Map([...state.names.keys(), NONE].map(place => [place, []]));
  for (const i of state.best.keys()) of.get(placeOf(i))?.push(i);
  const row = (name, place, more, drop) => {
    const id = name?.id ?? NONE, button = element("button", {className: "name", title: nameOf(place), "aria-pressed": chosen.has(id)},
      element("bdi", {}, nameOf(place)), element("data", {}, counted.format(of.get(place).length)), ...more);
    button.onclick = () => { chosen.delete(id) || chosen.add(id); showNames(); show(); };
    const line = element("li", {className: name ? "" : "none"}, button);
    line.ondragover = event => { event.preventDefault(); line.classList.add("over"); };
    line.ondragleave = () => line.classList.remove("over");
    line.ondrop = event => { event.preventDefault(); line.classList.remove("over"); drop(event.dataTransfer.getData("text/x-name")); };
    return line;
  };
  const rows = state.names.map((name, i) => {
    const sure = of.get(i).reduce((sum, photo) => sum + state.p[photo], 0) / of.get(i).length;
    const note = name.without ? "no photo to learn from" : of.get(i).length ? `${percent(sure)} sure` : "no photo";
    const line = row(name, i, [element("small", {className: name.without ? "bad" : ""}, note)],
      other => other === "" ? label(name.name) : Number(other) !== name.id && send({do: "merge", name: Number(other), into: name.id}));
    const [button] = line.children, edit = element("button", {className: "edit", "aria-label": `Rename, merge or delete ${name.name}`}, "⋯");
    edit.onclick = () => openRename(name);
    button.onkeydown = event => { if (event.key === "F2") openRename(name); if (event.key === "Delete") send({do: "delete", name: name.id}); };
    button.draggable = true;
    button.ondragstart = event => event.dataTransfer.setData("text/x-name", name.id);
    if (i < 9) button.setAttribute("aria-keyshortcuts", i + 1);
    line.append(edit);
    return line;
  });
  $("names").replaceChildren(...rows, row(null, NONE, [], other => other === "" && label(null)));
  if (focus >= 0) ($("names").querySelectorAll("button")[focus] ?? $("names").lastChild.firstChild).focus();
}

// ------------------------------------------------------------------------------------------------------------------- the grid

const grid = new Grid($("grid"), {card, head, open: i => viewer.open(i)});
const viewer = new Viewer(grid, {describe, key: byKey, more: [element("div", {className: "row"},
  element("button", {onclick: () => confirmed()}, "Right as it is (y)"), element("button", {onclick: () => label(null)}, "None of these (n)"))]});
const labelled = i => state.label[i] !== UNLABELLED;
const placeOf = i => labelled(i) ? state.label[i] : state.best[i]; // a label counts for more than a guess
const nameOf = place => place === NONE ? NOBODY : state.names[place]?.name ?? "";

function describe(i) {
  const name = labelled(i) || state.names.length ? nameOf(placeOf(i)) : "";
  const names = !name ? [] : labelled(i) ? [[`✓ ${name}`, null]] : [[name, state.p[i]]];
  const note = labelled(i) && state.best[i] >= 0 ? ["Your label. Without it: ", element("bdi", {}, nameOf(state.best[i])), `, ${percent(state.p[i])}`] : [];
  return {name, full: `photo/${i}?large`, image: `photo/${i}`, path: paths[i] ?? "", names, note};
}

function card(i) {
  const about = describe(i), node = photoCard(about, element("span", {className: "tick"}));
  node.classList.toggle("mine", labelled(i));
  node.draggable = true;
  node.ondragstart = event => { // drag what is selected, or this one
    if (!grid.selected.has(i)) grid.select([i]);
    event.dataTransfer.setData("text/x-photos", grid.selected.size);
  };
  return {node, label: [about.name, labelled(i) ? "your label" : about.name && percent(state.p[i]), about.path].filter(Boolean).join(", ")};
}

// A group's most typical photos get its name as a label, from which the others follow if they are like them: some may be others.
const accept = some => send({do: "label", each: some.map(([name, photos]) => [photos.slice(0, TYPICAL), name])});

function head(section) {
  const count = element("data", {}, counted.format(section.items.length));
  if (section.away === undefined) return element("div", {className: "head", role: "presentation"}, element("bdi", {}, section.title), count);
  const input = element("input", {value: section.title, "aria-label": "Name of this group"});
  const use = async () => { $("grid").focus(); if (input.value.trim() && await accept([[input.value.trim(), section.items]])) section.away(); };
  input.onkeydown = event => { event.stopPropagation(); if (event.key === "Enter") use(); };
  return element("div", {className: "head"}, input, count, element("button", {onclick: use, "aria-label": `Use this name for ${section.title}`}, "Use"),
    element("button", {onclick: section.away}, "Not a group"));
}

const orders = {
  sure: (a, b) => state.margin[b] - state.margin[a],
  doubtful: (a, b) => state.margin[a] - state.margin[b],
  path: (a, b) => byText(paths[a], paths[b]),
};

async function show() {
  if ($("grid").contains(document.activeElement) && document.activeElement.matches("input")) return; // a group's name is being written
  const words = $("filter").value.trim().toLocaleLowerCase(), view = state.names.length ? $("view").value : $("view").value = "groups"; // where it stays while names are chosen
  const all = [...state.best.keys()].filter(i => (!chosen.size || chosen.has(state.names[placeOf(i)]?.id ?? NONE)) &&
    (!words || (paths[i] ?? "").toLocaleLowerCase().includes(words)) && (view === "names" || labelled(i) === (view === "labelled")));
  $("useall").hidden = view !== "groups";
  if (view === "groups") {
    if (!groups && state.best.length) { groups = []; groups = await fetch("api/groups").then(answer => answer.json()).catch(() => null); }
    const left = new Set(all), known = new Set(state.names.map(({name}) => name));
    const shown = (groups ?? []).map(([title, items]) => [title, items.filter(i => left.has(i))]).filter(([title, items]) => items.length && !known.has(title));
    $("useall").onclick = async () => { if (await accept(shown)) { $("view").value = "names"; show(); } };
    grid.show(shown.map(([title, items]) => ({key: title, title, items, away: () => { groups = groups.filter(([other]) => other !== title); show(); }})));
  } else if (view === "doubtful") {
    grid.show([{key: 0, items: all.sort(orders.doubtful)}]);
  } else {
    const sections = new Map([...state.names.keys(), NONE].map(place => [place, []]));
    for (const i of all.sort(orders[$("order").value])) sections.get(placeOf(i))?.push(i);
    grid.show([...sections].filter(([, items]) => items.length).map(([place, items]) => ({key: place, title: nameOf(place), items})));
  }
}

grid.onselect = () => {
  $("give").hidden = !grid.selected.size;
  $("chosen").textContent = !grid.selected.size ? "" : grid.selected.size === 1 ? "1 photo" : `${counted.format(grid.selected.size)} photos`;
};

const targets = () => grid.selected.size ? [...grid.selected] : grid.active === null ? [] : [grid.active];

async function give(each) { // photos, each with the name that they are given; null: none of these
  if (each.length && await send({do: "label", each})) { $("to").value = ""; grid.select([]); }
}
const label = name => give(targets().length ? [[targets(), name]] : []);
const confirmed = () => give(targets().filter(i => placeOf(i) !== NONE || labelled(i)).map(i => [[i], placeOf(i) === NONE ? null : nameOf(placeOf(i))])); // as they are named now

function nameMeant(text) { // the name that is written, or the only one that begins like it
  const begin = state.names.filter(({name}) => name.toLocaleLowerCase().startsWith(text.toLocaleLowerCase()));
  return begin.length === 1 ? begin[0].name : text;
}

// --------------------------------------------------------------------------------------------------------- dialogs and buttons

function openRename(name) {
  renaming = name;
  $("renaming").replaceChildren("Rename ", element("bdi", {}, name.name), ", or merge it into a name that there is:");
  $("renamed").value = name.name;
  $("rename").returnValue = "";
  $("rename").showModal();
  $("renamed").select();
}

$("rename").onclose = () => {
  const text = $("renamed").value.trim(), other = state.names.find(name => name.name === text && name.id !== renaming.id);
  const answer = $("rename").returnValue;
  if (answer === "delete") send({do: "delete", name: renaming.id});
  else if (answer && other) send({do: "merge", name: renaming.id, into: other.id});
  else if (answer === "merge") complain(`There is no other name '${text}' to merge into.`);
  else if (answer && text && text !== renaming.name) send({do: "rename", name: renaming.id, to: text});
};

function ask() { // about the next of the photos that are drawn at random
  const [checked, right, low, high] = state.checked, photo = state.sample, there = photo !== null && state.names.length > 0;
  $("accuracy").textContent = checked ? `${right} of ${checked} random photos are right: ${percent(right / checked)}, 95 % interval ${percent(low / 100)} to ${percent(high / 100)}.` : "Photos are drawn at random, so that their share is that of all.";
  $("asked").textContent = there ? paths[photo] : state.names.length ? "All photos have a label or have been checked." : "There are no names yet.";
  for (const id of ["sample", "right", "wrong", "righter"]) $(id).hidden = !there;
  $("question").replaceChildren(...there ? ["Is this ", element("b", {}, element("bdi", {}, nameOf(state.best[photo]))), "?"] : []);
  if (there) $("sample").src = `photo/${photo}?large`;
  $("righter").value = "";
  (there ? $("right") : $("enough")).focus();
}

async function judge(name) { // "": wrong, and the right name is not known
  if (state.sample !== null && await send({do: "check", each: [[[state.sample], name]], right: name === nameOf(state.best[state.sample])})) ask();
}

$("check").onclick = () => { $("checking").showModal(); ask(); };
$("right").onclick = () => judge(nameOf(state.best[state.sample]));
$("wrong").onclick = () => judge("");
$("righter").onkeydown = event => { event.stopPropagation(); if (event.key === "Enter" && $("righter").value.trim()) judge(nameMeant($("righter").value.trim())); };
$("enough").onclick = () => $("checking").close();
$("checking").onkeydown = event => ({y: $("right"), n: $("wrong")})[event.key]?.click();
$("add").onsubmit = async event => { event.preventDefault(); const name = $("new").value.trim(); if (name && await send({do: "add", names: [name]})) $("new").value = ""; };
$("undo").onclick = () => send({do: "undo"});
$("keywords").onclick = () => send({do: "keywords"});
$("givenow").onclick = async () => { const name = $("to").value.trim(); if (name) { await label(nameMeant(name)); $("grid").focus(); } };
$("to").onkeydown = event => { event.stopPropagation(); if (event.key === "Enter") $("givenow").click(); if (event.key === "Escape") $("grid").focus(); };
$("confirm").onclick = confirmed;
$("none").onclick = () => label(null);
$("clear").onclick = () => grid.select([]);
$("view").onchange = $("order").onchange = $("filter").oninput = () => { // keys are for the first photo, which is in sight
  grid.active = null;
  $("grid").scrollTop = 0;
  show();
};
$("filter").onkeydown = event => { event.stopPropagation(); if (["Escape", "Enter"].includes(event.key)) $("grid").focus(); };

function byKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches?.("input, select")) return;
  const number = Number(event.key);
  if (number >= 1 && number <= Math.min(9, state.names.length)) label(state.names[number - 1].name);
  else if (event.key === "y") confirmed();
  else if (event.key === "n") label(null);
  else if (event.key === "u" && state.undo) send({do: "undo"});
  else if (event.key === "l" || event.key === "/") {
    viewer.dialog.close();
    if (event.key === "l" && !grid.selected.size && grid.active !== null) grid.select([grid.active]);
    const field = $(event.key === "l" ? "to" : "filter");
    field.focus();
    field.select();
  } else return;
  event.preventDefault();
}
document.addEventListener("keydown", event => { if (!document.querySelector("dialog[open]")) byKey(event); });
follow();
$("grid").focus();
