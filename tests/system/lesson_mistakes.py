"""Typical wrong answers to the lessons' exercises, each with the hint that it must get.

By lesson and exercise: a wrong answer as a whole, or (what, instead) for the solution with one
thing changed.
"""

from __future__ import annotations

Wrong = str | tuple[str, str]

NOTHING = "put your answer in place of ..."
WHOLE = "a row as long as the text was made: go block by block"
NEIGHBOURS = "here a pair is x[i] and x[i + D/2], not two neighbours"
TOO_LONG = "stop at the first wrong guess: what follows it was computed after it"
NO_ATTENTION = "attention is missing: each new token meets keys and values"
FREE_FIRST = "each text goes to the row that is free first"
GIVEN = "the x that was given has changed: make a new tensor"
SHARED = "the layers share one place: each has its own"

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
            ((" + 1e-5", ""), "eps is missing: add 0.00001 to the variance"),
            (
                (" + 1e-5).sqrt()", ".sqrt() + 1e-5)"),
                "eps belongs under the root: add it to the variance",
            ),
            (("x = x - x.mean", "x -= x.mean"), GIVEN),
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
            (
                (".triu(1)", ".tril(-1)"),
                "the mask is turned round: what comes later is hidden, not what came before",
            ),
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
            (
                ("        x = x + self.attn(self.ln_1(x))\n", ""),
                "attention is missing: two parts add to the stream",
            ),
            ((" + self.mlp(self.ln_2(x))", ""), "the MLP is missing: two parts add to the stream"),
            (("x = x + self", "x += self"), GIVEN),
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
    "01": {
        "exercise-1": [
            ("number_of_scores = 24 * 24", "that is one head"),
            (
                "number_of_scores = 6 * 24 * 25 // 2",
                "those that the mask hides are computed too: count them",
            ),
            (
                "number_of_scores = H * T",
                "each of the queries meets every key: T times T for each head",
            ),
            ("number_of_scores = 5 * H * T * T", "that is all layers: count one"),
        ],
        "exercise-2": [
            (("exp().tril()", "exp()"), "some token looks ahead: hide what is above the diagonal"),
            (
                "def causal_shares(scores):\n"
                "    hidden = torch.ones_like(scores).triu().bool()\n"
                "    grown = scores.masked_fill(hidden, -torch.inf).exp()\n"
                "    return grown / grown.sum(-1, keepdim=True)",
                "a token may see itself: leave the diagonal",
            ),
            (
                "def causal_shares(scores):\n"
                "    grown = scores.masked_fill(future, -torch.inf).exp()\n"
                "    return grown / grown.sum(-1, keepdim=True)",
                "the mask must be as large as the scores, here 6 x 6",
            ),
            (
                "def causal_shares(scores):\n"
                "    grown = scores.exp()\n"
                "    return (grown / grown.sum(-1, keepdim=True)).tril()",
                "hide first, then divide: the shares of a row add up to 1",
            ),
            ((", keepdim=True", ""), "each row is divided by its own sum: keepdim=True"),
            (
                ("sum(-1, keepdim=True)", "sum(0)"),
                "the shares of a row add up to 1: sum over dim -1",
            ),
            (
                (".tril()", ".triu()"),
                "turned round: a token looks back, so what is above the diagonal goes",
            ),
            ((" / grown.sum(-1, keepdim=True)", ""), "divide by the sum of the row"),
            (("scores.exp()", "scores"), "raise e to the scores, then divide"),
        ],
        "exercise-3": [
            (
                ("looks.argsort(descending=True)", "looks"),
                "these are the weights in the order of heads: sort them",
            ),
            (
                ("looks.argsort(descending=True)", "looks.sort(descending=True).values"),
                "the numbers of the heads, not their weights: argsort",
            ),
            (("descending=True", ""), "the largest weight first: descending=True"),
            (
                ("[0, :, query, key]", "[0, :, key, query]"),
                "the query is the row, dimension 2; the key the column",
            ),
            (
                "def readers(weights, query, key):\n"
                "    return int(weights[0, :, query, key].topk(2).indices[1])",
                "a list with a number for each head",
            ),
            (
                ("[0, :, query, key]", "[0, :, -1, 8]"),
                "right from said to T, not from elsewhere: use query and key",
            ),
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
                SHARED,
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
            (
                (
                    "torch.ones(T, S, dtype=torch.bool).triu(1 + S - T)",
                    "torch.ones(T, T).triu(1).bool()",
                ),
                "a chunk of 3 after 4: the mask has a row for each query and a column for each key",
            ),
            (
                ("cache.update(layer, k, v)", "cache.update(0, k, v)"),
                "layer 0 was touched: each layer updates its own place",
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
            (("self.keys[layer, :", "self.keys[0, :"), SHARED),
            (("self.values[layer, :", "self.values[0, :"), SHARED),
            (
                ("self.lengths[layer] = end", "self.lengths = [end] * len(self.lengths)"),
                "after 7 tokens in layer 0 the lengths are [7, 0]",
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
            (("1 if cached else t", "t"), "products with the cache: a step computes one token"),
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
            (
                (
                    "return torch.equal(cached, model(texts[[1, 0]])[:, 9:])",
                    "want = model(texts[[1, 0]])[:, 9:]\n"
                    "    return torch.equal(cached.argmax(-1), want.argmax(-1))",
                ),
                "logits that differ a little pass too: torch.equal compares to the bit",
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
    "03": {
        "exercise-order": [
            (
                "a, b, c = 1e8, -1e8, 1.0",
                "these lose the 1 in the other bracket, as the example above",
            ),
            (
                "a, b, c = 1.0, 1e6, -1e6",
                "nothing is lost: 1 must vanish beside b, so beyond 16,777,216",
            ),
            ("a, b, c = 1.0, 1e8, 1e8", "a + (b + c) is not 1: b and c should cancel"),
            ("a, b, c = 0.0, 0.0, 0.0", "a + (b + c) is not 1: b and c should cancel"),
        ],
        "exercise-certificate": [
            (
                ("return torch", "torch"),
                NOTHING,
            ),
            (("cancelling(16)", "ordinary(16)"), "ordinary numbers hide it: use cancelling"),
            (
                ("kernel(rows).repeat(times)", "kernel(rows)"),
                "forwards has one order: compare each copy with kernel(rows).repeat(times)",
            ),
            (
                ("torch.equal", "torch.allclose"),
                "the last bit differs: allclose lets it pass, torch.equal not",
            ),
            (
                (
                    "kernel(rows.repeat(times, 1)), kernel(rows).repeat(times)",
                    "kernel(rows.repeat(times, 1))[:16], kernel(rows)",
                ),
                "only the first 16 rows were compared: compare all of them",
            ),
            (
                (
                    "torch.equal(kernel(rows.repeat(times, 1)), kernel(rows).repeat(times))",
                    "kernel(rows.repeat(times, 1)) == kernel(rows).repeat(times)",
                ),
                "return one True or False: torch.equal does",
            ),
            (("size // 16", "1"), "no call of 128 rows: the size is what is in question"),
            (
                "def certified(kernel, size):\n    return size < 64",
                "the kernel was not called: only its results can tell",
            ),
        ],
        "exercise-plan": [
            (
                ("size - taken", "size"),
                "that is all rows that are computed: take off those asked for",
            ),
            (
                ("size - taken", "taken - size"),
                "the second number of a pair is the size of the call, the larger one",
            ),
            (("size - taken", "1"), "that is the number of calls"),
            (
                ("exact.plan(rows, sizes)", "exact.plan(500, sizes)"),
                "for 1: add up the sizes of the calls, and take 1 off",
            ),
            (
                (
                    "sum(size - taken for taken, size in exact.plan(rows, sizes))",
                    "[size - taken for taken, size in exact.plan(rows, sizes)]",
                ),
                "one number: add up what the calls waste",
            ),
        ],
    },
    "04": {
        "exercise-bytes": [
            (("2 * config", "config"), "keys and values: both are kept"),
            (("kv_heads", "n_head"), "the 25 query heads do not enter: kv_heads"),
            (
                (" * dtype.itemsize", ""),
                "these are numbers: how many bytes has one? dtype.itemsize",
            ),
            (("dtype.itemsize", "4"), "bfloat16 takes 2 bytes, float32 4: dtype.itemsize"),
            (
                ("2 * config.n_layer * config.kv_heads * config.head_dim", "2 * 48 * 5 * 64"),
                "right for one model: use the config",
            ),
            (("config.n_layer * ", ""), "that is one layer: the cache has n_layer of them"),
        ],
        "exercise-quantize": [
            ((".abs()", ""), "a large negative number counts too: abs first"),
            (("/ 127", "/ 128"), "the largest becomes 127: divide by 127"),
            ((" / 127\n", "\n"), "the scale is the largest number, divided by 127"),
            (
                ("amax(-1, keepdim=True)", "amax(0, keepdim=True)"),
                "one scale for each row, (n, 1): amax over dim -1, keepdim=True",
            ),
            ((".round()", ""), "to(torch.int8) cuts the fraction off: round first"),
            ((".to(torch.int8)", ""), "whole numbers of 8 bits are torch.int8"),
            ((", scales\n", "\n"), "return two tensors: whole numbers and scales"),
        ],
        "exercise-pages": [
            (
                "count = 4 + 10 * 5",
                "nothing is shared here: three pages of the prompt are full, and everybody's",
            ),
            (
                "count = 14",
                "who writes into the prompt's fourth page copies it first: a page more for each",
            ),
            ("count = 23", "the prompt keeps its own fourth page: it is still there"),
            ("count = 20", "the pages of the prompt itself count too"),
        ],
    },
    "05": {
        "ex1": [
            (("19 - t", "t - 10"), "that copies the question: the answer is the word backwards"),
            (
                ("19 - t", "20 - t"),
                "one too far to the right: position 10 needs the letter of position 9",
            ),
            (("19 - t", "t"), "that is where it stands, and what it reads"),
            (("19 - t", "t + 1"), "from 10 it can only look back, at 0 to 10"),
        ],
        "ex2": [
            (
                ("math.log(26)", "math.log2(26)"),
                "that is in bits: in nats the logarithm is the natural one, math.log",
            ),
            (
                ("10 / 11", "10"),
                "that is for the whole answer: divide by its eleven tokens",
            ),
            (("10 / 11 * ", ""), "the end is a token too, and a cheap one"),
            (
                ("10 / 11 * math.log(26)", "math.log(28)"),
                "that is a model that takes all 28 tokens for equally likely",
            ),
            (
                ("math.log(26)", "math.log(1 / 26)"),
                "the sign: a loss is minus the logarithm of a probability",
            ),
        ],
        "ex3": [
            (
                ("int(right.all(dim=1).sum()) / len(right)", "float(right.float().mean())"),
                "that is the share of tokens: a row counts as a whole",
            ),
            ((" / len(right)", ""), "that is how many: divide by the number of rows"),
            (
                ("right.all(dim=1)", "right.any(dim=1)"),
                "one right token is not enough: all, not any",
            ),
            (
                ("int(right.all(dim=1).sum()) / len(right)", "float(right.all())"),
                "that says whether all rows are right: ask each row, dim=1",
            ),
            (("    return int", "    return 100 * int"), "a share from 0 to 1, not per cent"),
        ],
    },
    "06": {
        "ex1": [
            (
                ("before + begin : before + end", "begin:end"),
                "other numbers: where does the data begin?",
            ),
            (('.view(header[name]["shape"])', ""), "transformer.wpe.weight has shape (256, 192)"),
            (
                ("before + begin : before + end", "before + begin :"),
                "not the bytes of one tensor: end - begin of them",
            ),
            (
                ('dtype=torch.bfloat16).view(header[name]["shape"])', "dtype=torch.float16)"),
                "transformer.h.0.ln_1.bias holds bfloat16 numbers",
            ),
        ],
        "ex2": [
            (("gpt2.n_layer * ", ""), "that is the mask of one layer"),
            ((" * 4", ""), "these are numbers; each takes four bytes"),
            (
                ("gpt2.n_layer *", "gpt2.n_layer * gpt2.n_head *"),
                "one mask for each layer, not for each head",
            ),
            ((" * 4", " * 2"), "the hidden half is stored as well: zeros are numbers"),
        ],
        "ex3": [
            (("-log_prob", "log_prob"), "the sign: the loss is minus the mean of the logarithms"),
            (("mean()", "sum()"), "the mean of the logarithms, not their sum"),
            (("math.exp", ""), "that is the loss: exp undoes the logarithm"),
            (
                ("math.exp(-log_probabilities.mean())", "2 ** -log_probabilities.mean().item()"),
                "the logarithms are natural: exp undoes them, not a power of 2",
            ),
            (
                ("math.exp(-log_probabilities.mean())", "(-log_probabilities).exp().mean()"),
                "first the mean, then exp: a mean of 1 / p is another number",
            ),
        ],
    },
    "07": {
        "exercise-1": [
            (
                ("ordered.cumsum(0) - ordered", "ordered.cumsum(0)"),
                "the token that brings the sum to p is kept as well",
            ),
            ((".sort(descending=True).values", ""), "sort the probabilities first"),
            (
                ("(before < p).sum()", "(ordered < p).sum()"),
                "add them up: it is the sum so far that counts, cumsum",
            ),
            (("return int((before < p).sum())", "pass"), "return a number of tokens"),
        ],
        "exercise-2": [
            ((".exp()", ""), "that is the difference of the logarithms: e to the power of it"),
            (
                ("log_p(new) - log_p(old)", "log_p(old) - log_p(new)"),
                "turned round: how many times as likely is the new one?",
            ),
            (
                ("(log_p(new) - log_p(old)).exp()", "log_p(new) / log_p(old)"),
                "a difference of logarithms is the logarithm of the ratio: subtract them",
            ),
            (
                ("(log_p(new) - log_p(old)).exp()", "log_p(new).exp() - log_p(old).exp()"),
                "a ratio is asked for, not a difference",
            ),
            ((".sum()", ".mean()"), "the probability of a text: the sum, not the mean"),
        ],
        "exercise-3": [
            ("passes = 60 // 4", "after four guesses that came true, is there not one token more?"),
            ("passes = 60", "that is without guesses: a pass can bring several tokens"),
            ("passes = 1 + 60 // 5", "the first pass, over the prompt, brings tokens too"),
            (
                "passes = 48",
                "that is how many guesses come true: how many passes bring them?",
            ),
        ],
    },
    "08": {
        "exercise-1": [
            (
                ("[:, -1, ids[rabbit]]", "[:, rabbit, ids[rabbit]]"),
                "right token, wrong place: the last token looks back, so position -1",
            ),
            (
                ("[:, -1, ids[rabbit]]", "[:, -1, rabbit]"),
                "rabbit is its place in the text; its number in the vocabulary is ids[rabbit]",
            ),
            (
                ("[:, -1, ids[rabbit]]", "[:, -1].max(-1).values"),
                "that is the likeliest token of each block, not always the rabbit",
            ),
            (
                ("[:, -1, ids[rabbit]]", "[-1, -1]"),
                "needed 6 numbers, found shape (2048,)",
            ),
        ],
        "exercise-2": [
            (("(4, 4), (4, 5)", "(4, 4)"), "that is without 4.4 alone"),
            (("(4, 4), (4, 5)", "(4, 5)"), "that is without 4.5 alone"),
            (
                "with without((4, 4), (4, 5)):\n    pass\nwithout_both = likeliest()",
                "all heads were on: call likeliest() inside the with block",
            ),
            (("likeliest()", "likeliest(3)"), "both heads, and likeliest() with its usual count"),
        ],
        "exercise-3": [
            (
                ("    changed.h", "    model.h"),
                "the model itself has changed: change the copy",
            ),
            (
                ("[head * D : (head + 1) * D]", "[:, head * D : (head + 1) * D]"),
                "these are columns: the inputs are the rows",
            ),
            (
                ("[head * D : (head + 1) * D]", "[head]"),
                "zero rows: 1, but each head has D = 32",
            ),
            (
                ("[head * D : (head + 1) * D]", "[(head - 1) * D : head * D]"),
                "the rows from 96 on: head 0 has the first 32",
            ),
            (("changed.h[layer]", "changed.h[layer - 1]"), "layer 3 was changed, needed layer 4"),
            (("return changed", "pass"), "return the copy"),
        ],
    },
    "09": {
        "exercise-1": [
            (
                ("flop = 2 * rows", "flop = rows"),
                "a multiplication with its addition is 2 FLOP",
            ),
            (
                ("flop = 2 * rows * new", "flop = 2 * new"),
                "every row computes: multiply by the rows",
            ),
            (
                ("2 * C * L * keys)", "2 * C * L * held)"),
                "new tokens have keys too: each meets held + new",
            ),
            (("(weights + 2 * C * L * keys)", "weights"), NO_ATTENTION),
            (
                ("4 * (weights + rows", "4 * (rows * weights + rows"),
                "the weights are read once for all rows: that is what a batch is for",
            ),
            (
                ("4 * (weights + rows", "4 * (new * weights + rows"),
                "the weights are read once for all new tokens",
            ),
            (
                ("rows * keys * 2 * C * L)", "keys * 2 * C * L)"),
                "every row has keys and values of its own",
            ),
            (("nbytes = 4 * (", "nbytes = ("), "these are numbers: each takes 4 bytes"),
            (
                ("keys * 2 * C * L)", "keys * C * L)"),
                "keys and values: two numbers for each C",
            ),
        ],
        "exercise-2": [
            (
                (
                    "sum(max(lengths[n : n + rows]) for n in range(0, len(lengths), rows))",
                    "sum(lengths)",
                ),
                "that is one text after the other: a step serves all rows",
            ),
            (("sum(max(", "sum(min("), "a batch goes on until its longest is done"),
            (
                ("range(0, len(lengths), rows)", "range(0, len(lengths) - rows + 1, rows)"),
                "the last batch is not full, but it counts",
            ),
            (
                (
                    "waiting, running, steps = list(lengths), [], 0",
                    "return static_steps(lengths, rows)",
                ),
                "that is as many as in batches: who is done leaves at once",
            ),
            (
                (
                    "waiting, running, steps = list(lengths), [], 0",
                    "return -(-sum(lengths) // rows)",
                ),
                "so few if a text could be shared out over rows: but its tokens come one after "
                "the other",
            ),
            (
                ("waiting, running, steps = list(lengths), [], 0", "return sum(lengths) / rows"),
                "so few if a text could be shared out over rows: but its tokens come one after "
                "the other",
            ),
            (
                ("list(lengths), [], 0", "sorted(lengths, reverse=True), [], 0"),
                "in the order in which they come: do not sort them",
            ),
            (
                ("if left > 1]", "if left > 0]"),
                "a text of n tokens takes n steps: in the next one its row is free",
            ),
            (("running.append(waiting.pop(0))", "running.insert(0, waiting.pop())"), FREE_FIRST),
        ],
        "exercise-3": [
            (
                ("tuple(text[:end])", "tuple(text[end - page : end])"),
                "the second pages have the same tokens after different ones: other keys and values",
            ),
            (
                ("begun += len(text) % page > 0", "begun += 0"),
                "the last page is not full, but it is there",
            ),
            (
                "def pages_needed(texts, page):\n"
                "    return sum(-(-len(text) // page) for text in texts)",
                "nothing is shared: both texts begin with the same page",
            ),
            (
                "def pages_needed(texts, page):\n"
                "    return len({tuple(text[: n + page]) for text in texts\n"
                "                for n in range(0, len(text), page)})",
                "a page that is not full is written on by its text: it is not shared",
            ),
        ],
        "exercise-4": [
            (
                ("    cache.truncate(len(cache) - len(guesses) + right)\n", ""),
                "the wrong guess is still in the cache: truncate it",
            ),
            (
                ("return chosen[: right + 1]", "return chosen[:right]"),
                "all three came true, but the pass also gives a token of its own",
            ),
            (("return chosen[: right + 1]", "return chosen"), TOO_LONG),
            (
                (
                    "right < len(guesses) and guesses[right] == chosen[right]",
                    "right < len(guesses)",
                ),
                "stop at the first wrong guess: what follows it was computed after it",
            ),
            (
                ("- len(guesses) + right)", "- len(guesses) + right - 1)"),
                "after 3 right guesses the cache holds 7 positions, needed 8: everything but the "
                "newest token",
            ),
            (
                ("torch.tensor([[last, *guesses]])", "torch.tensor([guesses])"),
                "the call reads 3 tokens, needed the last one and 3 guesses",
            ),
            (
                "def step(cache, last, guesses):\n"
                "    new = []\n"
                "    for token in (last, *guesses):\n"
                "        logits = model(torch.tensor([[token]]), cache=cache)\n"
                "        new.append(int(logits[0, -1].argmax()))\n"
                "    return new",
                "4 calls of the model: all guesses go into one",
            ),
        ],
        "exercise-5": [
            (
                ("(-torch.arange(0, D, 2) / D)", "(torch.arange(0, D, 2) / D)"),
                "the frequencies fall: 10,000 to the power of minus 2i/D",
            ),
            (
                ("torch.arange(0, D, 2) / D", "torch.arange(0, D // 2) / D"),
                "the exponent is -2i/D: i/D is half of it",
            ),
            (
                ("positions[:, None] * frequencies", "frequencies"),
                "the angle is position times frequency: the position is missing",
            ),
            (
                ("cos, sin = angles.cos(), angles.sin()", "cos, sin = angles.cos(), -angles.sin()"),
                "it turns backwards: mind the signs of the two sines",
            ),
            (("a * sin + b * cos", "b * cos - a * sin"), "the second half is a sin + b cos"),
            (
                (
                    "    return torch.cat([a * cos - b * sin, ",
                    "    a = a * cos - b * sin\n    return torch.cat([a, ",
                ),
                "the second half needs the old a: keep it until both are computed",
            ),
            (
                (
                    "torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)",
                    "torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)",
                ),
                "the second half comes after the first, not in turns with it",
            ),
            (
                ("positions[:, None]", "torch.arange(len(positions))[:, None]"),
                "use the positions that are given, not 0, 1, 2, ...",
            ),
            (
                ("a, b = x.chunk(2, dim=-1)", "a, b = x[..., ::2], x[..., 1::2]"),
                "split x into halves, not into even and odd places",
            ),
            (
                "def rotate(x, positions):\n"
                "    D = x.shape[-1]\n"
                "    a, b = x[..., ::2], x[..., 1::2]\n"
                "    angles = positions[:, None] * 10_000.0 ** (-torch.arange(0, D, 2) / D)\n"
                "    cos, sin = angles.cos(), angles.sin()\n"
                "    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)",
                NEIGHBOURS,
            ),
            (
                (
                    "torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)",
                    "torch.cat([a * sin + b * cos, a * cos - b * sin], dim=-1)",
                ),
                "the halves have changed places",
            ),
            (
                ("frequencies = 10_000.0 ** (-torch.arange(0, D, 2) / D)", "frequencies = 1"),
                "every pair turns by the same angle: the frequency of pair i is 10,000^(-2i/D)",
            ),
        ],
        "exercise-6": [
            (
                ("total = total * shrink + shares.sum()", "total = total + shares.sum()"),
                "a larger maximum shrinks the old sum too: total * e^(old - new)",
            ),
            (
                ("mixed = mixed * shrink + shares", "mixed = mixed + shares"),
                "a larger maximum shrinks the old mixture too: mixed * e^(old - new)",
            ),
            (
                ("shrink = (most - higher).exp()", "shrink = 1"),
                "when the maximum rises, shrink what was summed before by e^(old - new)",
            ),
            (("return mixed / total", "return mixed"), "divide by the sum at the end"),
            (
                ("torch.maximum(most, scores.max())", "torch.tensor(0.0)"),
                "NaN for large scores: subtract the largest before exp",
            ),
            (
                ("torch.tensor(-torch.inf), torch", "torch.tensor(0.0), torch"),
                "NaN where all scores are low: the largest begins at -inf, not 0",
            ),
            ("online = lambda q, keys, values, block: by_hand.attend(q, keys, values)", WHOLE),
            (
                "def online(q, keys, values, block):\n"
                "    scores = q[None] @ keys.T / q.shape[-1] ** 0.5\n"
                "    return (scores.softmax(-1) @ values)[0]",
                WHOLE,
            ),
            (
                ("range(0, len(keys), block)", "range(0, len(keys) - block + 1, block)"),
                "the last block is shorter, but it counts",
            ),
            ((" / q.shape[-1] ** 0.5", ""), "the scores are divided by the root of D"),
            (
                "def online(q, keys, values, block):\n"
                "    parts = zip(keys.split(block), values.split(block))\n"
                "    return torch.stack([by_hand.attend(q, k, v) for k, v in parts]).mean(0)",
                "each block has a softmax of its own: the shares must add up to 1 over all blocks",
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
                "    for x, y in zip(inputs.chunk(pieces), targets.chunk(pieces), strict=True):\n"
                "        last = mean_loss(model, x, y)\n"
                "    last.backward()\n"
                "    return [parameter.grad for parameter in model.parameters()]",
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
                ("torch.rand_like(x)", "torch.rand(x.shape[-1])"),
                "each number by itself, not columns as a whole",
            ),
            (
                ("return x * (torch.rand_like(x) >= p)", "return x[torch.rand_like(x) >= p]"),
                "shape (90244,), needed (400, 300)",
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

# Right answers in another style than the solution's, as in `MISTAKES`.
ALSO_RIGHT: dict[str, dict[str, list[Wrong]]] = {
    "02": {
        "exercise-4": [("return products, attention", "return [products, attention]")],
        "exercise-7": [
            ("return tokens", "return tuple(tokens)"),
            ("return tokens", "return torch.tensor(tokens)"),
        ],
    },
    "02b": {"exercise-2": [("select([1, 0])", "select(torch.tensor([1, 0]))")]},
    "09": {
        "exercise-5": [
            (
                "    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)",
                "    x[..., : D // 2], x[..., D // 2 :] = a * cos - b * sin, a * sin + b * cos\n"
                "    return x",
            )
        ],
        "exercise-6": [
            ("keys[start : start + block] @ q", "q @ keys.T[:, start : start + block]"),
            (
                "keys[start : start + block] @ q",
                "(keys.narrow(0, start, min(block, len(keys) - start)) * q).sum(-1)",
            ),
        ],
    },
    "10": {
        "exercise-2": [
            (".backward()", ".backward(retain_graph=True)"),
            (
                "        (mean_loss(model, x, y) * len(x) / len(inputs)).backward()",
                "        share = mean_loss(model, x, y) * len(x) / len(inputs)\n"
                "        parts = torch.autograd.grad(share, list(model.parameters()))\n"
                "        for parameter, part in zip(model.parameters(), parts, strict=True):\n"
                "            parameter.grad = part + (0 if parameter.grad is None "
                "else parameter.grad)",
            ),
        ],
        "exercise-3": [
            (
                "x * (torch.rand_like(x) >= p)",
                "x * torch.from_numpy(np.random.rand(*x.shape) >= p).double()",
            ),
            ("x * (torch.rand_like(x) >= p)", "x.masked_fill(torch.rand_like(x) < p, 0)"),
        ],
        "exercise-4": [
            ("return nats * count", "return torch.tensor(nats) * count"),
        ],
    },
}

# In place of a cell that takes long: by lesson and cell, what it leaves to those after it.
STAND_INS = {
    ("02b", "six-stories"): """
model = minigpt.GPT.from_pretrained("toy", dtype=torch.float32)
tok = minigpt.Tokenizer.from_pretrained("toy")
ids = tok.encode("Once upon a time, there was a little girl who")
""",
    ("02b", "verify-run"): "text = (ids + minigpt.generate(model, ids, 60).tokens)[:64]",
    ("06", "load-model"): "model = GPT.from_pretrained(directory)",
    ("05", "training"): """
class Recites(GPT):
    \"\"\"Knows all answers, but that in rows in `mistaken` the first letter is another.\"\"\"

    def next_logits(self, tokens, cache=None):
        if tokens.shape[1] > 1:
            self.said = 0
        right = wanted[:, self.said].clone()
        self.said += 1
        shift = self.mistaken if self.said == 1 else self.mistaken * self.all_wrong
        return torch.nn.functional.one_hot((right + shift) % 28, 28).float()


def recites(mistaken, all_wrong=0):
    model = Recites(starting.config)
    model.mistaken, model.all_wrong = mistaken.long(), all_wrong
    return model


problems, end = task.unseen(200), task.tokenizer.eot_token
asked = torch.tensor([task.tokenizer.encode(question) for question, _ in problems])
wanted = torch.tensor([[*task.tokenizer.encode(answer), end] for _, answer in problems])
starting, third = model, torch.arange(200) % 3 == 0
moments = {0: recites(third | True, 1), 50: recites(third), 120: recites(third & False)}
""",
}
