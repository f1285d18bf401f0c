// GPT-2's forward pass, with a cache, in plain JavaScript. What it computes is what the page shows.
//
// Numbers are float32 wherever they are kept (activations, keys, values, logits) and float64 while
// they are added up. Every sum runs over its terms one by one, from the first to the last, whatever
// other rows are computed with it: a row's bits cannot depend on its company. So the pass that
// continues a cache and the pass over everything give the same logits to the bit.
//
// Letters as in the package: C model width, H query heads, G key/value heads, D head width,
// L layers, V vocabulary.

class Model {
  constructor({ config, dtype, tensors }, base64) {
    const read = Model.reader(dtype, base64);
    const weights = new Map();
    for (const [name, shape] of tensors) weights.set(name, read(shape.reduce((a, b) => a * b)));
    const c = config, D = c.n_embd / c.n_head, G = c.n_kv_head ?? c.n_head;
    Object.assign(this, {
      config, D, G, C: c.n_embd, H: c.n_head, L: c.n_layer, V: c.vocab_size,
      inner: c.n_inner ?? 4 * c.n_embd, context: c.n_positions, eps: c.layer_norm_epsilon,
      activation: Model.ACTIVATIONS[c.activation_function],
      wte: weights.get("wte.weight"), wpe: weights.get("wpe.weight"),
    });
    const matrix = (name) => ({ // (in, out) in the file; here a row for each output
      weight: Model.transposed(weights.get(`${name}.weight`), weights.get(`${name}.bias`).length),
      bias: weights.get(`${name}.bias`),
    });
    const norm = (name) => ({ weight: weights.get(`${name}.weight`), bias: weights.get(`${name}.bias`) });
    this.layers = Array.from({ length: this.L }, (_, layer) => ({
      ln_1: norm(`h.${layer}.ln_1`), ln_2: norm(`h.${layer}.ln_2`),
      attn: matrix(`h.${layer}.attn.c_attn`), proj: matrix(`h.${layer}.attn.c_proj`),
      fc: matrix(`h.${layer}.mlp.c_fc`), out: matrix(`h.${layer}.mlp.c_proj`),
      scale: (c.scale_attn_weights ? D ** -0.5 : 1) /
        (c.scale_attn_by_inverse_layer_idx ? layer + 1 : 1),
    }));
    this.ln_f = norm("ln_f");
    this.head = { weight: weights.get("lm_head.weight") ?? this.wte, bias: null };
  }

  static reader(dtype, base64) { // -> (count) => the next so many numbers, as float32
    const text = atob(base64), words = new Uint16Array(text.length / 2);
    for (let n = 0; n < words.length; n++)
      words[n] = text.charCodeAt(2 * n) | (text.charCodeAt(2 * n + 1) << 8);
    const widen = dtype === "bfloat16" ? Model.fromBfloat16 : Model.fromFloat16;
    let at = 0;
    return (count) => widen(words.subarray(at, (at += count)));
  }

  static fromBfloat16(words) { // the upper half of a float32
    return new Float32Array(Uint32Array.from(words, (word) => word << 16).buffer);
  }

  static fromFloat16(words) { // sign, 5 bits of exponent, 10 of fraction
    return Float32Array.from(words, (word) => {
      const exponent = (word >> 10) & 31, fraction = word & 1023;
      const size = exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction;
      return word & 0x8000 ? -size : size;
    });
  }

  static transposed(weight, columns) {
    const rows = weight.length / columns, turned = new Float32Array(weight.length);
    for (let i = 0; i < rows; i++)
      for (let j = 0; j < columns; j++) turned[j * rows + i] = weight[i * columns + j];
    return turned;
  }

  static gelu(x) { // the tanh form, GPT-2's
    return 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x * x * x)));
  }

  static geluErf(x) { // erf as in Abramowitz and Stegun 7.1.26, right to 1.5e-7
    const z = Math.abs(x) * Math.SQRT1_2, t = 1 / (1 + 0.3275911 * z);
    const series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 +
      t * (-1.453152027 + t * 1.061405429))));
    const erf = Math.sign(x) * (1 - series * Math.exp(-z * z));
    return 0.5 * x * (1 + erf);
  }

  static ACTIVATIONS = {
    gelu_new: Model.gelu, gelu_pytorch_tanh: Model.gelu, gelu: Model.geluErf,
    relu: (x) => Math.max(x, 0),
  };

  // The new tokens' rows, layer by layer, into the cache; gives up control after every row of a
  // layer, so that a page can breathe. Returns the logits (V,) of the last token, or those of all
  // new tokens where `all` is set.
  *forward(tokens, cache, all = false) {
    const fresh = cache.extend(tokens);
    for (const entry of fresh) entry.stream.push(this.embed(entry));
    for (let layer = 0; layer < this.L; layer++) {
      const part = this.layers[layer], queries = [];
      for (const entry of fresh) {
        const qkv = linear(normalise(entry.stream[layer], part.ln_1, this.eps), part.attn);
        queries.push(qkv.subarray(0, this.C)); // H · D, then G · D of keys and of values
        entry.keys[layer] = qkv.slice(this.C, this.C + this.G * this.D);
        entry.values[layer] = qkv.slice(this.C + this.G * this.D);
      }
      for (const [n, entry] of fresh.entries()) {
        const attended = this.attend(queries[n], entry, layer, cache, part.scale);
        const middle = sum(entry.stream[layer], linear(attended, part.proj));
        const hidden = linear(normalise(middle, part.ln_2, this.eps), part.fc);
        for (let i = 0; i < hidden.length; i++) hidden[i] = this.activation(hidden[i]);
        entry.stream.push(sum(middle, linear(hidden, part.out)));
        entry.added[layer] = [distance(middle, entry.stream[layer]),
          distance(entry.stream[layer + 1], middle), size(entry.stream[layer + 1])];
        yield;
      }
    }
    const rows = (all ? fresh : fresh.slice(-1)).map((entry) => this.read(entry.stream[this.L]));
    return all ? rows : rows[0];
  }

  embed({ token, position }) {
    const { C, wte, wpe } = this;
    return sum(wte.subarray(token * C, (token + 1) * C), wpe.subarray(position * C, (position + 1) * C));
  }

  read(stream) { // the logits that the head finds in a residual stream
    return linear(normalise(stream, this.ln_f, this.eps), this.head);
  }

  attend(query, entry, layer, cache, scale) {
    const { H, G, D, C } = this, y = new Float32Array(C);
    const { keys, values, from } = cache.view(layer, entry.index);
    const weights = Array.from({ length: H }, () => new Float32Array(keys.length));
    for (let head = 0; head < H; head++) {
      const q = head * D, kv = Math.floor(head / (H / G)) * D, row = weights[head];
      let most = -Infinity, total = 0;
      for (let s = 0; s < keys.length; s++) {
        const key = keys[s];
        let score = 0;
        for (let d = 0; d < D; d++) score += query[q + d] * key[kv + d];
        row[s] = score * scale;
        if (row[s] > most) most = row[s];
      }
      for (let s = 0; s < keys.length; s++) total += row[s] = Math.exp(row[s] - most);
      for (let s = 0; s < keys.length; s++) row[s] /= total;
      for (let d = 0; d < D; d++) {
        let mixed = 0;
        for (let s = 0; s < keys.length; s++) mixed += row[s] * values[s][kv + d];
        y[q + d] = mixed;
      }
    }
    entry.weights[layer] = weights;
    entry.from = from;
    return y;
  }
}

// y = W x + b for one row. Four outputs are worked on at a time, each with a sum of its own: which
// ones share a turn changes none of them.
function linear(x, { weight, bias }) {
  const inputs = x.length, outputs = weight.length / inputs, y = new Float32Array(outputs);
  let j = 0;
  for (; j + 3 < outputs; j += 4) {
    const first = j * inputs, second = first + inputs, third = second + inputs, fourth = third + inputs;
    let a = 0, b = 0, c = 0, d = 0;
    for (let i = 0; i < inputs; i++) {
      const value = x[i];
      a += value * weight[first + i];
      b += value * weight[second + i];
      c += value * weight[third + i];
      d += value * weight[fourth + i];
    }
    y[j] = a; y[j + 1] = b; y[j + 2] = c; y[j + 3] = d;
  }
  for (; j < outputs; j++) {
    let a = 0;
    for (let i = 0; i < inputs; i++) a += x[i] * weight[j * inputs + i];
    y[j] = a;
  }
  if (bias) for (let n = 0; n < outputs; n++) y[n] += bias[n];
  return y;
}

function normalise(x, { weight, bias }, eps) {
  let mean = 0, variance = 0;
  for (let i = 0; i < x.length; i++) mean += x[i];
  mean /= x.length;
  for (let i = 0; i < x.length; i++) variance += (x[i] - mean) ** 2;
  const scale = 1 / Math.sqrt(variance / x.length + eps);
  return x.map((value, i) => (value - mean) * scale * weight[i] + bias[i]);
}

const sum = (a, b) => a.map((value, i) => value + b[i]);
const size = (a) => Math.sqrt(a.reduce((total, value) => total + value * value, 0));
const distance = (a, b) => Math.sqrt(a.reduce((total, value, i) => total + (value - b[i]) ** 2, 0));

function finish(work) { // a pass without a pause
  for (;;) {
    const { done, value } = work.next();
    if (done) return value;
  }
}

// --- from logits to a token ---

function probabilities(logits, temperature = 1) {
  const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const raised = Float64Array.from(logits, (logit) => Math.exp((logit - most) / temperature));
  const total = raised.reduce((a, b) => a + b, 0);
  return raised.map((value) => value / total);
}

function likeliest(p, count) { // [[token, probability]], of equals the first comes first
  const left = p.slice(), found = [];
  while (found.length < Math.min(count, p.length)) {
    let best = 0;
    for (let id = 1; id < left.length; id++) if (left[id] > left[best]) best = id;
    found.push([best, p[best]]);
    left[best] = -1;
  }
  return found;
}

// A number in [0, 1) for each seed and position (mulberry32's mixing): stepping back and on again,
// with the cache or without, draws the same.
function random(seed, position) {
  let state = (Math.imul(seed ^ 0x9e3779b9, 0x85ebca6b) + Math.imul(position + 1, 0x6d2b79f5)) | 0;
  state = Math.imul(state ^ (state >>> 15), state | 1);
  state ^= state + Math.imul(state ^ (state >>> 7), state | 61);
  return ((state ^ (state >>> 14)) >>> 0) / 2 ** 32;
}

function choose(logits, temperature, seed, position) {
  const p = probabilities(logits, temperature || 1);
  if (temperature === 0) return logits.indexOf(logits.reduce((a, b) => Math.max(a, b), -Infinity));
  let left = random(seed, position);
  for (let id = 0; id < p.length; id++) if ((left -= p[id]) < 0) return id;
  return likeliest(p, 1)[0][0]; // rounding left a crumb
}
