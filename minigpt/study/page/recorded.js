// Steps that were recorded: `minigpt trace` ran a model, any model, both ways, and wrote down what
// happened. They can be looked at, not changed.

class Recorded {
  constructor(content) {
    this.live = false;
    Object.assign(this, { config: content.config, content, prompt: content.prompt, at: 0, window: Infinity });
    this.all = content.steps.map((step, n) => ({
      length: step.length, kept: step.length - step.cached.positions,
      cached: step.cached, uncached: step.uncached,
      equal: step.equal, maxDifference: step.max_difference, wanted: null,
      chosen: { token: step.chosen.token, probability: Math.exp(step.chosen.log_probability),
        top: step.chosen.top.map(([id, log]) => [id, Math.exp(log)]) },
    }));
    const { inside } = content;
    if (inside.keys) this.vectors = { keys: Recorded.halves(inside.keys), values: Recorded.halves(inside.values) };
    this.about = `${content.numerics} numerics in ${content.dtype} on ${content.device}, ` +
      `temperature ${content.temperature}, seed ${content.seed}`;
  }

  static halves(base64) {
    return Model.reader("float16", base64)(atob(base64).length / 2);
  }

  label(id) { return this.content.labels[id]; }
  get frames() { return this.all.slice(0, this.at + 1); }
  get length() { return this.all[this.at].length; }
  get tokens() { return this.content.tokens.slice(0, this.length + 1); }
  get pieces() { return this.content.pieces.slice(0, this.length + 1); }
  get goesOn() { return this.at + 1 < this.all.length; }
  get leftover() { return []; }
  get cacheBytes() { return this.content.bytes_per_token; }

  get ending() {
    return this.goesOn ? "" : { length: "The recording ends here.", context: "The context is full.",
      end_of_text: "The model ended its text." }[this.content.finish_reason];
  }

  go(step) { this.at = Math.max(0, Math.min(this.all.length - 1, step)); }
  next() { this.go(this.at + 1); }
  back() { this.go(this.at - 1); }
  wrong() { return null; }

  weights(layer, head, query) {
    return { from: 0, row: this.content.attention[layer][head][query].map((w) => w / 1000) };
  }

  vector(part, layer, head, position) {
    if (!this.vectors) return null;
    const { n_head, n_embd } = this.config, D = n_embd / n_head, G = this.config.n_kv_head ?? n_head;
    const S = this.content.attention[0][0].length, group = Math.floor(head / (n_head / G));
    const first = ((layer * G + group) * S + position) * D; // (L, G, S, D)
    return this.vectors[part].subarray(first, first + D);
  }

  norms(layer, position) { return this.content.inside.norms[layer][position]; }
  lens(layer, position) { return this.content.inside.lens[layer][position]; }
}
