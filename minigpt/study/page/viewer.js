// What ties the page together: the state, its address, and the controls.

const content = JSON.parse($("content").textContent);
const source = content.tokenizer ? new Live(content, $("weights-16").textContent.trim()) : new Recorded(content);
const view = { layer: 0, head: 0, token: 0, measure: "multiplications", look };
const still = window.matchMedia("(prefers-reduced-motion: reduce)");
let timer = null, follow = true; // follow: the newest token is the one that is looked at

// --- words ---

function say() { // the step in words
  const { length, kept, chosen, cached } = source.frames.at(-1);
  const layers = plural(source.config.n_layer, "layer"), first = source.frames.length === 1;
  const sure = percent(chosen.probability).replace(">", "more than").replace("<", "less than");
  const next = `Next comes ${quoted(source.label(chosen.token))}, at ${sure}.`;
  if (first) {
    const stays = source.settings?.useCache === false ? "" : `; their keys and values are kept in ${layers}`;
    const invited = source.goesOn ? " Press “Next token” to see what that saves." : "";
    return `The prompt’s ${plural(length, "token")} ${length === 1 ? "is" : "are"} computed in one pass${stays}. ` +
      next + invited;
  }
  if (!kept) return `Nothing was kept: all ${length} positions are computed again, to add one. ${next}`;
  return `Only ${named(source, length - 1)} is computed. In each layer its query reads ` +
    `${plural(cached.keys, "key")}: its own, and ${cached.keys - 1} from the cache. ${next}`;
}

function judge() { // are both passes' logits the same bits, and if not, where do they part?
  const { frames } = source, frame = frames.at(-1), answer = $("answer");
  answer.className = frame.equal === null ? "waiting" : frame.equal ? "equal" : "differ";
  if (frame.equal === null) answer.textContent = "Checking against the pass without a cache …";
  else if (frame.equal) {
    const fewer = frame.uncached.multiplications / frame.cached.multiplications;
    answer.textContent = "With and without the cache the logits are equal, bit for bit" +
      (fewer > 1.05 ? `, for ${Number(fewer.toPrecision(2))} × fewer multiplications.` : ".");
  } else answer.textContent = parted(frame);
  $("steps").className = frames.length > 60 ? "many" : "";
  $("steps").replaceChildren(...frames.map((f, n) => element("li",
    `step ${n + 1}: ${f.equal === null ? "checking" : f.equal ? "equal" : "not equal"}`,
    { class: f.equal === null ? "waiting" : f.equal ? "equal" : "differ" })));
}

function parted(frame) {
  const at = source.frames.findIndex((f) => f.equal === false), wrong = firstWrong(frame.length);
  const where = wrong ? ` The first wrong key or value is that of ${named(source, wrong.n)} in layer ${wrong.layer} ` +
    "(crossed out)." : "";
  const other = frame.wanted === null || frame.wanted === frame.chosen.token ? ""
    : ` Without a cache the next token would be ${quoted(source.label(frame.wanted))}.`;
  const size = Number(frame.maxDifference.toPrecision(2));
  return `The logits differ, by up to ${size}; they parted at step ${at + 1}.${where}${other}`;
}

function firstWrong(length) {
  for (let layer = 0; layer < source.config.n_layer; layer++)
    for (let n = 0; n < length; n++) if (source.wrong(layer, n)) return { layer, n };
  return null;
}

// --- drawing ---

function show(moving = false) {
  const frame = source.frames.at(-1), { length } = frame;
  if (follow || view.token >= length) view.token = length - 1;
  view.shared = source.live ? source.shared : 0;
  $("summary").textContent = say();
  $("with-title").textContent = source.settings?.useCache === false ? "The cache is off" :
    source.settings?.bug ? "With a broken cache" : "With the cache";
  drawPicture(moving);
  drawNext(frame);
  drawCloser();
  judge();
  drawChart(source, view);
  $("back").disabled = source.frames.length < 2;
  $("forward").disabled = $("play").disabled = !source.goesOn;
  if (!source.goesOn) pause();
  $("count").textContent = `Step ${source.frames.length}` + (source.live ? "" : ` of ${source.all.length}`) +
    (source.ending ? `. ${source.ending}` : "");
  $("slider").value = source.frames.length - 1;
  $("slider").setAttribute("aria-valuetext", $("count").textContent);
  remember();
}

function drawPicture(moving) {
  for (const side of ["with", "without"]) drawGrid($(`${side}-grid`), source, view, side, moving);
  drawAllWork();
}

function drawAllWork() {
  for (const side of ["with", "without"]) drawWork(`${side}-work`, side, source);
}

function drawCloser() {
  drawText(source, view);
  drawReading(source, view);
  if (source.config.n_layer * source.config.n_head > MANY_HEADS) buildHeads(source, view, look);
  drawHeads(source, view);
  drawStrips(source, view);
  drawStream(source, view);
  $("layer").value = view.layer;
  $("head").value = view.head;
}

function drawNext(frame) {
  const { chosen } = frame, { top } = chosen;
  const shown = top.some(([id]) => id === chosen.token) ? top : [...top, [chosen.token, chosen.probability]];
  $("next-note").textContent = "The likeliest tokens before temperature." +
    (source.live ? " Choose one, and the text goes on from there." : "");
  const full = source.live && frame.length >= source.config.n_positions;
  $("likeliest").replaceChildren(...shown.map(([id, p]) => {
    const taken = id === chosen.token, item = element("li");
    const marks = { class: taken ? "option chosen" : "option", "data-id": id };
    const option = element(source.live ? "button" : "div", "", marks);
    const track = element("span", "", { class: "bar" }), filled = element("i");
    filled.style.width = `${100 * p}%`;
    track.append(filled);
    option.append(element("span", quoted(source.label(id)), { class: "quoted" }), track,
      element("span", percent(p) + (taken ? " ✓" : "")));
    if (taken) option.setAttribute("aria-label", `${quoted(source.label(id))}, ${percent(p)}, chosen`);
    if (source.live) {
      option.disabled = full;
      option.onclick = () => { pause(); source.fork(id); follow = true; show(true); };
    }
    item.append(option);
    return item;
  }));
  const branches = source.branches ?? [];
  $("branches").replaceChildren(...(branches.length < 2 ? [] : branches.map((branch, n) => {
    const end = source.tokenizer.pieces(branch.tokens).slice(-4).join("");
    const button = element("button", `${n + 1}: … ${visible(end)}`, { "aria-pressed": n === source.at });
    button.onclick = () => { pause(); source.switchTo(n); show(); };
    return button;
  })));
  $("shared").textContent = view.shared ? `${plural(view.shared, "position")} of this branch ` +
    `${view.shared === 1 ? "is" : "are"} another branch’s as well (dotted in the picture): ` +
    "kept once, not computed again." : "";
}

function look(change) { // another token, layer or head to look at
  Object.assign(view, change, { picked: true });
  follow = view.token === source.frames.at(-1).length - 1;
  drawPicture(false);
  drawCloser();
  remember();
}

// --- going on ---

function forward() {
  source.next();
  show(true);
}

function pause() {
  clearTimeout(timer);
  timer = null;
  $("play").textContent = "Play";
  $("play").setAttribute("aria-pressed", false);
}

function play() {
  if (timer) return pause();
  $("play").textContent = "Pause";
  $("play").setAttribute("aria-pressed", true);
  const beat = () => {
    timer = setTimeout(beat, 1100);
    forward();
  };
  timer = setTimeout(beat, 0);
}

function onward() {
  pause();
  forward();
}

function visitStep(step) { // of a recording
  pause();
  source.go(step);
  show();
}

function back() {
  pause();
  source.back();
  follow = true;
  show();
}

function restart(steps = 1, picks = {}) {
  const settings = { prompt: $("prompt").value,
    temperature: Number($("temperature").value), seed: Number($("seed").value),
    useCache: $("use-cache").checked, bug: $("bug").value };
  const valid = ["temperature", "seed"].every((id) => $(id).value !== "" && $(id).checkValidity());
  const problem = valid ? source.start(settings, steps, picks)
    : "The temperature is a number from 0 to 5, the seed a whole number from 0 on.";
  $("problem").textContent = problem ?? "";
  $("bug-story").textContent = BUGS[settings.bug]?.story ?? "";
  return !problem;
}

// --- the address: what is seen can be linked ---

function address() {
  const parts = new URLSearchParams();
  if (source.live) {
    const { prompt, temperature, seed, useCache, bug } = source.settings;
    parts.set("prompt", prompt);
    parts.set("temperature", temperature);
    parts.set("seed", seed);
    const picks = Object.entries(source.branch.picks).filter(([at]) => at < source.tokens.length);
    if (picks.length) parts.set("picks", picks.map((pick) => pick.join(".")).join("_"));
    if (!useCache) parts.set("cache", "off");
    if (bug) parts.set("bug", bug);
  }
  parts.set("step", source.frames.length);
  if (view.picked) {
    parts.set("layer", view.layer);
    parts.set("head", view.head);
  }
  if (!follow) parts.set("token", view.token);
  return `#${parts}`;
}

function remember() {
  try {
    history.replaceState(null, "", address());
  } catch { /* a frame without an address of its own, or too often for this browser: it can wait */ }
}

function visit() { // go where the address says; what it does not say is as it was, or as written
  const parts = new URLSearchParams(location.hash.slice(1));
  const whole = (name, most, otherwise = 0) => {
    const value = parseInt(parts.get(name) ?? otherwise, 10);
    return Number.isFinite(value) ? Math.max(0, Math.min(most, value)) : otherwise;
  };
  view.picked = ["layer", "head", "token"].some((name) => parts.has(name));
  view.layer = whole("layer", source.config.n_layer - 1);
  view.head = whole("head", source.config.n_head - 1);
  const steps = Math.max(1, whole("step", 100000, 1));
  if (source.live) {
    $("prompt").value = parts.get("prompt") ?? content.prompt;
    for (const name of ["temperature", "seed"]) {
      const asked = parts.get(name) ?? "";
      $(name).value = /^\d+(\.\d+)?$/.test(asked) ? asked : content[name];
      if (!$(name).checkValidity()) $(name).value = content[name];
    }
    $("use-cache").checked = parts.get("cache") !== "off";
    $("bug").value = parts.get("bug") in BUGS ? parts.get("bug") : "";
    const picks = (parts.get("picks") ?? "").split("_").map((pick) => pick.split(".").map(Number))
      .filter(([at, id]) => at > 0 && Number.isInteger(id) && id >= 0 && id < source.config.vocab_size);
    if (!restart(steps, Object.fromEntries(picks))) {
      const problem = $("problem").textContent;
      $("prompt").value = content.prompt;
      restart();
      $("problem").textContent = problem;
    }
  } else source.go(steps - 1);
  follow = !parts.has("token");
  if (!follow) view.token = whole("token", source.frames.at(-1).length - 1);
  show();
}

async function copyLink() {
  const link = location.href;
  $("address").value = link;
  try {
    await navigator.clipboard.writeText(link);
    $("told").textContent = "Copied.";
  } catch { // not allowed here: show it, ready to be copied
    $("address").hidden = false;
    $("address").select();
    $("told").textContent = "Copy the marked link.";
  }
}

// --- what does not change from step to step ---

function begin() {
  const { config } = source;
  $("kind").textContent = source.live ? ", live" : ", recorded";
  document.title = $("kind").parentNode.textContent;
  document.body.classList.add(source.live ? "is-live" : "is-recorded");
  for (const part of document.querySelectorAll(source.live ? ".recorded" : ".live")) part.hidden = true;
  $("about").textContent = `${config.n_layer} layers × ${config.n_head} heads, width ${config.n_embd}, context ` +
    `${number(config.n_positions)} · ${source.about}`;
  $("notes").textContent = (source.live
    ? "The model runs in this page; nothing is sent anywhere. Every sum is added up in one order " +
      "whatever else is computed, so a row has the same bits in any pass. "
    : `Both passes of a step were timed ${plural(content.rounds, "time")} in turns; shown is the median. ` +
      "Attention weights are rounded to thousandths. ") +
    "Multiplications are those of matrix products and attention, without masked keys.";
  for (const [id, count] of [["layer", config.n_layer], ["head", config.n_head]]) {
    for (let n = 0; n < count; n++) $(id).append(element("option", n, { value: n }));
    $(id).onchange = () => look({ [id]: Number($(id).value) });
  }
  for (const [value, { name }] of Object.entries(BUGS)) $("bug").append(element("option", name, { value }));
  buildHeads(source, view, look);
  $("back").onclick = back;
  $("play").onclick = play;
  $("forward").onclick = onward;
  $("link").onclick = copyLink;
  $("begin").onsubmit = (event) => {
    event.preventDefault();
    pause();
    if (restart()) { follow = true; show(true); }
  };
  $("prompt").onkeydown = (event) => { // Enter starts, as in a line; with Shift it is a line break
    if (event.key !== "Enter" || event.shiftKey) return;
    event.preventDefault();
    $("begin").requestSubmit();
  };
  for (const id of ["use-cache", "bug"]) $(id).onchange = () => { // the same text so far, another cache
    pause();
    if (restart(source.frames.length, source.branch.picks)) show();
  };
  $("slider").max = source.live ? 0 : source.all.length - 1;
  $("slider").oninput = () => visitStep(Number($("slider").value));
  for (const id of ["with-grid", "without-grid", "text"]) $(id).addEventListener("click", (event) => {
    const { token, layer } = event.target.dataset;
    if (token === undefined) return;
    look({ token: Number(token), ...(layer === undefined ? {} : { layer: Number(layer) }) });
  });
  for (const side of ["with", "without"]) $(`${side}-grid`).addEventListener("pointerover", ({ target }) => {
    if (target.dataset.told && !target.firstChild) target.append(shape("title", {}, target.dataset.told));
  }); // a hundred titles at each step would take longer than the step
  for (const id of ["all-weights", "numbers"]) $(id).ontoggle = drawCloser;
  $("all-steps").ontoggle = () => drawChart(source, view);
  $("measure").onchange = () => { view.measure = $("measure").value; drawChart(source, view); };
  document.addEventListener("keydown", steer);
  source.onCheck = () => {
    judge();
    crossOut($("with-grid"), source);
    drawAllWork();
    drawChart(source, view);
  };
  let width = window.innerWidth;
  window.addEventListener("resize", () => { if (width !== (width = window.innerWidth)) show(); });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show());
  window.addEventListener("hashchange", visit);
  visit();
}

function steer(event) { // arrow keys: in the text another token, among the heads another head, else a step
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key], { target } = event;
  const length = source.frames.at(-1).length, end = { Home: 0, End: length - 1 }[event.key];
  if (target.id === "text" && (by || end !== undefined)) {
    event.preventDefault();
    look({ token: Math.max(0, Math.min(length - 1, end ?? view.token + by)) });
  } else if (target.classList.contains("thumb") && by) {
    event.preventDefault();
    const thumbs = [...$("heads").querySelectorAll(".thumb")], across = /Left|Right/.test(event.key);
    const jump = by * (across ? 1 : source.config.n_head), to = thumbs[thumbs.indexOf(target) + jump];
    if (!to) return;
    look({ layer: Number(to.dataset.layer), head: Number(to.dataset.head) });
    $("heads").querySelector("[aria-checked=true]").focus();
  } else if (!target.closest("select, input, textarea, .scroll, #text")) { // these have arrow keys of their own
    const ends = { Home: () => visitStep(0), End: () => visitStep(Infinity) }; // a live text has no end yet
    const go = { ArrowRight: onward, ArrowLeft: back, ...(source.live ? {} : ends) }[event.key];
    if (!go) return;
    event.preventDefault();
    go();
  }
}

begin();
