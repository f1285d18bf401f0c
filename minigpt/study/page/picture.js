// The central picture: two grids, a column for each token and a row for each layer. Each cell says
// what this step did with a position's key and value in that layer.

const $ = (id) => document.getElementById(id);

function element(tag, text = "", attributes = {}) { // text is only ever text, never markup
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function shape(tag, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

const number = (n) => n.toLocaleString("en");
const UNITS = [[1e12, 1e12, "trillion"], [1e9, 1e9, "billion"], [1e6, 1e6, "million"], [1e4, 1e3, "thousand"]];
const short = (n) => { // three digits and a unit
  const [, size, name] = UNITS.find(([from]) => n >= from) ?? [];
  return size ? `${Number((n / size).toPrecision(3))} ${name}` : number(n);
};
const percent = (p) => (p < 1e-5 ? "< 0.001 %" : p < 0.1 ? Number((100 * p).toPrecision(2)) + " %"
  : p > 0.9995 && p < 1 ? "> 99.9 %" : (100 * p).toFixed(1) + " %").replace(/ /g, "\u00a0");
const plural = (n, what) => `${number(n)} ${what}${n === 1 ? "" : "s"}`;
const visible = (text) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/[\x00-\x1f\x7f]/g, "·");
const quoted = (text) => `“${visible(text)}”`;
const named = (source, n) => quoted(source.label(source.tokens[n])); // the token at a position
const add = (items, of) => items.reduce((total, item) => total + of(item), 0);

const ruler = document.createElement("canvas").getContext("2d");
function wide(text, weight = 400) { // of a label in a picture, in pixels
  ruler.font = `${weight} 13px ${getComputedStyle(document.documentElement).fontFamily}`;
  return ruler.measureText(text).width;
}

function tick(text, most = 11) { // a token over its column: spaces show only where they are all there is
  const shown = visible(text), bare = shown.trim();
  return bare ? (bare.length > most ? bare.slice(0, most - 1) + "…" : bare) : shown.replace(/ /g, "␣");
}

// The columns that fit: the last tokens, before them one column that stands for all earlier ones.
function columnsFor(source, width, length) {
  const narrow = width < 420, gutter = wide("layer 0") + 10, overhang = narrow ? 26 : 40, least = narrow ? 14 : 16;
  const left = source.leftover.slice(-6).map((id) => ({ kind: "left", text: source.label(id) }));
  if (left.length) left[0].count = source.leftover.length - left.length + 1;
  const own = Array.from({ length }, (_, n) => ({ kind: "token", n, text: source.label(source.tokens[n]) }));
  let shown = [...left, ...own];
  const most = Math.floor((width - gutter - overhang) / least) - 1;
  if (shown.length > most) {
    const cut = shown.length - most + 1;
    shown = [{ kind: "gap", count: cut, text: `${cut} more` }, ...shown.slice(cut)];
  }
  shown.push({ kind: "next", text: source.label(source.tokens[length]) });
  const pitch = Math.min(narrow ? 30 : 46, (width - gutter - overhang) / shown.length);
  return { gutter, pitch, narrow, columns: shown.map((column, n) => ({ ...column, x: gutter + n * pitch })) };
}

function drawGrid(svg, source, view, side, moving) {
  const { length } = source.frames.at(-1), L = source.config.n_layer, state = states(source, side);
  const { gutter, pitch, narrow, columns } = columnsFor(source, svg.clientWidth, length);
  const top = narrow ? 52 : 64, bracketed = narrow ? 26 : 27; // room for the text above, for words below
  const high = Math.max(3, Math.min(narrow ? 17 : 26, (narrow ? 84 : 150) / L));
  const shown = side === "with" ? columns : columns.filter(({ kind }) => kind !== "left"); // nothing is left over
  const all = [];
  for (const column of shown) {
    const x = column.x + pitch / 2, place = `translate(${x} ${top - 6}) rotate(-50)`;
    const label = shape("text", { class: `token ${column.kind}`, transform: place }, tick(column.text, narrow ? 8 : 11));
    label.append(shape("title", {}, quoted(column.text)));
    all.push(label);
    for (let layer = 0; layer < L; layer++) {
      const kind = { token: state(column.n), gap: state(0) }[column.kind] ?? column.kind;
      const cell = cellAt(column.x, top + layer * high, pitch, high, kind);
      if (column.kind === "token") {
        cell.dataset.layer = layer;
        cell.dataset.token = column.n;
        cell.dataset.told = `${quoted(column.text)}, layer ${layer}: ${WORDS[kind]}`;
        cell.classList.toggle("picked", Boolean(view.picked) && column.n === view.token && layer === view.layer);
      }
      // Layer after layer; without a cache also position after position. Together under a second.
      const along = side === "without" && column.kind === "token" ? column.n / length / L : 0;
      cell.style.setProperty("--wait", `${(0.55 * (layer / L + along)).toFixed(3)}s`);
      all.push(cell);
      if (side === "with" && column.n < view.shared)
        all.push(shape("circle", { class: "dot", cx: x, cy: top + (layer + 0.5) * high, r: Math.min(3, high / 6) }));
    }
  }
  for (let layer = 0, every = Math.ceil(12 / high); layer < L; layer += every) {
    const place = { x: gutter - 6, y: top + (layer + 0.5) * high + 4, "text-anchor": "end" };
    all.push(shape("text", place, layer || "layer 0"));
  }
  const covered = shown.filter(({ kind }) => kind !== "next");
  all.push(...brackets(covered, pitch, top + L * high + 4, state, svg.clientWidth));
  svg.setAttribute("height", top + L * high + bracketed);
  svg.setAttribute("aria-label", `In each of ${plural(L, "layer")}: ${counted(length, state)}.`);
  svg.classList.toggle("moving", moving);
  svg.replaceChildren(...all);
  if (side === "with") crossOut(svg, source);
}

// What this step did with a position: a function of its number.
function states(source, side) {
  const frame = source.frames.at(-1), kept = side === "with" ? frame.kept : 0;
  const before = source.frames.at(-2)?.length ?? 0; // positions that an earlier step had
  return (n) => n < kept ? (n < frame.length - source.window ? "unread" : "kept") : n < before ? "again" : "now";
}

const WORDS = {
  unread: "out of the window", kept: "read from the cache", again: "computed again", now: "computed now",
};

function counted(length, state) { // the states of all positions in words
  const counts = { unread: 0, kept: 0, again: 0, now: 0 };
  for (let n = 0; n < length; n++) counts[state(n)]++;
  const told = Object.entries(counts).filter(([, count]) => count);
  return told.map(([kind, count]) => `${plural(count, "position")} ${WORDS[kind]}`).join(", ");
}

function cellAt(x, y, pitch, high, kind) {
  const gap = pitch > 6 && high > 6 ? 2 : 0.5;
  return shape("rect", { class: `cell ${kind}`, x: x + gap / 2, y: y + gap / 2, rx: Math.min(3, high / 5),
    width: Math.max(1, pitch - gap), height: Math.max(1, high - gap) });
}

// Cells whose key or value is another one than without the cache, once that is known.
function crossOut(svg, source) {
  for (const old of svg.querySelectorAll(".cross")) old.remove();
  for (const cell of svg.querySelectorAll("[data-token]")) {
    if (!source.wrong(Number(cell.dataset.layer), Number(cell.dataset.token))) continue;
    const [x, y, wide, high] = ["x", "y", "width", "height"].map((name) => Number(cell.getAttribute(name)));
    const w = wide - 4, h = high - 4;
    svg.append(shape("path", { class: cell.matches(".now") ? "cross light" : "cross",
      d: `M${x + 2} ${y + 2}l${w} ${h}m0 ${-h}l${-w} ${h}` }));
  }
}


function brackets(columns, pitch, y, state, width) { // under the grid, in words
  const made = [], groups = [];
  for (const column of columns) {
    const kind = column.kind === "left" ? "left" : state(column.n ?? 0), last = groups.at(-1);
    const count = column.count ?? 1;
    if (last?.kind === kind) Object.assign(last, { to: column.x + pitch, count: last.count + count });
    else groups.push({ kind, from: column.x, to: column.x + pitch, count });
  }
  const words = ({ kind, count }) => `${number(count)} ${kind === "left" ? "left over" : WORDS[kind]}`;
  const end = groups.at(-1), reserved = groups.length > 1 ? wide(words(end), 600) + 10 : 0;
  let free = 0; // where the next words may begin
  for (const [n, group] of groups.entries()) {
    const { kind, from, to } = group, style = { left: "again", unread: "kept" }[kind] ?? kind;
    made.push(shape("path", { class: `bracket ${style}`, d: `M${from + 1} ${y}v4H${to - 1}v-4` }));
    const last = n > 0 && n === groups.length - 1, long = wide(words(group), kind === "now" ? 600 : 400);
    const most = last ? width - long : end.to - reserved - long;
    const x = Math.max(free, 0, Math.min(last ? to - long : (from + to) / 2 - long / 2, most));
    made.push(shape("text", { class: style, x, y: y + 17 }, words(group)));
    free = x + long + 10;
  }
  return made;
}

function drawWork(id, side, source) { // counts beside the grid; both bars have one scale
  const { frames } = source, frame = frames.at(-1), work = frame[side === "with" ? "cached" : "uncached"];
  const most = Math.max(frame.cached.multiplications, frame.uncached.multiplications);
  const soFar = add(frames, (f) => f[side === "with" ? "cached" : "uncached"].multiplications);
  const again = side === "without" || source.settings?.useCache === false;
  const track = element("span", "", { class: again ? "bar again" : "bar" }), filled = element("i");
  filled.style.width = `${100 * work.multiplications / most}%`;
  track.append(filled);
  const took = work.seconds === null ? "" : ` · ${milliseconds(work.seconds)} ms`;
  $(id).replaceChildren(element("b", short(work.multiplications)), element("span",
    `multiplications for ${plural(work.positions, "position")} · ${short(soFar)} so far${took}`), track);
}

const milliseconds = (seconds) => seconds < 0.1 ? (1000 * seconds).toFixed(seconds < 0.01 ? 2 : 1)
  : number(Math.round(1000 * seconds));
