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
    "11": {
        "exercise-1": [
            ("def worth(asked, answer):\n    return ...", NOTHING),
            ((" if is_name(answer) else 0.0", ""), "kot has all three letters, but it is no name"),
            ((" / len(asked)", ""), "kotali has k, o and t: it is worth 1"),
            (
                ("sum(letter in answer for letter in asked) / len(asked)", "1.0"),
                "kotali has none of m, u and n",
            ),
            (
                (
                    "sum(letter in answer for letter in asked)",
                    "len(asked) * all(letter in answer for letter in asked)",
                ),
                "a name with two of three letters is worth 2/3",
            ),
            (
                (
                    "sum(letter in answer for letter in asked)",
                    "sum(answer.count(letter) for letter in asked)",
                ),
                "a letter that comes twice counts once",
            ),
        ],
        "exercise-2": [
            ("def advantages(rewards):\n    return ...", NOTHING),
            (("rewards.mean(1, keepdim=True)", "0"), "subtract the mean of the group first"),
            (
                (" / (rewards.std(1, correction=0, keepdim=True) + 1e-4)", ""),
                "divide by the group's standard deviation",
            ),
            (
                ("correction=0, ", ""),
                "this deviation divides by one answer less: correction=0",
            ),
            (
                ("rewards.std(1, correction=0, keepdim=True)", "rewards.std(correction=0)"),
                "that is the table's deviation: each group has its own",
            ),
            (
                "def advantages(rewards):\n"
                "    return (rewards - rewards.mean()) / (rewards.std() + 1e-4)",
                "compare with the group: one row is one question",
            ),
            ((" + 1e-4", ""), "NaN: a row of -inf only, or a division of 0 by 0"),
        ],
        "exercise-3": [
            ("def objective(new, old, advantage, clip=0.2):\n    return ...", NOTHING),
            (
                ("(new - old).exp()", "new - old"),
                "p / p' is exp(log p - log p'): the exponential is missing",
            ),
            (
                (
                    "torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)",
                    "ratio * advantage",
                ),
                "nothing is clipped: min(ratio, clipped ratio), each times the advantage",
            ),
            (
                (
                    "torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)",
                    "ratio.clamp(1 - clip, 1 + clip) * advantage",
                ),
                "only the clipped one is left: take the smaller of both",
            ),
            (("torch.minimum", "torch.maximum"), "take the smaller one, not the larger"),
            (("new - old", "old - new"), "the ratio is new over old"),
            (
                (
                    "torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)",
                    "torch.minimum(ratio, ratio.clamp(1 - clip, 1 + clip)) * advantage",
                ),
                "multiply with the advantage before you take the smaller one",
            ),
        ],
        "exercise-4": [
            ("def divergence(now, sampled):\n    return ...", NOTHING),
            (("(d.exp() - 1 - d)", "(-d)"), "that is the plain estimate, which may be negative"),
            (("(d.exp() - 1 - d)", "(d + 1 - d.exp())"), "the sign is wrong"),
            ((".mean()", ""), "one number, please: the mean over all tokens"),
            ((".mean()", ".sum()"), "a mean, not a sum"),
            (("now - sampled", "sampled - now"), "d is now less sampled"),
            ((" - 1 - d", " - d"), "the 1 is missing: where nothing differs it should be 0"),
        ],
        "exercise-5": [
            ("whole = ...", NOTHING),
            ("whole = 1000 * math.exp(0.001)", "the ratios are multiplied, not added"),
            ("whole = math.exp(0.001)", "a thousand times a thousandth is no small thing"),
            ("whole = 2.0", "a product of exponentials: add up the exponents"),
        ],
    },
}
