// What attention remembers, and six ways to get it wrong.
//
// A cache is a list of entries, one for each position. An entry holds the position's key and value
// in every layer, (G · D,) each, and what the page shows of it: the residual stream, attention
// weights, norms. A fork is a copy of the list: both branches hold the very same entries.

class Cache {
  constructor(window = Infinity) {
    this.window = window; // how many positions a query may read back, its own included
    this.entries = [];
    this.chunks = []; // how many tokens came in each pass
  }

  get length() { return this.entries.length; }
  get prompt() { return this.chunks[0] ?? Infinity; } // tokens of the first pass

  extend(tokens) {
    this.chunks.push(tokens.length);
    const fresh = tokens.map((token, n) => {
      const index = this.length + n;
      return { index, token, position: this.position(index), from: 0,
        keys: [], values: [], stream: [], weights: [], added: [] };
    });
    this.entries.push(...fresh);
    return fresh;
  }

  truncate(length) {
    this.entries.length = Math.min(length, this.length);
    let left = this.length;
    this.chunks = this.chunks.map((size) => {
      const kept = Math.min(size, left);
      left -= kept;
      return kept;
    }).filter((size) => size);
  }

  fork() {
    const other = Object.assign(Object.create(Object.getPrototypeOf(this)), this);
    other.entries = [...this.entries];
    other.chunks = [...this.chunks];
    return other;
  }

  position(index) { return index; }

  // What the query of entry `index` may read: keys and values, and the index of the first of them.
  view(layer, index) {
    const from = Math.max(0, index + 1 - this.window), seen = this.entries.slice(from, index + 1);
    return { from, keys: seen.map((e) => e.keys[layer]), values: seen.map((e) => e.values[layer]) };
  }
}

class PositionStandsStill extends Cache { // the count of positions is not moved on after the prompt
  position(index) { return Math.min(index, this.prompt); }
}

class JoinedAlongHeads extends Cache { // new keys and values are put behind the heads, not the positions
  view(layer, index) {
    const right = super.view(layer, index), { heads } = this, count = index + 1;
    if (count <= this.prompt) return right; // one chunk: nothing was joined yet
    const vectors = (part) => { // as they lie in memory: chunk by chunk, in each head by head
      const lying = [];
      for (let chunk = 0, first = 0; first < count; first += this.chunks[chunk++])
        for (let head = 0; head < heads; head++)
          for (let n = first; n < first + this.chunks[chunk]; n++) {
            const all = this.entries[n][part][layer], width = all.length / heads;
            lying.push(all.subarray(head * width, (head + 1) * width));
          }
      return Array.from({ length: count }, (_, s) => { // as they are read: head by head
        const row = new Float32Array(this.entries[0][part][layer].length);
        for (let head = 0; head < heads; head++)
          row.set(lying[head * count + s], head * lying[0].length);
        return row;
      });
    };
    return { from: 0, keys: vectors("keys"), values: vectors("values") };
  }
}

class MaskShiftedByOne extends Cache { // within a chunk, each query also reads the token after it
  view(layer, index) {
    let end = 0;
    for (const size of this.chunks) if ((end += size) > index) break;
    return super.view(layer, Math.min(index + 1, end - 1));
  }
}

class KeptBetweenPrompts extends Cache { // the last prompt's keys and values are still there
  view(layer, index) {
    const right = super.view(layer, index), { left } = this;
    return { from: -left.length,
      keys: [...left.map((e) => e.keys[layer]), ...right.keys],
      values: [...left.map((e) => e.values[layer]), ...right.values] };
  }
}

class KeysReorderedAlone extends Cache { // rows of a batch change places: keys follow, values do not
  view(layer, index) {
    const right = super.view(layer, index), { neighbour, prompt } = this;
    if (index < prompt) return right; // before the rows change places
    const values = right.values.map((own, n) => n < prompt ? neighbour[n].values[layer] : own);
    return { ...right, values };
  }
}

class WindowForgetsPositions extends Cache { // positions are counted within the window
  position(index) { return Math.min(index, this.window - 1); }
}

const WINDOW = 8; // of the last bug, and of the pass that it is compared with
const BUGS = {
  position: { cache: PositionStandsStill, name: "the position stands still",
    story: "Every new token is told that it stands where the prompt ended." },
  heads: { cache: JoinedAlongHeads, name: "joined along heads",
    story: "New keys and values are put behind the heads instead of the positions: " +
      "read back, all are in the wrong place." },
  mask: { cache: MaskShiftedByOne, name: "mask shifted by one",
    story: "In the prompt, each query also reads the token after it." },
  kept: { cache: KeptBetweenPrompts, name: "kept between prompts",
    story: "The keys and values of the prompt before are still in the cache, and are read." },
  reorder: { cache: KeysReorderedAlone, name: "keys reordered, values not",
    story: "Two texts of a batch change places after the prompt. The keys go along, the values stay: " +
      "these are the other text’s." },
  window: { cache: WindowForgetsPositions, name: "a window without positions", window: WINDOW,
    story: `Only the last ${WINDOW} positions are read, on both sides; with the cache they are counted ` +
      "from the window’s start." },
};
