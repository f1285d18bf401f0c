"""Typical wrong answers to the lessons' exercises, each with the hint that it must get.

By lesson and exercise: a wrong answer as a whole, or (what, instead) for the solution with one
thing changed.
"""

from __future__ import annotations

Wrong = str | tuple[str, str]

NOTHING = "put your answer in place of ..."

MISTAKES: dict[str, dict[str, list[tuple[Wrong, str]]]] = {
    "00": {
        "exercise-1": [
            ("def merge(parts, pair):\n    return None", NOTHING),
            (
                ("            i += 2\n", "            return merged + parts[i + 2:]\n"),
                "only the first pair is merged: go on to the end",
            ),
            (
                ("while i < len(parts)", "while i < len(parts) - 1"),
                "the last part is lost: it has no right neighbour",
            ),
            (("i += 2", "i += 1"), "banana became ['b', 'an', 'n', 'an', 'n', 'a']"),
            (
                "import re\ndef merge(parts, pair):\n"
                "    text, join = ''.join(parts), ''.join(pair)\n"
                "    return [p for p in re.split(f'({join}|.)', text) if p]",
                "compare parts, not letters: 't', 'he' spells the same, but it is another pair",
            ),
        ],
        "exercise-2": [
            (
                ("x - x.mean(-1, keepdim=True)", "x - 0"),
                "subtract the mean before you take the squares",
            ),
            ((".sqrt()", ""), "divide by the square root of the variance"),
            (
                ("x.pow(2).mean(-1, keepdim=True)", "x.var(-1, keepdim=True)"),
                "a mean divides by C, torch's var and std by C - 1",
            ),
            ((" * self.weight + self.bias", ""), "weight and bias are missing at the end"),
            (("mean(-1", "mean(1"), "the mean is over the last dimension; 1 is the tokens"),
        ],
        "exercise-3": [
            (
                (".masked_fill(future, -torch.inf)", ""),
                "later tokens are seen: hide them with -inf before softmax",
            ),
            ((" / q.shape[-1] ** 0.5", ""), "the scores are not divided by the root of D"),
            (("-torch.inf", "0.0"), "a hidden score is -inf: 0 is a score like any other"),
            (
                ("q.shape[-1] ** 0.5", "x.shape[-1] ** 0.5"),
                "the root is that of D, the width of a head",
            ),
            (
                (
                    "masked_fill(future, -torch.inf).softmax(-1)",
                    "softmax(-1).masked_fill(future, 0.0)",
                ),
                "hide later tokens before softmax, or the shares of the others do not add up to 1",
            ),
            (
                (".transpose(1, 2).flatten(2))  #", ".reshape(x.shape))  #"),
                "put the heads side by side: swap dimensions 1 and 2 back first",
            ),
            (("self.c_proj((weights", "((weights"), "c_proj is missing"),
            (("triu(1)", "triu(0)"), "NaN: a row of -inf only, or a division of 0 by 0"),
        ],
        "exercise-4": [
            ((', approximate="tanh"', ""), "that is the exact GELU: GPT-2 has approximate='tanh'"),
            (
                ('F.gelu(self.c_fc(x), approximate="tanh")', "self.c_fc(x)"),
                "the bend is missing: two products in a row are no more than one",
            ),
            (
                ('F.gelu(self.c_fc(x), approximate="tanh")', "F.relu(self.c_fc(x))"),
                "that is ReLU: GPT-2 has GELU",
            ),
            (("return self", "return x + self"), "the residual is added in the block, not here"),
        ],
        "exercise-5": [
            (
                ("x = x + self.attn", "x = self.attn"),
                "attention is not added to the stream, it replaces it",
            ),
            (
                ("return x + self.mlp", "return self.mlp"),
                "the MLP is not added to the stream, it replaces it",
            ),
            (
                (
                    "        x = x + self.attn(self.ln_1(x))\n        return x +",
                    "        return x + self.attn(self.ln_1(x)) +",
                ),
                "the MLP reads the stream after attention has been added",
            ),
            (
                ("self.mlp(self.ln_2(x))", "self.mlp(x)"),
                "a part reads the stream through its norm: ln_2 before the MLP",
            ),
            (
                ("self.mlp(self.ln_2(x))", "self.mlp(self.ln_1(x))"),
                "the MLP has a norm of its own, ln_2",
            ),
        ],
        "exercise-6": [
            (
                (" + self.wpe(torch.arange(tokens.shape[1]))", ""),
                "positions are missing: without wpe the model does not know the order",
            ),
            (
                ("torch.arange(tokens.shape[1])", "1 + torch.arange(tokens.shape[1])"),
                "the first position is 0",
            ),
            (("self.ln_f(x) @", "x @"), "ln_f is missing before the head"),
            ((" @ self.wte.weight.T", ""), "the head is missing: compare with every row of wte"),
            (("in self.h:", "in self.h[:1]:"), "only one block: go through all of self.h"),
        ],
        "exercise-7": [
            (("-right.mean()", "right.mean()"), "the sign: a loss is positive"),
            (
                ("[:, :-1].gather(-1, tokens[:, 1:, None])", ".gather(-1, tokens[..., None])"),
                "shift: the logits of position t are about token t + 1",
            ),
            (("mean()", "sum()"), "the mean over all tokens, not the sum"),
            (
                (".log_softmax(-1)", ""),
                "logits are not yet logarithms of probabilities: log_softmax",
            ),
            ((".log_softmax(-1)", ".softmax(-1)"), "the logarithm is missing"),
        ],
    },
    "02": {
        "exercise-1": [
            (
                ("self.held[layer] is not None", "False"),
                "only the new tokens came back: append them to what is held",
            ),
            (("dim=2", "dim=1"), "tokens grow, and they are dimension 2: dimension 1 is the heads"),
            (
                ("torch.cat([old_k, k], dim=2)", "torch.cat([k, old_k], dim=2)"),
                "the new tokens stand before the old ones",
            ),
            (
                ("torch.cat([old_v, v], dim=2)", "torch.cat([old_k, k], dim=2)"),
                "these are the keys twice: values have their own place",
            ),
            (
                ("self.held[layer] = k, v", "self.held = [(k, v)] * len(self.held)"),
                "the layers share one place: each has its own",
            ),
        ],
        "exercise-2": [
            (
                ("triu(1 + S - T)", "triu(1)"),
                "one new token after 8: it may see all of them, so the mask hides nothing",
            ),
            (
                ("k, v = cache.update(layer, k, v)", "cache.update(layer, k, v)"),
                "the new token sees only itself: use what update returns",
            ),
            (
                (".masked_fill(future, -torch.inf)", ""),
                "later tokens are seen: hide them, as before",
            ),
            (
                ("triu(1 + S - T)", "triu(1 if T > 1 else S)"),
                "a chunk of 3 after 4: the mask begins at 1 + S - T, not at 1",
            ),
        ],
        "exercise-3": [
            (
                (
                    "return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]",
                    "return self.keys[layer], self.values[layer]",
                ),
                "that is all the room: give back the tokens so far only",
            ),
            (
                (
                    "return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]",
                    "return k, v",
                ),
                "new memory was taken: write into self.keys, no torch.cat",
            ),
            (
                ("        self.lengths[layer] = end\n", ""),
                "the length has not moved: self.lengths[layer] = end",
            ),
            (
                ("[layer, :, :, start:end] = k", "[layer, :, :, : k.shape[2]] = k"),
                "the new tokens were written over the first ones: begin at the length",
            ),
            (
                (
                    "self.values[layer, :, :, start:end] = v",
                    "self.values[layer, :, :, start:end] = k",
                ),
                "these are the keys",
            ),
        ],
        "exercise-4": [
            (("12 * C * C", "12 * C"), "12 times the square of C, for each token"),
            (("tokens * 12", "12"), "products without a cache: step t computes t tokens, not one"),
            (("tokens * 2 * t", "tokens * t"), "twice: once for the scores, once for the mixture"),
            (
                ("tokens * 2 * t", "2 * t"),
                "attention without a cache: t queries in step t, each with t keys",
            ),
        ],
        "exercise-5": [
            ("total_bytes = 48 * 25 * 64 * 2 * 1024 * 8", "keys and values: both are kept"),
            ("total_bytes = 2 * 48 * 25 * 64 * 2 * 1024", "that is one text"),
            ("total_bytes = 2 * 48 * 25 * 64 * 4 * 1024 * 8", "bfloat16 takes 2 bytes, not 4"),
        ],
        "exercise-6": [
            (("return P + n - 1", "return P + n"), "the prompt once; is the last new token read?"),
            (
                ("return n * P + n * (n - 1) // 2", "return n * P + n * (n + 1) // 2"),
                "pass number i reads P + i - 1 tokens",
            ),
            (("return n * P + n * (n - 1) // 2", "return None"), "return a number"),
        ],
        "exercise-7": [
            (
                ("torch.tensor([tokens[-1:]])", "torch.tensor([ids + tokens])"),
                "another text: is each new token handed to the next pass, once?",
            ),
            (
                ("len(tokens) < n", "len(tokens) < n - 1"),
                "as many tokens as asked for, without those of the prompt",
            ),
            (
                ("cache = model.new_cache()\n", "cache = None\n"),
                "another text: is each new token handed to the next pass, once?",
            ),
        ],
    },
    "02b": {
        "exercise-1": [
            ("diagnosis = dict.fromkeys('ABCDEF')", "put one of the six words in each place"),
            (
                ('"A": "mask"', '"A": "masks"'),
                "A: 'masks' is none of position, heads, mask, prompts, rows, window",
            ),
            (('"A": "mask"', '"A": "heads"'), "each word once"),
            (
                "diagnosis = dict(zip('ABCDEF', 'heads window mask rows position prompts'"
                ".split()))",
                "A is not heads: of that one, single tokens are right, a first chunk too; a chunk "
                "after others is wrong",
            ),
            (
                "diagnosis = dict(zip('ABCDEF', 'mask position heads rows window prompts'"
                ".split()))",
                "B is not position: of that one, its steps go wrong right after the prompt, "
                "already in h.0.ln_1",
            ),
        ],
        "exercise-2": [
            (("cache.select([1, 0])", "cache"), "no row has been moved: call select on the cache"),
            (
                ("select([1, 0])", "select([0, 1])"),
                "in the same order nothing can go wrong: select([1, 0])",
            ),
            (
                ("texts[[1, 0], 9:]", "texts[:, 9:]"),
                "a sound cache fails your check: swap on both sides, the last tokens too",
            ),
            (
                ("torch.equal(cached, model(texts[[1, 0]])[:, 9:])", "True"),
                "the broken cache passes: compare the logits after select, for the token that "
                "comes next",
            ),
        ],
        "exercise-3": [
            (("list(self._lengths)", "self._held"), "that is what is held, as before"),
            (("list(self._lengths)", "len(self)"), "a list, with one number for each row"),
            (
                ("list(self._lengths)", "[n + 1 for n in self._lengths]"),
                "after 0 tokens the next position is 0, not [1]",
            ),
        ],
        "exercise-4": [
            (
                ("        self._data = [data[..., :0, :] for data in self._data]", "        pass"),
                "the second cache begins with the first one's keys",
            ),
            (
                ("self._data = [", "self._data[:] = ["),
                "the first cache was emptied when the second was made",
            ),
            (
                ("[data[..., :0, :] for data in self._data]", "[]"),
                "a list with one tensor for each layer",
            ),
        ],
    },
    "10": {
        "exercise-1": [
            ("def overfits_from(steps, training, held_out):\n    return ...", NOTHING),
            (
                ("return steps[lowest]", "return lowest"),
                "that is its place in the list; the step is steps[1]",
            ),
            (
                ("held_out.index(min(held_out))", "training.index(min(training))"),
                "held out 4.0, 2.6, 2.7, 3.0: that is overfitting",
            ),
            (
                "def overfits_from(steps, training, held_out):\n"
                "    return steps[training.index(min(training))]",
                "the lowest held-out loss, not the lowest training loss",
            ),
            (
                "def overfits_from(steps, training, held_out):\n"
                "    return steps[held_out.index(min(held_out))]",
                "a run that is best at its end does not overfit (yet): None",
            ),
            (
                (" and training[-1] < training[lowest]", ""),
                "when the training loss rises too, nothing is learned by heart: None",
            ),
        ],
        "exercise-2": [
            (
                (".backward()", ""),
                "no gradients: call backward on each piece",
            ),
            (
                (" * len(x) / len(inputs)", ""),
                "four times too large: each piece counts a quarter only",
            ),
            (
                (" * len(x) / len(inputs)", " / pieces"),
                "10 rows make pieces of 3, 3, 3 and 1: weigh each by its rows",
            ),
            (
                ("        (mean", "        model.zero_grad()\n        (mean"),
                "not the gradient of the whole batch: is one piece lost?",
            ),
            (
                "def gradients(model, inputs, targets, pieces):\n"
                "    model.zero_grad()\n"
                "    total = 0\n"
                "    for x, y in zip(inputs.chunk(pieces), targets.chunk(pieces), strict=True):\n"
                "        total = total + mean_loss(model, x, y) * len(x) / len(inputs)\n"
                "    total.backward()\n"
                "    return [parameter.grad for parameter in model.parameters()]",
                "right, but all pieces are in memory at once: call backward in the loop",
            ),
        ],
        "exercise-3": [
            ("def dropout(x, p, training):\n    return None", NOTHING),
            ((" / (1 - p)", ""), "what is left must be divided by 1 - p"),
            ((" / (1 - p)", " * (1 - p)"), "divide what is left by 1 - p"),
            ((">= p) / (1 - p)", "< p) / p"), "p is the probability to drop, not to keep"),
            (
                ("    if not training:\n        return x\n", ""),
                "in use, nothing is dropped: return x",
            ),
            (
                ("torch.rand_like(x)", "torch.rand(len(x), 1)"),
                "each number by itself, not rows as a whole",
            ),
            (
                ("return x * (torch.rand_like(x) >= p)", "return x.mul_(torch.rand_like(x) >= p)"),
                "the x that was given has changed: make a new tensor",
            ),
        ],
        "exercise-4": [
            ("def bits_per_byte(nats, count, size):\n    return None", NOTHING),
            (
                (" / math.log(2)", ""),
                "that is nats per byte: one bit is ln 2 nats, so there are more bits than nats",
            ),
            (
                ("/ math.log(2)", "* math.log(2)"),
                "a bit is less than a nat (0.69), so there are more of them: divide",
            ),
            (
                ("nats * count / math.log(2) / size", "nats / math.log(2)"),
                "that is bits per token: how many tokens are there for each byte?",
            ),
            (
                ("nats * count / math.log(2) / size", "nats * size / math.log(2) / count"),
                "turned round: count tokens pay, and size bytes share it",
            ),
            ((" / size", ""), "that is all bits together: divide by the bytes"),
        ],
        "exercise-5": [
            ("def fit(sizes, losses):\n    return ..., ...", NOTHING),
            (("-slope", "slope"), "the line falls, and b is positive: b = -slope"),
            (("np.exp(height)", "height"), "that is log a: a is np.exp of it"),
            (
                ("np.exp(height), -slope", "slope, -height"),
                "polyfit returns the slope first, then the height",
            ),
            (
                ("np.log(sizes), np.log(losses)", "sizes, losses"),
                "take logarithms of both first",
            ),
            (
                ("np.log(sizes), np.log(losses)", "np.log(sizes), losses"),
                "the losses need a logarithm too",
            ),
            (
                ("np.log(sizes), np.log(losses)", "np.log10(sizes), np.log10(losses)"),
                "log10 goes with 10 to a power, and log with exp",
            ),
        ],
    },
}
