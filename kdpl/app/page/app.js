// Photos in groups by name. The state is the server's: each change is sent, written there, and comes back sorted.
import {Grid, Viewer, byText, counted, element, percent, photoCard} from "./parts.js";

const $ = id => document.getElementById(id);
const NONE = -1, UNLABELLED = -2;
let state = {version: -1, names: [], best: [], p: [], margin: [], label: []}, paths = [], groups = null, asked = null, renaming = null;
const chosen = new Set(); // ids of the names that are shown alone

async function get(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address}: ${answer.status}`);
  return answer.json();
}

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
    complain(error instanceof TypeError ? "The server does not answer: start kdpl open again. Nothing that was shown as saved is lost." : error.message);
    return false;
  } finally {
    document.body.removeAttribute("aria-busy");
  }
}

function complain(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
  clearTimeout(complain.timer);
  complain.timer = setTimeout(() => { $("error").hidden = true; }, 8000);
}

async function follow() { // news from the pass over the photos and from other tabs
  for (;;) {
    try {
      const news = await get(`api/state?since=${state.version}`);
      if (news.best.length > paths.length) paths.push(...await get(`api/paths?from=${paths.length}`));
      if (news.version > state.version || news.version < state.version && news.run !== state.run) take(news);
    } catch {
      await new Promise(done => setTimeout(done, 1500));
    }
  }
}

function take(news) {
  if (news.version !== state.version) groups = groups && news.best.length === state.best.length ? groups : null;
  state = news;
  for (const id of chosen) if (!state.names.some(name => name.id === id)) chosen.delete(id);
  const working = state.seen < state.total;
  $("progress").hidden = !state.doing;
  $("bar").max = state.total || 1;
  $("bar").value = state.seen;
  $("bar").hidden = !working;
  $("doing").textContent = state.doing;
  $("verdict").replaceChildren(...state.verdict.flatMap((line, i) => i ? [element("br"), line] : [line]));
  $("verdict").classList.toggle("bad", !state.fits);
  $("undo").disabled = !state.undo;
  $("undo").title = state.undo;
  $("undo").textContent = state.undo ? `Undo: ${state.undo}` : "Undo";
  $("known").replaceChildren(...state.names.map(name => element("option", {value: name.name})));
  showNames();
  show().then(() => viewer.dialog.open && viewer.fill());
}

function showNames() {
  const rows = state.names.map((name, i) => {
    const button = element("button", {className: "name", title: name.name, "aria-pressed": chosen.has(name.id)},
      element("bdi", {}, name.name), element("data", {}, counted.format(name.photos)),
      element("small", {className: name.note ? "bad" : ""}, name.note || (name.photos ? `${percent(name.sure)} sure` : "no photo")));
    button.onclick = () => { chosen.delete(name.id) || chosen.add(name.id); showNames(); show(); };
    const edit = element("button", {className: "edit", "aria-label": `Rename, merge or delete ${name.name}`}, "⋯");
    edit.onclick = () => openRename(name);
    const line = element("li", {}, button, edit);
    button.onkeydown = event => { if (event.key === "F2") openRename(name); if (event.key === "Delete") send({do: "delete", name: name.id}); };
    button.draggable = true;
    button.ondragstart = event => event.dataTransfer.setData("text/x-name", name.id);
    dropTarget(line, event => {
      const other = event.dataTransfer.getData("text/x-name");
      if (other && Number(other) !== name.id) send({do: "merge", name: Number(other), into: name.id});
      else if (!other) label(name.name);
    });
    if (i < 9) button.setAttribute("aria-keyshortcuts", i + 1);
    return line;
  });
  const none = element("li", {className: "none"}, element("button", {className: "name", "aria-pressed": chosen.has(NONE)}, element("bdi", {}, "(none of these)"),
    element("data", {}, counted.format(state.label.filter(l => l === NONE).length))));
  none.firstChild.onclick = () => { chosen.delete(NONE) || chosen.add(NONE); showNames(); show(); };
  dropTarget(none, () => label(null));
  $("names").replaceChildren(...rows, none);
}

function dropTarget(line, drop) {
  line.ondragover = event => { event.preventDefault(); line.classList.add("over"); };
  line.ondragleave = () => line.classList.remove("over");
  line.ondrop = event => { event.preventDefault(); line.classList.remove("over"); drop(event); };
}

// ------------------------------------------------------------------------------------------------------------------- the grid

const grid = new Grid($("grid"), {card, head, open: i => viewer.open(i)});
const viewer = new Viewer(grid, {describe, key: byKey});
const labelled = i => state.label[i] !== UNLABELLED;
const placeOf = i => labelled(i) ? state.label[i] : state.best[i]; // a label counts for more than a guess
const nameOf = place => place === NONE ? "(none of these)" : state.names[place]?.name ?? "";

function describe(i) {
  const name = labelled(i) || state.names.length ? nameOf(placeOf(i)) : "";
  const names = !name ? [] : labelled(i) ? [[`✓ ${name}`, null]] : [[name, state.p[i]]];
  const note = labelled(i) && state.best[i] >= 0 ? ["Your label. Without it: ", element("bdi", {}, nameOf(state.best[i])), `, ${percent(state.p[i])}`] : [];
  return {name, full: `photo/${i}`, image: `thumb/${i}`, path: paths[i] ?? "", names, note};
}

function card(i) {
  const about = describe(i), node = photoCard(about, element("span", {className: "tick"}));
  node.classList.toggle("mine", labelled(i));
  node.draggable = true;
  node.ondragstart = event => { // drag what is selected, or this one
    if (!grid.selected.has(i)) grid.select([i]);
    event.dataTransfer.setData("text/x-photos", grid.selected.size);
  };
  return {node, label: `${about.name}, ${labelled(i) ? "your label" : percent(state.p[i])}, ${about.path}`};
}

function head(section) {
  const node = element("div", {className: "head", role: "presentation"}, element("bdi", {}, section.title), element("data", {}, counted.format(section.items.length)));
  if (section.group) {
    const input = element("input", {value: section.title, "aria-label": "Name of this group"});
    const accept = element("button", {}, "Use this name"), away = element("button", {}, "Not a group");
    const use = () => input.value.trim() && send({do: "group", name: input.value.trim(), photos: section.items});
    accept.onclick = use;
    input.onkeydown = event => { event.stopPropagation(); if (event.key === "Enter") use(); };
    away.onclick = () => { groups = groups.filter(group => group !== section.group); show(); };
    node.replaceChildren(input, element("data", {}, counted.format(section.items.length)), accept, away);
  }
  return node;
}

const orders = {
  sure: (a, b) => state.margin[b] - state.margin[a],
  doubtful: (a, b) => state.margin[a] - state.margin[b],
  path: (a, b) => byText(paths[a], paths[b]),
};

async function show() {
  const words = $("filter").value.trim().toLocaleLowerCase(), view = $("view").value, order = orders[$("order").value];
  const fits = i => !words || (paths[i] ?? "").toLocaleLowerCase().includes(words);
  const wanted = place => !chosen.size || chosen.has(place === NONE ? NONE : state.names[place]?.id);
  const all = state.best.map((_, i) => i).filter(i => fits(i) && wanted(placeOf(i)));
  if (view === "groups" || !state.names.length) {
    if (!groups && state.best.length) { groups = []; try { groups = await get("api/groups"); } catch { groups = null; } }
    const left = new Set(all.filter(i => state.label[i] === UNLABELLED));
    grid.show((groups ?? []).map((group, k) => ({key: k, title: group.name, group, items: group.photos.filter(i => left.has(i))})).filter(s => s.items.length));
  } else if (view === "doubtful") {
    grid.show([{key: 0, items: all.filter(i => state.label[i] === UNLABELLED).sort(orders.doubtful)}]);
  } else {
    const some = view === "labelled" ? all.filter(i => state.label[i] !== UNLABELLED) : all;
    const sections = new Map([...state.names.keys(), NONE].map(place => [place, []]));
    for (const i of some) sections.get(placeOf(i))?.push(i);
    grid.show([...sections].filter(([, items]) => items.length).map(([place, items]) => ({key: place, title: nameOf(place), items: items.sort(order)})));
  }
}

grid.onselect = () => {
  $("give").hidden = !grid.selected.size;
  $("chosen").textContent = grid.selected.size === 1 ? "1 photo" : `${counted.format(grid.selected.size)} photos`;
};

const targets = () => grid.selected.size ? [...grid.selected] : grid.active === null ? [] : [grid.active];

async function label(name) { // null: none of these
  const photos = targets();
  if (photos.length && await send({do: "label", photos, name})) { $("to").value = ""; grid.select([]); }
}

async function confirmed() { // as they are named now
  const by = Map.groupBy ? Map.groupBy(targets(), placeOf) : targets().reduce((m, i) => m.set(placeOf(i), [...m.get(placeOf(i)) ?? [], i]), new Map());
  await send({do: "label", each: [...by].filter(([place]) => place >= NONE).map(([place, photos]) => [photos, place === NONE ? null : nameOf(place)])});
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
  else if (answer === "merge") complain(`There is no name '${text}' to merge into.`);
  else if (answer && text && text !== renaming.name) send({do: "rename", name: renaming.id, to: text});
};

async function ask() { // the next of the photos that are drawn at random
  asked = await get("api/sample").catch(() => null);
  const checked = state.checked;
  $("accuracy").textContent = checked.n ? `${checked.right} of ${checked.n} random photos are right: ${percent(checked.right / checked.n)}, 95 % interval ${percent(checked.low)} to ${percent(checked.high)}.` : "Photos are drawn at random, so that their share is that of all.";
  const there = asked && asked.photo !== null;
  $("asked").textContent = there ? paths[asked.photo] : "All photos have a label or have been checked.";
  for (const id of ["sample", "right", "wrong", "righter"]) $(id).hidden = !there;
  $("question").replaceChildren(...there ? ["Is this ", element("b", {}, element("bdi", {}, nameOf(state.best[asked.photo]))), "?"] : []);
  if (there) $("sample").src = `photo/${asked.photo}`;
  $("righter").value = "";
}

async function judge(name) { // undefined: wrong, and the right name is not known
  if (!asked || asked.photo === null) return;
  const photo = asked.photo;
  if (await send({do: "check", photo, right: name === nameOf(state.best[photo]), ...name === undefined ? {} : {name}})) await ask();
}

$("check").onclick = async () => { $("checking").showModal(); await ask(); $("right").focus(); };
$("right").onclick = () => judge(nameOf(state.best[asked.photo]));
$("wrong").onclick = () => judge(undefined);
$("righter").onkeydown = event => { event.stopPropagation(); if (event.key === "Enter" && $("righter").value.trim()) judge($("righter").value.trim()); };
$("enough").onclick = () => $("checking").close();
$("checking").onkeydown = event => { if (event.key === "y") $("right").click(); else if (event.key === "n") $("wrong").click(); };
$("add").onsubmit = async event => { event.preventDefault(); const name = $("new").value.trim(); if (name && await send({do: "add", names: [name]})) $("new").value = ""; };
$("undo").onclick = () => send({do: "undo"});
$("keywords").onclick = async () => { if (await send({do: "keywords"})) complain(state.told ?? ""); };
$("givenow").onclick = () => $("to").value.trim() && label($("to").value.trim());
$("to").onkeydown = event => { event.stopPropagation(); if (event.key === "Enter") $("givenow").click(); if (event.key === "Escape") $("grid").focus(); };
$("confirm").onclick = confirmed;
$("none").onclick = () => label(null);
$("unlabel").onclick = () => send({do: "unlabel", photos: targets()});
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
  else if (event.key === "l") { if (!grid.selected.size && grid.active !== null) grid.select([grid.active]); $("to").focus(); }
  else if (event.key === "/") { $("filter").focus(); $("filter").select(); }
  else return;
  event.preventDefault();
}
document.addEventListener("keydown", event => { if (!document.querySelector("dialog[open]")) byKey(event); });
follow();
$("grid").focus();
