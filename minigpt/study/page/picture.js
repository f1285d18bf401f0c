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
const short = (n) => { // three digits and a unit
  const unit = [[1e12, " trillion"], [1e9, " billion"], [1e6, " million"], [1e4, " thousand", 1e3]].find(([from]) => n >= from);
  return unit ? Number((n / (unit[2] ?? unit[0])).toPrecision(3)) + unit[1] : number(n);
};
const percent = (p) => (p < 1e-5 ? "< 0.001 %" : p < 0.1 ? Number((100 * p).toPrecision(2)) + " %"
  : p > 0.9995 && p < 1 ? "> 99.9 %" : (100 * p).toFixed(1) + " %").replace(/ /g, "\u00a0");
const plural = (n, what) => `${number(n)} ${what}${n === 1 ? "" : "s"}`;
const visible = (text) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/[\x00-\x1f\x7f]/g, "·");
const quoted = (text) => `“${visible(text)}”`;
const add = (items, of) => items.reduce((total, item) => total + of(item), 0);

const ruler = document.createElement("canvas").getContext("2d");
function wide(text, weight = 400) { // of a label in a picture, in pixels
  ruler.font = `${weight} 13px ${getComputedStyle(document.documentElement).fontFamily}`;
  return ruler.measureText(text).width;
}

function tick(text) { // a token over its column: spaces show only where they are all there is
  const shown = visible(text), bare = shown.trim();
  return bare ? (bare.length > 11 ? bare.slice(0, 10) + "…" : bare) : shown.replace(/ /g, "␣");
}

// The columns that fit: the last tokens, before them one column that stands for all earlier ones.
function columnsFor(source, width, length) {
  const narrow = width < 420, gutter = wide("layer 0") + 10, overhang = narrow ? 26 : 40, least = narrow ? 12 : 14;
  const left = source.leftover.slice(-6).map((id) => ({ kind: "left", text: source.label(id) }));
  if (left.length) left[0].count = source.leftover.length - left.length + 1;
  const own = Array.from({ length }, (_, n) => ({ kind: "token", n, text: source.label(source.tokens[n]) }));
  let shown = [...left, ...own];
  const most = Math.floor((width - gutter - overhang) / least) - 1;
  if (shown.length > most) {
    const cut = shown.length - most + 1;
    shown = [{ kind: "gap", count: cut, text: `${cut} earlier` }, ...shown.slice(cut)];
  }
  shown.push({ kind: "next", text: source.label(source.tokens[length]) });
  const pitch = Math.min(narrow ? 30 : 46, (width - gutter - overhang) / shown.length);
  return { gutter, pitch, narrow, columns: shown.map((column, n) => ({ ...column, x: gutter + n * pitch })) };
}

function drawGrid(svg, source, view, side, moving) {
  const frame = source.frames.at(-1), { length } = frame, L = source.config.n_layer;
  const { gutter, pitch, narrow, columns } = columnsFor(source, svg.clientWidth, length);
  const top = narrow ? 52 : 64, high = Math.max(3, Math.min(narrow ? 17 : 26, (narrow ? 84 : 150) / L));
  const foot = narrow ? 22 : 26, kept = side === "with" ? frame.kept : 0;
  const bottom = top + L * high, gap = pitch > 6 && high > 6 ? 2 : 0.5;
  svg.setAttribute("height", bottom + foot);
  svg.classList.toggle("moving", moving);
  const all = [], before = source.frames.at(-2)?.length ?? 0; // positions that an earlier step had
  const state = (n) => n < kept ? (n < length - source.window ? "unread" : "kept") : n < before ? "again" : "now";
  for (const column of columns) {
    if (side === "without" && column.kind === "left") continue; // there is nothing that could be left over
    const x = column.x + pitch / 2, label = shape("text", { class: `token ${column.kind}`,
      transform: `translate(${x} ${top - 6}) rotate(-50)` }, tick(column.text));
    label.append(shape("title", {}, quoted(column.text)));
    all.push(label);
    for (let layer = 0; layer < L; layer++) {
      const kind = column.kind === "token" ? state(column.n) : column.kind === "gap" ? state(0) : column.kind;
      const y = top + layer * high, picked = view.picked && column.n === view.token && layer === view.layer;
      const cell = shape("rect", { class: `cell ${kind}${picked ? " picked" : ""}`, x: column.x + gap / 2, y: y + gap / 2,
        width: Math.max(1, pitch - gap), height: Math.max(1, high - gap), rx: Math.min(3, high / 5) });
      if (column.kind === "token") {
        cell.dataset.layer = layer;
        cell.dataset.token = column.n;
        cell.append(shape("title", {}, `${quoted(column.text)}, layer ${layer}: ${WORDS[kind]}`));
      }
      // Layer after layer; without a cache also position after position. Together under a second.
      const along = side === "without" && column.kind === "token" ? column.n / length / L : 0;
      cell.style.setProperty("--wait", `${(0.55 * (layer / L + along)).toFixed(3)}s`);
      all.push(cell);
      if (side === "with" && column.n < view.shared)
        all.push(shape("circle", { class: "dot", cx: x, cy: y + high / 2, r: Math.min(3, high / 6) }));
    }
  }
  const every = Math.ceil(12 / high);
  for (let layer = 0; layer < L; layer += every)
    all.push(shape("text", { x: gutter - 6, y: top + layer * high + high / 2 + 4, "text-anchor": "end" }, layer ? layer : "layer 0"));
  all.push(...brackets(columns.filter(({ kind }) => kind !== "next" && (kind !== "left" || side === "with")),
    pitch, bottom + 4, state, svg.clientWidth));
  svg.replaceChildren(...all);
  if (side === "with") crossOut(svg, source);
  const counts = { unread: 0, kept: 0, again: 0, now: 0 };
  for (let n = 0; n < length; n++) counts[state(n)]++;
  svg.setAttribute("aria-label", `In each of ${plural(L, "layer")}: ` + Object.entries(counts)
    .filter(([, count]) => count).map(([kind, count]) => `${plural(count, "position")} ${WORDS[kind]}`).join(", ") + ".");
}

// Cells whose key or value is another one than without the cache, once that is known.
function crossOut(svg, source) {
  for (const old of svg.querySelectorAll(".cross")) old.remove();
  for (const cell of svg.querySelectorAll("[data-token]")) {
    if (!source.wrong(Number(cell.dataset.layer), Number(cell.dataset.token))) continue;
    const [x, y, wide, high] = ["x", "y", "width", "height"].map((name) => Number(cell.getAttribute(name)));
    svg.append(shape("path", { class: "cross", d: `M${x + 2} ${y + 2}l${wide - 4} ${high - 4}m0 ${4 - high}l${4 - wide} ${high - 4}` }));
  }
}

const WORDS = { unread: "out of the window", kept: "read from the cache", again: "computed again", now: "computed now" };

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
  const track = element("span", "", { class: side === "without" || source.settings?.useCache === false ? "bar again" : "bar" }), filled = element("i");
  filled.style.width = `${100 * work.multiplications / most}%`;
  track.append(filled);
  const took = work.seconds === null ? "" : ` · ${milliseconds(work.seconds)} ms`;
  $(id).replaceChildren(element("b", short(work.multiplications)), element("span",
    `multiplications for ${plural(work.positions, "position")} · ${short(soFar)} so far${took}`), track);
}

const milliseconds = (seconds) => seconds < 0.1 ? (1000 * seconds).toFixed(seconds < 0.01 ? 2 : 1)
  : number(Math.round(1000 * seconds));
