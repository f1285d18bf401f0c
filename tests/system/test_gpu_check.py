"""The check for GPUs, on a CPU and tiny shapes: every part finds something, failures stay small."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from minigpt.bench.findings import Findings
from minigpt.bench.gpu_check import PARTS, render
from minigpt.bench.gpu_parts import PARTS as FUNCTIONS
from tests.helpers import ROOT

NO_TRANSFORMERS = {"rival_compiled"}  # parts that are about it alone


def run(out, *arguments: str) -> dict:
    command = [sys.executable, "-m", "minigpt.bench.gpu_check", "--device", "cpu", "--small"]
    done = subprocess.run(
        [*command, "--out", str(out), *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (out / "table.txt").read_text() == done.stdout
    return json.loads((out / "result.json").read_text())


def test_every_part_is_a_function():
    assert {part.name for part in PARTS} == set(FUNCTIONS)


def test_every_part_finds_something_and_nothing_unequal(tmp_path):
    pytest.importorskip("transformers")
    result = run(tmp_path, "--seconds", "400")
    for name, part in result["parts"].items():
        assert part["entries"], (name, part)
        assert part["failures"] == [], name
    entries = result["parts"]["exactness"]["entries"]
    equal = [entry["equal"] for entry in entries if "equal" in entry]
    assert len(equal) > 20
    assert all(equal)
    beside = [entry["value"] for entry in entries if "beside texts alone" in entry["what"]]
    assert beside == [True] * 9  # batches of two kinds and engines, three ways of choosing


def test_no_part_takes_more_than_there_is(tmp_path):
    began = time.monotonic()
    result = run(tmp_path, "--seconds", "8")
    assert set(result["parts"]) == set(FUNCTIONS)
    assert time.monotonic() - began < 60  # far more than 8, on a busy machine, and far from all
    ended = {part["ended"] for part in result["parts"].values()}
    assert ended & {"stopped: its time was up", "not begun: no time was left"}


def test_what_fails_is_told_and_the_rest_goes_on(tmp_path):
    findings = Findings(tmp_path, "some")
    with findings.trying("dividing"):
        findings.add("before", 1)
        raise ZeroDivisionError("by nothing")
    findings.add("after", 2.5, "ms", x=4)
    found = json.loads((tmp_path / "some.json").read_text())
    assert [entry["what"] for entry in found["entries"]] == ["before", "after"]
    assert found["failures"][0].startswith("dividing: ZeroDivisionError: by nothing (")
    shown = render({"parts": {"some": {"ended": "done", "seconds": 1, **found}}})
    assert "FAILED dividing" in shown
    assert "2.5  ms" in shown


def test_a_stop_is_no_failure_to_write_down(tmp_path):
    findings = Findings(tmp_path, "some")
    with pytest.raises(KeyboardInterrupt), findings.trying("waiting"):
        raise KeyboardInterrupt
    assert findings.failures == []
