// Text to tokens and back: GPT-2's byte-level byte pairs, from vocab.json and merges.txt.

class Tokenizer {
  // How GPT-2 cuts text before merging. \p{White_Space} is spelled out because \s in JavaScript is
  // another set: it has U+FEFF and lacks U+0085.
  static PATTERN = new RegExp(
    "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\p{White_Space}\\p{L}\\p{N}]+" +
    "|\\p{White_Space}+(?!\\P{White_Space})|\\p{White_Space}+", "gu");

  constructor({ vocab, merges }) {
    this.symbols = Tokenizer.byteSymbols(); // byte -> the printable character that stands for it
    this.byteOf = new Map(this.symbols.map((symbol, byte) => [symbol, byte]));
    this.ids = new Map(Object.entries(vocab));
    this.texts = new Map([...this.ids].map(([text, id]) => [id, text]));
    this.ranks = new Map(merges.map((pair, rank) => [pair, rank]));
    const made = new Set([...this.symbols, ...merges.map((pair) => pair.replace(" ", ""))]);
    this.specials = new Set([...this.ids].filter(([text]) => !made.has(text)).map(([, id]) => id));
  }

  static byteSymbols() { // bytes that do not print are shifted to U+0100 and up
    const shown = (byte) => (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
    let hidden = 0;
    return Array.from({ length: 256 }, (_, byte) =>
      String.fromCharCode(shown(byte) ? byte : 256 + hidden++));
  }

  encode(text) { // special tokens written out in a text are the characters that they are
    const ids = [];
    for (const [piece] of text.matchAll(Tokenizer.PATTERN)) {
      const symbols = [...new TextEncoder().encode(piece)].map((byte) => this.symbols[byte]);
      for (const part of this.merged(symbols)) ids.push(this.ids.get(part));
    }
    return ids;
  }

  merged(parts) { // join the pair that was learned first, again and again
    while (parts.length > 1) {
      let best = Infinity, at = -1;
      for (let n = 0; n + 1 < parts.length; n++) {
        const rank = this.ranks.get(`${parts[n]} ${parts[n + 1]}`) ?? Infinity;
        if (rank < best) [best, at] = [rank, n];
      }
      if (at < 0) break;
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
    return parts;
  }

  bytes(id) { // a model may have more tokens than its tokenizer: those are shown by number
    const text = this.texts.get(id) ?? `[${id}]`;
    if (this.specials.has(id) || !this.texts.has(id)) return new TextEncoder().encode(text);
    return Uint8Array.from([...text].map((symbol) => this.byteOf.get(symbol)));
  }

  label(id) { // a token alone, bytes that are no character as \xff
    const bytes = this.bytes(id), utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
    let text = "";
    for (let n = 0; n < bytes.length;) {
      let size = 4;
      for (; size > 0; size--) {
        try {
          const character = utf8.decode(bytes.subarray(n, n + size));
          text += character;
          break;
        } catch { /* not a whole number of characters: try a shorter one */ }
      }
      if (!size) text += "\\x" + bytes[n].toString(16).padStart(2, "0");
      n += size ? Math.min(size, bytes.length - n) : 1;
    }
    return text;
  }

  pieces(ids) { // for each token the text that it completes
    const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
    return ids.map((id) => utf8.decode(this.bytes(id), { stream: true }));
  }
}
