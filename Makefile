# Every target sets up what it needs in .venv first; nothing is installed outside it.
# .venv/.has-X is written last, once pip has installed X, so `make` knows what is there.

PYTHON ?= python3
MODEL ?= weights/toy
PROMPT ?= Once upon a time
SEED ?= 12
TORCH_INDEX ?=
CHROMIUM ?= chromium
ARGS ?=

BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist worksteal
CPU_INDEX := https://download.pytorch.org/whl/cpu
# A set-up that was stopped half way, or a .venv whose Python has gone: begin again.
BROKEN := $(shell test ! -e .venv || { test ! -e .venv/.unfinished && test -x $(BIN)/python; } || echo start-over)

.PHONY: help setup demo test test-all fuzz bench notebooks check-notebooks write-notebooks wheel picture images gpu-check lint toy describe clean start-over
.NOTPARALLEL: # one pip at a time
.DEFAULT_GOAL := help

help: ## show this list
	@echo "minigpt: a GPT-2 to read, with its cache in plain sight. Needs Python 3.10 or newer."
	@echo
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1|\2/p' Makefile \
		| awk -F'|' '{ printf "%-24s%s\n", $$1, $$2 }'
	@echo
	@echo "Settings, after the target:"
	@echo "  PYTHON=python3.12       the Python that .venv is made with, the first time"
	@echo "  TORCH_INDEX=URL         one more place to look for PyTorch, the first time: on Linux without an"
	@echo "                          NVIDIA GPU $(CPU_INDEX) saves 3 GB"
	@echo '  ARGS="..."              passed on by test, test-all, fuzz, bench, toy, describe, check-notebooks, as in: make test ARGS="-k cache"'
	@echo '  MODEL=, PROMPT=, SEED=  what demo runs, as in: make demo PROMPT="The fox"'

setup: .venv/.has-dev ## install minigpt and all that working on it takes into .venv

demo: .venv/.has-core ## write a story with the bundled model, then check its cache bit by bit
	$(BIN)/minigpt generate --model $(MODEL) --prompt "$(PROMPT)" \
		--max-new-tokens 160 --temperature 0.8 --seed $(SEED)
	$(BIN)/minigpt verify --model $(MODEL)

test: .venv/.has-test ## run the tests of every room: three or four minutes
	$(PYTEST) --ignore=tests/system $(ARGS)

test-all: .venv/.has-test ## run all tests: also kills, damaged files, threads, a browser, these pages
	$(PYTEST) $(ARGS)

fuzz: .venv/.has-test ## damage 20,000 checkpoints and caches, and load them: ten minutes
	MINIGPT_EXAMPLES=250 $(PYTEST) tests/system/test_fuzz.py $(ARGS)

bench: .venv/.has-bench ## measure speed, with and without the cache and beside transformers
	$(BIN)/minigpt bench $(ARGS)

gpu-check: .venv/.has-bench ## on an NVIDIA GPU: is it exact, and how fast? eight minutes, one file to send in
	$(BIN)/python -m minigpt.bench.gpu_check --out gpu-check $(ARGS)

notebooks: .venv/.has-notebooks ## open the lessons in Jupyter
	$(BIN)/jupyter lab notebooks

check-notebooks: .venv/.has-notebooks ## run every lesson and its exercises, compare what they show
	$(BIN)/python notebooks/check.py $(ARGS)

wheel: .venv/.has-notebooks ## build the wheel into dist: with the bundled model, for other machines
	$(BIN)/python -m hatchling build -t wheel

write-notebooks: .venv/.has-notebooks ## run every lesson and keep what it shows now
	$(BIN)/python notebooks/check.py --write $(ARGS)

picture: .venv/.has-core ## draw README's picture: the live page in Chromium
	@command -v $(CHROMIUM) >/dev/null || { \
		echo "$(CHROMIUM) was not found: install it, or name another Chrome, as in: make picture CHROMIUM=google-chrome" >&2; exit 1; }
	@mkdir -p notebooks/images
	@page=$$(mktemp -d) && trap 'rm -rf "$$page"' EXIT && \
	$(BIN)/minigpt trace --live --model $(MODEL) --prompt "$(PROMPT)" --seed $(SEED) --out "$$page/live.html" && \
	$(CHROMIUM) --headless=new --no-sandbox --disable-gpu --hide-scrollbars --force-prefers-reduced-motion \
		--user-data-dir="$$page/profile" --window-size=1280,800 --virtual-time-budget=10000 \
		--screenshot="$(CURDIR)/notebooks/images/page.png" "file://$$page/live.html#step=14"

images: .venv/.has-core ## draw the diagrams of the README and the lessons again
	$(BIN)/python -m minigpt.study.diagrams notebooks/images $(MODEL)

lint: .venv/.has-lint ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

toy: .venv/.has-train ## train the bundled model again
	$(BIN)/minigpt train --preset toy --out weights/toy $(ARGS)

describe: .venv/.has-train ## measure the bundled model, and write what comes out into weights/README.md
	$(BIN)/python weights/describe.py $(ARGS)

clean: ## delete .venv and what the tools left behind
	rm -rf .venv .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find minigpt tests notebooks -name __pycache__ -prune -exec rm -rf {} +

# --- setting up ----------------------------------------------------------------------------------

start-over:
	@echo "The last set-up did not finish: making .venv again."
	@rm -rf .venv

$(BIN)/python: $(BROKEN)
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
		echo "$(PYTHON) was not found: install Python 3.10 or newer, or say where it is, as in: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "minigpt needs Python 3.10 or newer and $(PYTHON) is $$($(PYTHON) -V 2>&1): name a newer one, as in: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) has no venv module to make .venv with: install it (Debian and Ubuntu: apt install python3-venv), or name another Python, as in: make setup PYTHON=python3.12" >&2; exit 1; }
	@echo "Making .venv with $$($(PYTHON) -V 2>&1)."
	@test "$$(uname)" != Linux || test -n "$(TORCH_INDEX)" || command -v nvidia-smi >/dev/null || \
		echo "(PyTorch may bring 3 GB of GPU libraries; to do without: make setup TORCH_INDEX=$(CPU_INDEX))"
	@mkdir -p .venv && touch .venv/.unfinished
	@$(PYTHON) -m venv .venv
	@rm .venv/.unfinished

# What an extra brings with it. `dev` is most of the others, so they need no second visit to pip.
brings = $(if $(filter $*,dev),core test lint bench train notebooks,$(if $(filter $*,test),core bench train,core))

.venv/.has-%: pyproject.toml constraints.txt $(BROKEN) | $(BIN)/python
	@echo "Installing minigpt ($*) into .venv: a few minutes the first time, most of it for PyTorch ..."
	@trap 'exit 130' INT TERM; touch .venv/.unfinished; \
	{ $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null; } && \
	$(PIP_INSTALL) 'pip>=22.3' && \
	$(PIP_INSTALL) -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		-e '.$(if $(filter-out core,$*),[$*])' || { \
		rm .venv/.unfinished; \
		echo "Installing minigpt ($*) failed, see above; the same command tries again." >&2; exit 1; }
	@rm .venv/.unfinished
	@touch .venv/.has-$* $(foreach extra,$(brings),.venv/.has-$(extra))
