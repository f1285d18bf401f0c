"""Without a C++ compiler, `compile` is refused in one sentence before anything is begun."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="torch looks for another compiler there")
def test_compile_without_a_compiler_is_refused_before_training(tmp_path):
    arguments = ["--task", "addition", "--device", "cpu", "--compile", "--out", "run"]
    done = subprocess.run(
        [sys.executable, "-m", "minigpt", "train", *arguments],
        cwd=tmp_path, text=True, capture_output=True,
        env={
            **os.environ, "CXX": str(tmp_path / "none"), "PATH": str(tmp_path),
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled"),
        },
    )  # fmt: skip
    assert done.returncode == 2
    assert "step" not in done.stderr
    [sentence] = [line for line in done.stderr.splitlines() if line.startswith("minigpt: ")]
    assert sentence.startswith("minigpt: compile does not work here (")
    assert sentence.endswith("needed a C++ compiler such as g++: install it, or leave out compile")
    assert "Traceback" not in done.stderr
