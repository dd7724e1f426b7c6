# Two commands: `make run` and `make test`. Both make their own environment in .venv and reuse what is there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
# An accelerator job per GPU; without a GPU, one per core.
GPUS := $(shell n=$$(nvidia-smi -L 2>/dev/null | grep -c ^GPU); [ "$${n:-0}" -gt 0 ] && echo $$n || getconf _NPROCESSORS_ONLN)
# Megabytes that all running jobs may have together: most of what is here, or what a laptop has.
MEM := $(shell awk '/^MemTotal/ {mb = int($$2 * 0.9 / 1024)} END {print mb ? mb : 7500}' /proc/meminfo 2>/dev/null || echo 7500)
export PYTHONPATH := workflow_scripts
# Some images set it; every job would then compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run dry-run status orphans score calibrate serve compare judge archive check-gpu test fuzz mutants benchmarks check docs site architectures env clean

run: $(READY) ## the whole pipeline on the embedded default; arguments: make run ARGS="--config model=tiny-gpt2"
	$(BIN)/python -m ghosttrack.cli.launch --resources gpu=$(GPUS) mem_mb=$(MEM) --profile profiles/local $(ARGS)

dry-run: $(READY) ## what `make run` would do
	@$(BIN)/python -m ghosttrack.planning.traps $(ARGS)
	$(BIN)/snakemake -n --profile profiles/local $(ARGS)

status: $(READY) ## expected cost and progress of a run; also works while the run is active: make status ARGS="--config model=gpt2-medium"
	$(BIN)/python -m ghosttrack.cli.status $(ARGS)

score: $(READY) ## the detector of a finished run on your own texts: make score ARGS="results/smollm2-135m --texts mine.csv --out mine.html"
	@$(BIN)/python -m ghosttrack.cli.score $(value ARGS)

calibrate: $(READY) ## recalibrate the detector of a finished run on your own labelled texts: make calibrate ARGS="results/smollm2-135m --texts labelled.csv"
	@$(BIN)/python -m ghosttrack.cli.calibrate $(ARGS)

serve: $(READY) ## a page on this machine that scores what you type: make serve ARGS="results/smollm2-135m"
	@$(BIN)/python -m ghosttrack.cli.serve $(ARGS)

compare: $(READY) ## finished runs side by side: make compare ARGS="results/gpt2-small results/gpt2-medium"
	@$(BIN)/python -m ghosttrack.cli.compare $(ARGS)

judge: $(READY) ## scores that were made elsewhere, judged by the controls of a finished run: make judge ARGS="results/smollm2-135m my_scores.csv"
	@$(BIN)/python -m ghosttrack.cli.judge $(ARGS)

archive: $(READY) ## a finished run with its workflow as one file for an archive, an RO-Crate: make archive ARGS="results/smollm2-135m"
	@$(BIN)/python -m ghosttrack.cli.archive $(ARGS)

orphans: $(READY) ## jobs of a killed run that are still running, on this machine or on Slurm: make orphans ARGS="--wait" or ARGS="--cancel"
	$(BIN)/python -m ghosttrack.planning.orphans $(ARGS)

check-gpu: $(READY) ## compare the GPU with the CPU and measure its speed (about eight minutes), into benchmarks/gpu/; without a GPU: make check-gpu ARGS="--rehearse"
	$(BIN)/python -m ghosttrack.cli.check_gpu $(ARGS)

test: $(READY) ## all tests except the slow ones, which make test ARGS="-m slow" runs; a test whose software is missing (Slurm, a browser) is skipped with the reason
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

fuzz: $(READY) ## the tests on random and damaged inputs with 10,000 examples each (in make test: 200)
	$(BIN)/python benchmarks/run_all.py fuzz

mutants: $(READY) ## change the code in 60 places, one at a time, and list the changes that no unit test notices (about 20 CPU-minutes)
	$(BIN)/python benchmarks/run_all.py mutants

benchmarks: $(READY) ## measure every part beside other projects, into benchmarks/results/ and docs/reference/benchmarks.md: make benchmarks ARGS="--minutes 3" or ARGS="--list"
	$(BIN)/python benchmarks/run_all.py $(ARGS)

check: $(READY) ## lint, format, types, imports between subpackages, Snakemake's lint, generated documentation, site
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/snakemake --lint
	$(BIN)/python -m ghosttrack.cli.manual --check
	$(BIN)/python benchmarks/page.py --check
	$(BIN)/python benchmarks/promises.py --check
	$(MAKE) --no-print-directory site

docs: $(READY) ## write the generated parts of the documentation
	$(BIN)/python -m ghosttrack.cli.manual
	$(BIN)/python benchmarks/page.py
	$(BIN)/python benchmarks/promises.py

site: $(READY) ## build the documentation as a site in a temporary folder; a warning is an error
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir "$$folder"

architectures: $(READY) ## test every fast way of running a model on every model type, and write the table of docs/architectures.md (minutes)
	GHOSTTRACK_ARCHITECTURES=1 $(BIN)/python -m pytest tests/unit/test_architecture_matrix.py

env: $(READY) ## only the environment, e.g. on a cluster's login node

clean: ## remove the environment and caches; results stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

# Not compiled: Python compiles a module when it is first imported, and most never are.
$(READY): envs/requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info[:2] >= (3, 11) else "GhostTrack needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	$(PYTHON) -m ghosttrack.planning.traps --folder "$(BIN)/python"
	$(PYTHON) -m venv "$(VENV)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --requirement envs/requirements.txt
	touch $@
