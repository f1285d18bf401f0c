"""The options that say how tokens are chosen, which several commands share."""

from __future__ import annotations

import argparse

SAMPLING = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "no_repeat_ngram_size", "min_new_tokens",
)  # fmt: skip


def sampling_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--temperature", type=float, default=0.8, metavar="T", help="0 is greedy (default 0.8)"
    )
    command.add_argument("--top-k", type=int, metavar="K", help="draw among the K likeliest tokens")
    command.add_argument(
        "--top-p", type=float, metavar="P", help="draw among the likeliest with probability P"
    )
    command.add_argument(
        "--min-p", type=float, metavar="P", help="draw among those P times as likely as the best"
    )
    command.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="above 1 shuns tokens that occurred (default 1)",
    )
    for name in ("presence", "frequency"):
        often = "" if name == "presence" else ", each time it did"
        command.add_argument(
            f"--{name}-penalty",
            type=float,
            default=0.0,
            metavar="X",
            help=f"subtracted from the logit of a token that occurred{often}, -2 to 2 (default 0)",
        )
    command.add_argument(
        "--no-repeat-ngram-size",
        type=int,
        default=0,
        metavar="N",
        help="no run of N tokens comes twice (default 0: it may)",
    )
    command.add_argument(
        "--min-new-tokens",
        type=int,
        default=0,
        metavar="N",
        help="do not end the text before N tokens (default 0)",
    )
