// Parts that the pages of photos share: elements of text alone, one card, a grid of which only what is in sight is in the page,
// and one viewer. The gallery has this file inside of it, `kdpl open` and the exported page load it.

export function element(tag, properties = {}, ...children) { // text only, never markup: names and paths come from anywhere
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role") made.setAttribute(key, value); else made[key] = value;
  }
  made.append(...children);
  return made;
}

export const counted = new Intl.NumberFormat("en");
export const percent = p => p === null || p === undefined ? "" : p > 0 && p < .001 ? "<0.1%" : (100 * p).toFixed(1) + "%";

export const byText = new Intl.Collator(undefined, {numeric: true}).compare;

export function ranked(pairs) { // names with their probabilities as bars; without a probability a name alone
  return pairs.map(([name, p]) => {
    const line = element("li", {title: name}, element("bdi", {}, name), element("data", {value: p ?? ""}, percent(p)));
    line.style.setProperty("--share", 100 * (p || 0) + "%");
    return line;
  });
}

export function photoCard({image, names, path}, ...more) {
  return element("div", {className: "card"}, element("img", {src: image, alt: "", decoding: "async", draggable: false}),
    element("ol", {className: "names"}, ...ranked(names)), element("div", {className: "path", title: path}, element("bdi", {}, path)), ...more);
}

const GAP = 12, MARGIN = 16, HEAD = 52;

export class Grid {
  // Sections of items, each a heading and rows of cards. `card(item)` returns {node, label}, `open(item)` shows one.
  // Many items can be selected; of a `single` grid the active one is, and a click opens it.
  constructor(host, {card, head, open, single = false, width = 180, height = 216}) {
    Object.assign(this, {host, card, head, open, single, width, height});
    this.space = element("div", {className: "space", role: "presentation"});
    host.replaceChildren(this.space);
    host.onscroll = () => this.draw();
    host.addEventListener("keydown", event => this.key(event));
    new ResizeObserver(() => this.layOut()).observe(host);
    this.selected = new Set();
    this.onselect = () => {};
    this.made = new Map();
    this.sections = [];
    this.order = [];
    this.active = this.anchor = null;
  }

  show(sections) { // keeps place and selection if the items are still there
    const at = this.order.indexOf(this.active);
    this.sections = sections;
    this.order = sections.flatMap(section => section.items);
    const there = new Set(this.order);
    for (const item of this.selected) if (!there.has(item)) this.selected.delete(item);
    if (!there.has(this.active)) this.active = this.order[Math.min(Math.max(at, 0), this.order.length - 1)] ?? null;
    this.space.replaceChildren();
    this.made.clear();
    this.layOut();
    this.onselect();
  }

  layOut() {
    const inside = this.host.clientWidth - 2 * MARGIN;
    this.columns = Math.max(1, Math.floor((inside + GAP) / (Math.min(this.width, (inside - GAP) / 2) + GAP))); // two at least on a phone
    this.cell = (inside - GAP * (this.columns - 1)) / this.columns;
    this.rows = []; // {top, section} or {top, items}
    let top = MARGIN, at = 0;
    for (const section of this.sections) {
      if (section.title !== undefined) { this.rows.push({top, section}); top += HEAD; }
      for (let from = 0; from < section.items.length; from += this.columns) {
        this.rows.push({top, at: at + from, items: section.items.slice(from, from + this.columns)});
        top += this.height + GAP;
      }
      at += section.items.length;
    }
    this.space.style.height = top + "px";
    this.draw();
  }

  draw() {
    const from = this.host.scrollTop - this.height, to = this.host.scrollTop + this.host.clientHeight + this.height;
    const wanted = new Map();
    for (const row of this.rows.filter(({top}) => top + this.height >= from && top < to)) {
      if (row.section) wanted.set("head " + row.section.key, [row.top, MARGIN, row.section]);
      else row.items.forEach((item, column) => wanted.set(item, [row.top, MARGIN + column * (this.cell + GAP), null, row.at + column]));
    }
    for (const [key, {node}] of this.made) if (!wanted.has(key)) { node.remove(); this.made.delete(key); }
    for (const [key, [top, left, section, at]] of wanted) {
      let made = this.made.get(key);
      if (!made) {
        made = section ? {node: this.head(section)} : this.make(key, at);
        this.made.set(key, made);
        this.space.append(made.node);
      }
      const size = section ? {right: MARGIN + "px"} : {width: this.cell + "px", height: this.height + "px"};
      Object.assign(made.node.style, {position: "absolute", top: top + "px", left: left + "px"}, size);
    }
    if (this.made.has(this.active)) this.host.setAttribute("aria-activedescendant", "card" + this.active);
    else this.host.removeAttribute("aria-activedescendant");
  }

  make(item, at) {
    const made = this.card(item);
    const facts = {id: "card" + item, role: "option", "aria-label": made.label, "aria-posinset": at + 1, "aria-setsize": this.order.length};
    for (const [key, value] of Object.entries(facts)) made.node.setAttribute(key, value);
    made.node.addEventListener("click", event => this.click(item, event));
    made.node.addEventListener("dblclick", () => this.open(item));
    this.mark(item, made.node);
    return made;
  }

  mark(item, node = this.made.get(item)?.node) {
    if (!node) return;
    node.setAttribute("aria-selected", this.single ? item === this.active : this.selected.has(item));
    node.classList.toggle("active", item === this.active);
  }

  click(item, event) {
    if (this.single) return this.open(item);
    if (event.shiftKey && this.anchor !== null) this.range(item);
    else if (event.ctrlKey || event.metaKey || event.target.closest(".tick")) this.toggle(item);
    else this.select([item]);
    this.move(item, false);
  }

  toggle(item) {
    if (!this.selected.delete(item)) this.selected.add(item);
    this.anchor = item;
    this.mark(item);
    this.onselect();
  }

  select(items) {
    const before = [...this.selected];
    this.selected = new Set(items);
    this.anchor = items[0] ?? this.anchor;
    for (const item of [...before, ...items]) this.mark(item);
    this.onselect();
  }

  range(item) {
    const [from, to] = [this.order.indexOf(this.anchor), this.order.indexOf(item)].sort((a, b) => a - b);
    const anchor = this.anchor;
    this.select(this.order.slice(Math.max(0, from), to + 1));
    this.anchor = anchor;
  }

  move(item, scroll = true) {
    if (item === null || item === undefined) return;
    const before = this.active;
    this.active = item;
    this.mark(before);
    const row = this.rows.find(each => each.items?.includes(item));
    if (scroll && row) {
      if (row.top - HEAD < this.host.scrollTop) this.host.scrollTop = row.top - HEAD;
      else if (row.top + this.height + GAP > this.host.scrollTop + this.host.clientHeight)
        this.host.scrollTop = row.top + this.height + GAP - this.host.clientHeight;
    }
    this.draw();
    this.mark(item);
  }

  step(key) { // the item that an arrow leads to
    const at = this.order.indexOf(this.active);
    const rows = this.rows.filter(row => row.items), row = rows.findIndex(each => each.items.includes(this.active));
    const page = Math.max(1, Math.floor(this.host.clientHeight / (this.height + GAP)));
    const down = {ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page}[key];
    if (down) {
      const next = rows[Math.min(rows.length - 1, Math.max(0, row + down))];
      return next?.items[Math.min(next.items.length - 1, rows[row]?.items.indexOf(this.active) ?? 0)];
    }
    return this.order[{ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: this.order.length - 1}[key]];
  }

  key(event) {
    if (event.target !== this.host || event.altKey) return;
    if (/^Arrow|^Page|^Home$|^End$/.test(event.key)) {
      const item = this.step(event.key);
      if (item !== undefined) {
        if (event.shiftKey && !this.single) { this.anchor ??= this.active; this.range(item); }
        this.move(item);
      }
    } else if (event.key === " " && !this.single) { if (this.active !== null) this.toggle(this.active); }
    else if (event.key === "Enter" || event.key === " ") { if (this.active !== null) this.open(this.active); }
    else if (this.single) return;
    else if (event.key === "a" && (event.ctrlKey || event.metaKey)) this.select(this.order);
    else if (event.key === "Escape") this.select([]);
    else return;
    event.preventDefault();
  }
}

export class Viewer {
  // A dialog with one item of a grid, as large as there is room, and the way to its neighbours.
  // `describe(item)` returns {full, image, path, names, note}; `more` stands below; `key(event)` gets all keys but the arrows.
  constructor(grid, {describe, key, more = []}) {
    Object.assign(this, {grid, describe});
    const button = (id, text, act) => this[id] = element("button", {id, onclick: act}, text);
    this.picture = element("img", {id: "picture", alt: ""});
    this.heading = element("p", {id: "heading", className: "path"});
    this.names = element("ol", {id: "all", className: "names"});
    this.note = element("p", {id: "note", className: "path"});
    this.place = element("p", {id: "place"});
    this.dialog = element("dialog", {id: "viewer", "aria-labelledby": "heading"}, this.picture, this.heading, this.names, this.note, ...more,
      element("div", {className: "row"}, button("previous", "← Previous", () => this.turn("ArrowLeft")), this.place,
        button("next", "Next →", () => this.turn("ArrowRight")), button("close", "Close", () => this.dialog.close())));
    document.body.append(this.dialog);
    this.dialog.onkeydown = event => {
      if (!/^Arrow(Left|Right)$/.test(event.key)) return key(event);
      this.turn(event.key);
      event.preventDefault();
    };
    this.dialog.onclick = event => { if (event.target === this.dialog) this.dialog.close(); };
    this.dialog.onclose = () => { if (!document.activeElement?.matches("input")) grid.host.focus(); }; // "/" may have come before it
  }

  open(item) {
    if (item === null || item === undefined) return;
    this.grid.move(item);
    this.fill();
    if (!this.dialog.open) { this.dialog.showModal(); this.next.focus(); }
  }

  turn(key) { this.open(this.grid.step(key)); }

  fill() {
    if (this.grid.active === null) { this.dialog.close(); return; }
    const {full, image, path, names, note = []} = this.describe(this.grid.active), at = this.grid.order.indexOf(this.grid.active);
    this.picture.onerror = () => { this.picture.onerror = null; this.picture.src = image; }; // moved, or of a kind that browsers do not show
    this.picture.src = full || image;
    this.heading.replaceChildren(element("bdi", {}, path));
    this.names.replaceChildren(...ranked(names));
    this.note.hidden = !note.length;
    this.note.replaceChildren(...note);
    this.place.textContent = `${counted.format(at + 1)} of ${counted.format(this.grid.order.length)}`;
    this.previous.disabled = at === 0;
    this.next.disabled = at === this.grid.order.length - 1;
  }
}
