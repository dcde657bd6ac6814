# Everything from a fresh machine with Python >= 3.11 and make:
#   make demo    train a tiny model on the packaged clips and attribute it        make test    the whole suite
#   make check   format, lint, types                                              make docs    build docs/ into site/
#   make quick   the suite without its slow tests                                 make soak    properties at EXAMPLES each, and the soak tests
#   make bench   what all scores cost, beside other ways to get them              make paper   examples/unified_audio, whole and small
# OUT, DATA, STEPS, SEED go to the demo; PAPER_OUT, DATA, HOURS, ARGS to the paper; ARGS to the benchmark and to pytest.
# PIP_ARGS goes to every pip call, e.g. an index that has the CPU build of torch.

VENV    ?= .venv
BIN     := $(VENV)/bin
PIP_ARGS ?=
PIP      = $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt $(PIP_ARGS)
WORKERS ?= 2
EXAMPLES ?= 500
# Every Float[Tensor, "B T D"] is held to its word at every call; see tests/shapes.py. Only files that name a shape are
# watched: a wrapper around each function of the others would check nothing, and the finder has very many small ones.
SHAPED  := $(shell grep -rl jaxtyping fog_a adapters/fog_a_adapters --include='*.py' | sed 's|^adapters/||; s|\.py$$||; s|/__init__$$||; s|/|.|g' | paste -sd, -)
SHAPES  ?= --jaxtyping-packages=$(SHAPED),shapes.checked
OUT     ?= out/demo
PAPER_OUT ?= out/paper

# The first interpreter that runs, is new enough and can make a virtual environment.
PYTHON  ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)

BENCH_OUT ?= out/bench

.PHONY: demo paper test soak quick check docs bench clean help

help:
	@sed -n '1,8s/^# \{0,1\}//p' Makefile

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: no Python >= 3.11 with venv and pip was found (tried python3.11, python3.12, python3.13, python3, python)."; \
		echo "Install one (Debian: apt-get install python3 python3-venv) or name it: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One stamp for each set of packages: a second call installs nothing.
$(VENV)/.build: constraints.txt | $(BIN)/python
	$(PIP) hatchling editables
	@touch $@

$(VENV)/.demo: pyproject.toml constraints.txt $(VENV)/.build
	$(PIP) --no-build-isolation -e '.[plot,audio]'
	$(BIN)/python tools/mend_torchaudio.py
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt tests/requirements.txt $(VENV)/.build
	$(PIP) --no-build-isolation -e '.[dev,beats]'
	$(PIP) --no-deps -r tests/requirements.txt
	$(PIP) --no-deps matcha-tts || echo "make: matcha-tts did not build (it needs a C compiler): its tests will be skipped"
	$(BIN)/python tools/mend_torchaudio.py
	@touch $@ $(VENV)/.demo

$(VENV)/.docs: pyproject.toml constraints.txt $(VENV)/.build
	$(PIP) --no-build-isolation -e '.[docs]'
	@touch $@

$(VENV)/.bench: pyproject.toml constraints.txt $(VENV)/.build
	$(PIP) --no-build-isolation -e '.[bench]'
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/fog-a demo --out $(OUT) $(if $(DATA),--data $(DATA)) $(if $(STEPS),--steps $(STEPS)) $(if $(SEED),--seed $(SEED))

# One thread: at these sizes more of them wait for each other. OMP_NUM_THREADS=… overrides.
paper: $(VENV)/.dev
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} PYTHONPATH=examples $(BIN)/python -m unified_audio.paper --out $(PAPER_OUT) $(if $(DATA),--data $(DATA)) $(if $(HOURS),--hours $(HOURS)) $(ARGS)

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not soak" $(SHAPES) $(ARGS)

# hypothesis itself marks the properties.
soak: $(VENV)/.dev
	OMP_NUM_THREADS=1 FOG_A_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "soak or hypothesis" $(SHAPES) $(ARGS)

quick: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not soak" $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

# The attribution table of docs/performance.md, and what finding costs; benchmarks/ has two more, with their own options.
bench: $(VENV)/.bench
	@mkdir -p $(BENCH_OUT)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/finding.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/attribution.py --json $(BENCH_OUT)/attribution.json $(ARGS)

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q

clean:
	rm -rf site out build dist .pytest_cache .ruff_cache .hypothesis
