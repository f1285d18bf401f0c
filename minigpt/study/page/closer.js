// Look closer: what one query reads, what the cache holds, what each layer adds and would say.

function row(head, cells, attributes = {}) { // a table's row: its heading, then text or elements
  const made = element("tr", "", attributes);
  made.append(typeof head === "string" ? element("th", head, { scope: "row" }) : head);
  for (const cell of cells) {
    const td = element("td");
    td.append(cell);
    made.append(td);
  }
  return made;
}

const tokenHeading = (text) => element("th", quoted(text), { scope: "row", class: "quoted" });

function bar(text, share, kind = "") {
  const all = new DocumentFragment(), track = element("span", "", { class: `bar ${kind}` });
  const filled = element("i");
  filled.style.width = `${100 * share}%`;
  track.append(filled);
  all.append(text, track);
  return all;
}

function canvas(id, height, width = $(id).clientWidth) { // cleared, in CSS pixels
  const area = $(id), scale = window.devicePixelRatio || 1;
  area.style.height = `${height}px`;
  area.width = Math.round(width * scale);
  area.height = Math.round(height * scale);
  const pen = area.getContext("2d");
  pen.scale(scale, scale);
  pen.font = `12px ${getComputedStyle(document.documentElement).fontFamily}`;
  return [pen, width];
}

const colours = () => {
  const style = getComputedStyle(document.documentElement);
  return (name) => style.getPropertyValue(`--${name}`).trim();
};

// --- the text, and lines from the query to the keys that it reads ---

function drawText(source, view) {
  const { length } = source.frames.at(-1), { tokens } = source, { row: weights, from } = readBy(source, view);
  const spans = source.pieces.map((piece, n) => {
    const next = n === length, made = element("span", spelled(piece, source.label(tokens[n])),
      next ? { class: "next" } : { role: "option", id: `token-${n}`, "aria-selected": n === view.token });
    if (n === view.token) made.classList.add("current");
    if (n < source.prompt) made.classList.add("given");
    if (next) made.title = `chosen next: ${quoted(source.label(tokens[n]))}`;
    else made.dataset.token = n;
    const weight = weights[n - from] ?? 0;
    const share = Math.round(40 * Math.sqrt(weight));
    if (!next && share > 2) made.style.background = `color-mix(in srgb, var(--attention) ${share}%, transparent)`;
    return made;
  });
  $("text").replaceChildren(...spans);
  $("text").setAttribute("aria-activedescendant", `token-${view.token}`);
  drawLines(weights, from, view);
}

function spelled(piece, label) { // line breaks show, and a token that completes no character
  return piece === "" ? "…" : piece.replace(/\n/g, "↵\n").replace(/\t/g, "⇥\t") || label;
}

function readBy(source, view) {
  const { from, row } = source.weights(view.layer, view.head, view.token);
  return { from, row: Array.from(row) };
}

function drawLines(weights, from, view) {
  const frame = $("reading").getBoundingClientRect(), spans = $("text").children;
  const place = (n) => {
    const box = spans[n].getClientRects()[0];
    if (!box) return null;
    return { x: box.left + box.width / 2 - frame.left, y: box.top - frame.top, foot: box.bottom - frame.top };
  };
  const start = place(view.token), lines = [];
  weights.forEach((weight, s) => {
    const n = from + s;
    if (weight < 0.02 || n < 0 || n >= spans.length) return;
    const end = place(n), look = { "stroke-width": 1 + 5 * weight, opacity: 0.35 + 0.65 * Math.sqrt(weight) };
    if (!start || !end) return;
    const lift = 10 + Math.min(16, Math.abs(start.x - end.x) / 20), above = end.foot < start.y; // a line above
    const y = above ? end.foot : end.y, bend = above ? y + lift : y - lift; // is reached from below
    const curve = `M${start.x} ${start.y}C${start.x} ${start.y - lift} ${end.x} ${bend} ${end.x} ${y}`;
    lines.push(n === view.token ? shape("circle", { cx: start.x, cy: start.y - 6, r: 6, ...look })
      : shape("path", { d: curve, ...look }));
  });
  $("lines").replaceChildren(...lines);
}

function drawReading(source, view) {
  const { from, row: weights } = readBy(source, view), labelOf = (s) => {
    const n = from + s;
    return n < 0 ? source.label(source.leftover.at(n)) : source.label(source.tokens[n]);
  };
  const line = (s) => row(tokenHeading(labelOf(s)), [from + s < 0 ? "left over" : String(from + s),
    bar(weights[s].toFixed(3), weights[s], "attention")]);
  const order = weights.map((_, s) => s).sort((a, b) => weights[b] - weights[a]).slice(0, 5);
  $("most").tBodies[0].replaceChildren(...order.map(line));
  if ($("all-weights").open) // hundreds of rows: built for those who look
    $("weights").tBodies[0].replaceChildren(...weights.map((_, s) => line(s)));
  $("query").textContent = `The query of ${named(source, view.token)} (position ${view.token}) ` +
    `in layer ${view.layer}, head ${view.head}, reads ${plural(weights.length, "key")}, ` +
    `most of all that of ${quoted(labelOf(order[0]))}.`;
}

// --- all heads, small ---

const MANY_HEADS = 80; // with more, as GPT-2's 144, those of one layer are shown

function buildHeads(source, view, look) {
  const { n_layer: L, n_head: H } = source.config;
  const layers = L * H <= MANY_HEADS ? [...Array(L).keys()] : [view.layer];
  $("heads").replaceChildren(...layers.map((layer) => {
    const line = element("div", "", { class: "row" });
    line.append(element("span", `layer ${layer}`, { class: "soft small" }));
    for (let head = 0; head < H; head++) {
      const thumb = element("button", "", { class: "thumb", role: "radio", "data-layer": layer, "data-head": head,
        "aria-label": `layer ${layer}, head ${head}` });
      thumb.append(element("canvas", "", { "aria-hidden": true }));
      thumb.onclick = () => look({ layer, head });
      line.append(thumb);
    }
    return line;
  }));
}

function drawHeads(source, view) {
  const side = 44, { length } = source.frames.at(-1), per = side / Math.max(length, 8);
  const colour = colours(), pale = channels(colour("card")), strong = channels(colour("attention"));
  for (const thumb of $("heads").querySelectorAll(".thumb")) {
    const layer = Number(thumb.dataset.layer), head = Number(thumb.dataset.head);
    const chosen = layer === view.layer && head === view.head;
    thumb.setAttribute("aria-checked", chosen);
    thumb.tabIndex = chosen ? 0 : -1;
    const picture = new ImageData(side, side), most = new Float32Array(side * side);
    for (let query = 0; query < length; query++) {
      const { from, row: weights } = source.weights(layer, head, query);
      for (let s = Math.max(0, -from); s < weights.length && from + s < length; s++)
        for (let y = Math.floor(query * per); y < Math.max(query * per + 1e-6, (query + 1) * per - 0.01); y++)
          for (let x = Math.floor((from + s) * per); x < (from + s + 1) * per - 0.01; x++)
            most[y * side + x] = Math.max(most[y * side + x], weights[s]);
    }
    most.forEach((weight, n) => {
      for (let c = 0; c < 3; c++) picture.data[4 * n + c] = pale[c] + (strong[c] - pale[c]) * Math.sqrt(weight);
      picture.data[4 * n + 3] = 255;
    });
    const area = thumb.firstChild;
    area.width = area.height = side;
    area.getContext("2d").putImageData(picture, 0, 0);
  }
}

const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

// --- keys and values, as numbers with a colour ---

const signed = (value) => value.toFixed(4).replace("-", "−");

const STRIP = { high: 14, left: 92, gap: 12, top: 20 };

function drawStrips(source, view) {
  const frame = source.frames.at(-1), { length } = frame;
  const vectors = ["keys", "values"].map((part) => Array.from({ length }, (_, n) =>
    source.vector(part, view.layer, view.head, n)));
  const known = vectors[0][0] !== null;
  for (const id of ["strip-box", "numbers", "number"]) $(id).hidden = !known;
  $("held").textContent = `${plural(length, "position")} of ${number(source.config.n_positions)} that fit, ` +
    `${number(source.cacheBytes)} bytes each in all layers. ` +
    (known ? "" : "This recording is too large to keep the numbers.");
  if (!known) return;
  const D = vectors[0][0].length, colour = colours(), { high, left, gap, top } = STRIP;
  const [pen, width] = canvas("strips", top + length * high + 4), pitch = (width - left - gap) / (2 * D);
  const most = vectors.map((rows) => rows.reduce((peak, vector) =>
    vector.reduce((so, value) => Math.max(so, Math.abs(value)), peak), 0) || 1);
  const ends = { zero: channels(colour("zero")), minus: channels(colour("minus")), plus: channels(colour("plus")) };
  pen.fillStyle = colour("soft");
  const offset = [left, left + D * pitch + gap];
  ["keys", "values"].forEach((part, side) => pen.fillText(
    `${part}, −${most[side].toFixed(1)} (blue) to ${most[side].toFixed(1)} (red)`, offset[side], 12, D * pitch));
  for (let n = 0; n < length; n++) {
    const y = top + n * high;
    pen.fillStyle = colour(n < frame.kept ? "kept-edge" : "now");
    if (n >= frame.kept) pen.fillRect(0, y + 1, 4, high - 2); // new in this step
    pen.fillStyle = colour(n === view.token ? "ink" : "soft");
    pen.fillText((n === view.token ? "▸ " : "") + tick(source.label(source.tokens[n])), 8, y + 11, left - 12);
  }
  vectors.forEach((rows, side) => {
    const picture = new ImageData(D, length);
    rows.forEach((vector, n) => vector.forEach((value, d) => {
      const share = Math.abs(value) / most[side], end = value < 0 ? ends.minus : ends.plus;
      const mixed = ends.zero.map((c, k) => c + (end[k] - c) * share);
      picture.data.set([...mixed, 255], 4 * (n * D + d));
    }));
    const small = new OffscreenCanvas(D, length);
    small.getContext("2d").putImageData(picture, 0, 0);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(small, offset[side], top, D * pitch, length * high);
    for (let n = 1; n < length; n++) pen.clearRect(offset[side], top + n * high - 1, D * pitch, 1);
  });
  const box = $("strip-box"), line = top + view.token * high; // the token looked at is in sight
  if (line < box.scrollTop || line + high > box.scrollTop + box.clientHeight)
    box.scrollTop = line - box.clientHeight / 2;
  $("strips").setAttribute("aria-label", `Keys and values of ${plural(length, "position")} in ` +
    `layer ${view.layer}, head ${view.head}: ${D} numbers each, as colours. ` +
    "The numbers of one token are in the table below.");
  $("strips").onmousemove = (event) => {
    const n = Math.floor((event.offsetY - top) / high), side = event.offsetX < offset[1] - gap / 2 ? 0 : 1;
    const d = Math.floor((event.offsetX - offset[side]) / pitch);
    if (n < 0 || n >= length || d < 0 || d >= D) return;
    $("number").textContent = `${["Key", "Value"][side]} of ${named(source, n)} ` +
      `(position ${n}), number ${d}: ${signed(vectors[side][n][d])}`;
  };
  $("strips").onclick = (event) => {
    const n = Math.floor((event.offsetY - top) / high);
    if (n >= 0 && n < length) view.look({ token: n });
  };
  $("numbers-name").textContent = `The numbers of ${named(source, view.token)}`;
  if ($("numbers").open)
    $("vector").tBodies[0].replaceChildren(...Array.from({ length: D }, (_, d) =>
      row(String(d), vectors.map((rows) => signed(rows[view.token][d])))));
}

// --- what the stream says on the way, and what is added to it ---

function drawStream(source, view) {
  const L = source.config.n_layer, follows = source.tokens[view.token + 1];
  $("lens-note").textContent = `The residual stream of ${named(source, view.token)}, read by the output ` +
    `head before it is finished. After it comes ${named(source, view.token + 1)}.`;
  const every = Array.from({ length: L + 1 }, (_, layer) => layer);
  $("lens").tBodies[0].replaceChildren(...every.map((layer) => row(layer ? `layer ${layer - 1}` : "embedding",
    source.lens(layer, view.token).map(([id, p]) => {
      const word = element("span", quoted(source.label(id)), { class: id === follows ? "quoted hit" : "quoted" });
      const cell = new DocumentFragment();
      cell.append(word, ` ${percent(p)}`);
      return cell;
    }))));
  const norms = every.slice(0, L).map((layer) => source.norms(layer, view.token));
  const most = Math.max(...norms.flatMap(([attention, mlp]) => [attention, mlp]));
  $("norms").tBodies[0].replaceChildren(...norms.map(([attention, mlp, stream], layer) => row(String(layer), [
    bar(attention.toFixed(2), attention / most, "attention"), bar(mlp.toFixed(2), mlp / most, "plain"),
    stream.toFixed(2)])));
}

// --- the work of all steps ---

function drawChart(source, view) {
  const height = 180, foot = height - 20, [pen, width] = canvas("chart", height), left = 86;
  const { frames } = source, field = view.measure, colour = colours();
  const told = { positions: number, keys: number, multiplications: short,
    seconds: (s) => s === null ? "not measured" : milliseconds(s) }[field];
  const most = Math.max(...frames.flatMap((f) => [f.cached[field], f.uncached[field] ?? 0])) || 1;
  const x = (n) => left + (width - left - 8) * (frames.length > 1 ? n / (frames.length - 1) : 0.5);
  const y = (value) => foot - (foot - 10) * value / most;
  for (const part of [0, 0.5, 1]) {
    pen.fillStyle = colour("soft");
    pen.fillText(part ? told(most * part) : "0", 0, y(most * part) + 4, left - 8);
    pen.fillRect(left, y(most * part), width - left, 0.5);
  }
  pen.fillText("step 1", left, height - 3);
  if (frames.length > 1) pen.fillText(frames.length, width - 8 - pen.measureText(frames.length).width, height - 3);
  for (const [way, ink, dash] of [["uncached", "again", [5, 4]], ["cached", "now", []]]) {
    pen.strokeStyle = pen.fillStyle = colour(ink);
    pen.lineWidth = 2;
    pen.setLineDash(dash);
    pen.beginPath();
    frames.forEach((f, n) => f[way][field] === null || pen.lineTo(x(n), y(f[way][field])));
    pen.stroke();
    pen.setLineDash([]);
    const last = frames.at(-1)[way][field];
    pen.beginPath();
    if (last !== null) pen.arc(x(frames.length - 1), y(last), 4.5, 0, 7);
    pen.fill();
  }
  const { cached, uncached } = frames.at(-1);
  $("chart").setAttribute("aria-label", `Lines: ${told(cached[field])} in this step with the cache, ` +
    `${told(uncached[field])} without. The table below has all steps.`);
  if ($("all-steps").open)
    $("step-table").tBodies[0].replaceChildren(...frames.map((f, n) => row(String(n + 1), [
      element("span", quoted(source.label(f.chosen.token)), { class: "quoted" }), told(f.cached[field]),
      told(f.uncached[field]), f.equal === null ? "checking" : f.equal ? "yes" : "no"])));
}
