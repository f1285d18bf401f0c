"""Models small enough to make in milliseconds, and what several test files need."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from minigpt import GPT, GPTConfig
from minigpt.generation.sampling import Sampler
from minigpt.numerics.fast import FastOps

pytest_plugins = ["tests.browser", "tests.fake_hub"]

MakeModel = Callable[..., GPT]


def pytest_configure(config: pytest.Config) -> None:
    """CI asks that GPT-2's vocabulary is there, so that none of its tests is skipped."""
    if os.environ.get("MINIGPT_REQUIRE_VOCAB"):
        for variable in ("TIKTOKEN_CACHE_DIR", "MINIGPT_GPT2_VOCAB"):
            if not Path(os.environ.get(variable, "-")).is_dir():
                raise pytest.UsageError(f"{variable} is no directory, needed GPT-2's vocabulary")
    # Small models gain nothing from a second thread, and where the machine is busy or two workers
    # run beside each other, threads that wait for one another take ten times as long. What is
    # about threads sets their number itself.
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
    # Tests make kernels cheat, and are about probes: neither reads nor writes the user's files.
    os.environ["MINIGPT_CERTIFICATES"] = "off"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How much work `make test` is, and how much more `make test-all`."""
    reports = [r for kind in terminalreporter.stats.values() for r in kind]
    spent = {"tests/system": 0.0, "all other tests": 0.0}
    for report in reports:
        if isinstance(report, pytest.TestReport):
            system = report.nodeid.startswith("tests/system")
            spent["tests/system" if system else "all other tests"] += report.duration
    for name, seconds in spent.items():
        terminalreporter.write_line(f"{name}: {seconds:.0f} s of work")


@pytest.fixture
def make_model() -> MakeModel:
    """make_model(numerics="exact", n_kv_head=1, ...): a random model in evaluation mode."""

    def make(numerics: str = "fast", dtype: torch.dtype = torch.float32, **changes: object) -> GPT:
        torch.manual_seed(0)
        shape = {"vocab_size": 211, "n_positions": 160, "n_embd": 48, "n_layer": 2, "n_head": 3}
        model = GPT(GPTConfig(**{**shape, **changes}), numerics=numerics)  # type: ignore[arg-type]
        with torch.no_grad():  # initial weights are tiny: make the layers matter
            for name, parameter in model.named_parameters():
                if parameter.ndim == 2 and not name.startswith("w"):
                    parameter.mul_(5)
                if name.endswith("bias"):
                    parameter.normal_(0, 0.1)
        return model.eval().to(dtype)

    return make


@pytest.fixture
def model(make_model: MakeModel) -> GPT:
    return make_model()


@pytest.fixture
def exact(make_model: MakeModel) -> GPT:
    return make_model(numerics="exact")


@pytest.fixture
def text() -> Callable[..., torch.Tensor]:
    """text(rows, length): random tokens (rows, length) of the small models' vocabulary."""

    def make(rows: int, length: int, seed: int = 0, vocab_size: int = 211) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(vocab_size, (rows, length), generator=generator)

    return make


@pytest.fixture(autouse=True)
def threads() -> Iterator[Callable[[int], None]]:
    """threads(n) sets the number of CPU threads; every test begins with one."""
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.fixture
def gradients_as_before() -> Iterator[None]:
    """What a lesson's cells say of gradients ends with the test."""
    before = torch.is_grad_enabled()
    yield
    torch.set_grad_enabled(before)


@pytest.fixture
def logits_seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Every row of logits from which a token was chosen."""
    seen: list[torch.Tensor] = []
    choose = Sampler.choose

    def spy(self, logits, *rest):  # type: ignore[no-untyped-def]
        seen.append(logits.clone())
        return choose(self, logits, *rest)

    monkeypatch.setattr(Sampler, "choose", spy)
    return seen


@pytest.fixture
def row_counts_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fast numerics that differ for certain: products of fewer than 4 rows are a little larger."""
    linear = FastOps.linear

    def larger(self, x, weight, bias, packed):  # type: ignore[no-untyped-def]
        y = linear(self, x, weight, bias, packed)
        return y * (1 + 1e-6) if x.shape[1] < 4 else y

    monkeypatch.setattr(FastOps, "linear", larger)
