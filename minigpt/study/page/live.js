// Steps that the page computes itself: the model runs here, so a prompt can be changed, a step taken
// back, another token chosen, and the cache switched off or broken.

const LIKELIEST = 10; // tokens shown at each step
const SLICE = 12; // milliseconds of checking between two chances for the page to breathe
const OTHER_TEXT = "The owl was sad."; // what bugs mix in

class Live {
  constructor(content, base64) {
    this.live = true;
    this.model = new Model(content, base64);
    this.tokenizer = new Tokenizer(content.tokenizer);
    Object.assign(this, { config: this.model.config, about: content.about, content });
    this.onCheck = () => {};
    this.previous = null; // the prompt before this one
    this.labels = new Map();
  }

  label(id) {
    if (!this.labels.has(id)) this.labels.set(id, this.tokenizer.label(id));
    return this.labels.get(id);
  }

  // Begin with a prompt and take `steps` steps. Returns a sentence when the prompt cannot be used.
  start(settings, steps = 1, picks = {}) {
    const { prompt } = settings, eos = this.config.eos_token_id;
    const given = this.tokenizer.encode(prompt);
    if (given.some((id) => id === undefined || id >= this.model.V))
      return "The prompt has tokens that this model does not know: change it.";
    if (!given.length && eos === null)
      return "This model has no end-of-text token to start from: type a prompt.";
    const tokens = given.length ? given : [eos];
    if (tokens.length > this.model.context)
      return `The prompt has ${tokens.length} tokens and the context ${this.model.context}: shorten it.`;
    if (this.settings && this.settings.prompt !== prompt) this.previous = this.settings.prompt;
    this.settings = settings;
    this.prompt = tokens.length;
    this.branches = [{ tokens, frames: [], picks, cache: this.newCache(tokens) }];
    this.at = 0;
    while (this.frames.length < steps && this.goesOn) this.advance();
    this.check();
    return null;
  }

  get branch() { return this.branches[this.at]; }
  get frames() { return this.branch.frames; }
  get tokens() { return this.branch.tokens; } // with the one that the last step chose
  get pieces() { return this.tokenizer.pieces(this.tokens); }
  get window() { return BUGS[this.settings.bug]?.window ?? Infinity; }

  get goesOn() {
    const { tokens, frames } = this;
    if (!frames.length) return true;
    return tokens.length <= this.model.context && tokens.at(-1) !== this.config.eos_token_id;
  }

  get ending() { // why there is no next step
    if (this.goesOn) return "";
    return this.tokens.length > this.model.context ? "The context is full."
      : "The model ended its text. Choose another token to go on.";
  }

  newCache(tokens) { // right, or broken as the settings say
    const bug = this.settings.useCache ? BUGS[this.settings.bug] : null;
    const cache = new (bug?.cache ?? Cache)(this.window);
    if (!bug) return cache;
    const computed = (text, count) => { // another text's entries
      const ids = this.tokenizer.encode(text), other = new Cache();
      const taken = Array.from({ length: count ?? ids.length }, (_, n) => ids[n % ids.length]);
      finish(this.model.forward(taken, other));
      return other.entries;
    };
    cache.heads = this.model.G;
    if (bug.cache === KeptBetweenPrompts) cache.left = computed(this.previous || OTHER_TEXT);
    if (bug.cache === KeysReorderedAlone) cache.neighbour = computed(OTHER_TEXT, tokens.length);
    return cache;
  }

  advance() { // one step: what the cache lacks is computed, a token is chosen
    const branch = this.branch, { tokens, frames, picks } = branch;
    const { temperature, seed, useCache } = this.settings;
    if (!useCache) branch.cache = this.newCache(tokens); // nothing is remembered
    const { cache } = branch, length = tokens.length, kept = cache.length;
    const began = performance.now();
    const logits = finish(this.model.forward(tokens.slice(kept), cache));
    const seconds = (performance.now() - began) / 1000;
    const token = picks[length] ?? choose(logits, temperature, seed, length);
    const p = probabilities(logits), read = cache.entries.slice(kept);
    const keys = read.reduce((total, entry) => total + entry.weights[0][0].length, 0);
    frames.push({
      length, logits, kept, ...Live.unchecked,
      chosen: { token, probability: p[token], top: likeliest(p, LIKELIEST) },
      cached: { positions: length - kept, keys, seconds,
        multiplications: multiplications(this.config, length - kept, keys) },
      uncached: this.everything(length),
    });
    tokens.push(token);
  }

  everything(length) {
    let keys = 0;
    for (let query = 0; query < length; query++) keys += Math.min(query + 1, this.window);
    return { positions: length, keys, seconds: null,
      multiplications: multiplications(this.config, length, keys) };
  }

  next() {
    if (!this.goesOn) return;
    this.advance();
    this.check();
  }

  back() { // the cache forgets the last position
    if (this.frames.length < 2) return;
    this.frames.pop();
    this.tokens.pop();
    this.branch.cache.truncate(this.frames.at(-1).length);
    this.check();
  }

  fork(token) { // go on with another token than the one chosen; this branch stays as it is
    const { tokens, frames, picks, cache } = this.branch, last = frames.at(-1);
    if (token === last.chosen.token) return this.next();
    const p = probabilities(last.logits)[token];
    this.branches.push({
      tokens: [...tokens.slice(0, -1), token], cache: cache.fork(),
      frames: [...frames.slice(0, -1), { ...last, chosen: { ...last.chosen, token, probability: p } }],
      picks: { ...picks, [last.length]: token },
    });
    this.at = this.branches.length - 1;
    if (this.goesOn) this.advance();
    this.check();
  }

  switchTo(branch) {
    this.at = branch;
    this.check();
  }

  // How many of this branch's positions another branch holds as well: the same objects, not copies.
  get shared() {
    const others = this.branches.filter((branch) => branch !== this.branch);
    const held = new Set(others.flatMap((branch) => branch.cache.entries));
    return this.branch.cache.entries.filter((entry) => held.has(entry)).length;
  }

  // --- the pass without a cache: everything again, in slices, while the page goes on ---

  static unchecked = { equal: null, maxDifference: null, wanted: null };

  async check() {
    const asked = this.asked = {}, { frames } = this;
    const waiting = frames.filter((frame) => frame.equal === null);
    if (!waiting.length) return this.onCheck();
    const last = waiting.at(-1), reference = new Cache(this.window);
    const work = this.model.forward(this.tokens.slice(0, last.length), reference);
    let logits, busy = 0;
    for (let done = false; !done;) {
      await new Promise((resolve) => setTimeout(resolve));
      if (this.asked !== asked) return; // the text went on meanwhile
      const began = performance.now();
      while (!done && performance.now() - began < SLICE) ({ done, value: logits } = work.next());
      busy += performance.now() - began;
    }
    for (const frame of waiting) { // a row has the same bits in any pass: one pass checks all steps
      const entry = reference.entries[frame.length - 1];
      const right = frame === last ? logits : this.model.read(entry.stream.at(-1));
      frame.equal = sameBits(frame.logits, right);
      frame.maxDifference = frame.logits.reduce((most, logit, id) =>
        Math.max(most, Math.abs(logit - right[id])), 0);
      frame.wanted = choose(right, this.settings.temperature, this.settings.seed, frame.length);
    }
    if (waiting.length === 1) last.uncached.seconds = busy / 1000;
    this.branch.reference = reference;
    this.onCheck();
  }

  // Are this position's keys and values other ones than without the cache? Null: not known yet.
  wrong(layer, position) {
    const right = this.branch.reference?.entries[position], { entries } = this.branch.cache;
    if (!right || right.token !== entries[position].token) return null;
    return !["keys", "values"].every((part) =>
      sameBits(entries[position][part][layer], right[part][layer]));
  }

  // --- a closer look ---

  get leftover() { return this.branch.cache.left?.map((entry) => entry.token) ?? []; }

  weights(layer, head, query) { // { from, row }: of the keys from number `from` on
    const entry = this.branch.cache.entries[query];
    return { from: entry.from, row: entry.weights[layer][head] };
  }

  vector(part, layer, head, position) { // part: "keys" or "values"
    const { D, H, G } = this.model, first = Math.floor(head / (H / G)) * D;
    return this.branch.cache.entries[position][part][layer].subarray(first, first + D);
  }

  norms(layer, position) { return this.branch.cache.entries[position].added[layer]; }

  lens(layer, position) { // layer 0: the embedding; n: after n layers
    const logits = this.model.read(this.branch.cache.entries[position].stream[layer]);
    return likeliest(probabilities(logits), 3);
  }

  get cacheBytes() { // float32
    return 2 * 4 * this.model.L * this.model.G * this.model.D;
  }
}

function sameBits(a, b) {
  const [left, right] = [a, b].map((x) => new Uint32Array(x.buffer, x.byteOffset, x.length));
  return left.every((word, n) => word === right[n]);
}

// Of a pass that computes so many positions, whose queries read so many keys together, and the
// logits of the last position; masked keys do not count.
function multiplications(config, positions, keys) {
  const C = config.n_embd, kv = (config.n_kv_head ?? config.n_head) * C / config.n_head;
  const matrices = C * (2 * C + 2 * kv + 2 * (config.n_inner ?? 4 * C));
  return config.n_layer * (positions * matrices + 2 * keys * C) + C * config.vocab_size;
}
