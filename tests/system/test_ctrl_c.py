"""Ctrl-C from the first import on: one line, exit code 130, whatever is being loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Runs the command, and sends it SIGINT when it looks for its n-th module: a clock would not hit
# the same moment twice. Modules are looked for from our first line until the text is written.
PROGRAM = """
import os, signal, sys
from minigpt.__main__ import main

moment, seen = int(sys.argv.pop(1)), 0
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored when begun in the background

def hook(event, arguments):
    global seen
    if event == "import":
        seen += 1
        if seen == moment:
            os.kill(os.getpid(), signal.SIGINT)

sys.addaudithook(hook)
code = main()
if code == 0:
    print(seen)
sys.exit(code)
"""
ARGUMENTS = ("generate", "--model", "random:nano", "--prompt", "x", "--max-new-tokens", "1")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="another signal is sent there")


def interrupted_at(moment):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(moment), *ARGUMENTS], capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def imports():
    """How many modules are looked for in a run that is left alone."""
    done = interrupted_at(0)
    assert done.returncode == 0
    return int(done.stdout.split()[-1])


# A good tenth of the way, C code of PyTorch and numpy forgets an exception that comes up there.
@pytest.mark.parametrize("part", [0, 0.02, 0.05, 0.1, 0.17, 0.21, 0.5, 0.87, 0.95, 0.999])
def test_ctrl_c_ends_in_one_line(imports, part):
    done = interrupted_at(1 + int(part * (imports - 1)))
    assert done.stderr == "\ninterrupted\n"
    assert done.stdout in ("", "x")
    assert done.returncode == 130
