PYTHON ?= python3
BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable
CHECKPOINT := profiles/checkpoints/blood-cells.safetensors
EXTRAS = server
CYCLONEDX := cyclonedx-bom==7.5.0
RECIPES := profiles/recipes/blood-cells
CONTAINERS ?= $(shell docker info > /dev/null 2>&1 && echo docker || echo podman)
PACKAGES := proto profiles server compress clients examples tests benchmarks deploy

.DEFAULT_GOAL := help
.PHONY: help install demo playground screenshots test lint format type proto check-proto train prune profiles benchmark \
  mutation fuzz overload bursts faults soak ceiling peers dashboards observability image check-image wheel check-wheel sbom \
  clean

help: ## Lists the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

install: .venv/dev ## Everything for working on the project.

demo: .venv/server ## Serves the bundled model and shows what each profile finds: make demo [IMAGE=path].
	@$(BIN)/damoserve demo $(if $(IMAGE),"$(IMAGE)")

playground: .venv/playground ## Serves the bundled model and a web page to try it: http://127.0.0.1:8080/
	@$(BIN)/damoserve serve & server=$$!; trap 'kill $$server; wait $$server' EXIT; $(BIN)/damoserve playground

screenshots: .venv/dev ## Takes the pictures of the playground in docs/images. Needs Debian's chromium.
	DAMOSERVE_SCREENSHOTS=docs/images $(BIN)/python -m pytest tests/e2e/test_playground.py -k colour_schemes

# A process for each core, of one thread each: torch's own threads would compete with the other processes.
test: .venv/dev ## Runs the tests: make test [ARGS=tests/server].
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

lint: .venv/dev ## Style.
	$(BIN)/ruff check $(PACKAGES)
	$(BIN)/ruff format --check $(PACKAGES)

format: .venv/dev ## Puts the style right.
	$(BIN)/ruff check --fix $(PACKAGES)
	$(BIN)/ruff format $(PACKAGES)

type: .venv/dev ## Types.
	$(BIN)/mypy

proto: .venv/dev ## Generates the stubs of the contract.
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHON=python proto/generate.sh

check-proto: proto ## Fails when the committed stubs are not those of the contract.
	git diff --exit-code -- proto
	@test -z "$$(git status --porcelain -- proto)" || { git status --short -- proto; exit 1; }

train: .venv/dev ## Trains the bundled model: make train DAMOSERVE_DATA=folder. Wants a GPU.
	$(BIN)/damoserve-compress train --model blood-cells --variant T --recipe cells --epochs 300 --out runs/T \
	  --set learning_rate=0.002 --set weight_decay=0.05 --set ema_decay=0.998
	$(BIN)/damoserve-compress publish runs/T/model.safetensors $(CHECKPOINT)

prune: .venv/dev ## Cuts the bundled model and trains it again: make prune DAMOSERVE_DATA=folder. Wants a GPU.
	$(BIN)/damoserve-compress prune $(CHECKPOINT) --recipe $(RECIPES)/cut/pruned.yaml --work runs/build \
	  --train-recipe cells --set ema_decay=0.999
	@echo "Publish the network that it names to profiles/checkpoints/blood-cells-pruned.safetensors"

profiles: .venv/dev ## Builds the bundled profiles: make profiles DAMOSERVE_DATA=folder.
	$(BIN)/damoserve-compress build $(CHECKPOINT) --repository profiles/repository --work runs/build --license Apache-2.0 \
	  $(foreach name,fp32 int8 pruned int8+pruned,--recipe $(RECIPES)/$(name).yaml)

benchmark: .venv/dev ## Times the bundled profiles against each other.
	$(BIN)/damoserve-compress benchmark

mutation: .venv/dev ## Changes of one line that no test notices, an hour, goes on where it was: make mutation [ARGS='window --jobs 2'].
	$(BIN)/python -m tests.mutation $(ARGS)

fuzz: .venv/server ## Sends a server 20 000 broken requests: make fuzz [ARGS='--requests 1000 --seed 2'].
	$(BIN)/python benchmarks/fuzz.py $(ARGS)

overload: .venv/dev ## More requests at once than can be answered in time: make overload [ARGS='--repeats 1'].
	$(BIN)/python -m benchmarks.overload $(ARGS)

bursts: .venv/dev ## Bursts against other policies, over 20 minutes: make bursts [ARGS='--seconds 5 --rounds 1'].
	$(BIN)/python -m benchmarks.bursts $(ARGS)

faults: .venv/dev ## Every fault under sixteen callers: make faults [ARGS=SIGTERM].
	$(BIN)/python -m benchmarks.faults $(ARGS)

soak: .venv/dev ## Half an hour of everything, and the memory: make soak [ARGS='--minutes 5'].
	$(BIN)/python -m benchmarks.soak $(ARGS)

ceiling: .venv/dev ## The server at saturation against a plain loop: make ceiling [ARGS='--rounds 1'].
	$(BIN)/python -m benchmarks.ceiling $(ARGS)

dashboards: .venv/dev ## Generates Grafana's dashboards.
	$(BIN)/python -m deploy.observability.dashboards deploy/observability/grafana/dashboards

observability: .venv/dev ## Asks a real Prometheus every expression after 60 s of load, and for an alert on a damaged profile.
	DAMOSERVE_OBSERVABILITY_SECONDS=60 $(BIN)/python -m pytest tests/e2e/test_observability.py $(ARGS)

peers: .venv/dev ## The same work behind other servers: make peers [ARGS='--rounds 1'].
	$(BIN)/python -m benchmarks.peers $(ARGS)

image: ## Builds the server's container image, with docker or podman.
	$(CONTAINERS) build --target server --tag damoserve:latest .

check-image: .venv/dev ## Builds the server's image, runs it read-only without capabilities, calls it and stops it.
	DAMOSERVE_CONTAINERS="$(CONTAINERS)" $(BIN)/python -m pytest tests/e2e/test_image.py $(ARGS)

wheel: .venv/dev ## Builds both distributions, damoserve and damoserve-models, into dist/.
	rm -rf dist
	$(BIN)/python -m hatchling build --directory dist
	cd profiles && "$(CURDIR)/$(BIN)/python" -m hatchling build --directory ../dist

check-wheel: .venv/dev ## Installs the wheels into environments of their own and uses them. Needs a package index.
	DAMOSERVE_CHECK_WHEEL=1 $(BIN)/python -m pytest tests/e2e/test_installed.py $(ARGS)

sbom: wheel ## Lists what an install brings, as CycloneDX, in dist/sbom.json: make sbom [EXTRAS=gpu].
	@work=$$(mktemp -d) && trap 'rm -rf "$$work"' EXIT && \
	$(PYTHON) -m venv "$$work/install" && $(PYTHON) -m venv "$$work/tool" && \
	"$$work/install/bin/python" -m pip install --quiet --no-deps --no-index --find-links dist damoserve damoserve-models && \
	"$$work/install/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  'damoserve[$(EXTRAS)]' && \
	"$$work/tool/bin/python" -m pip install --quiet --disable-pip-version-check '$(CYCLONEDX)' && \
	"$$work/install/bin/python" -m pip uninstall --quiet --yes setuptools pip && \
	"$$work/tool/bin/cyclonedx-py" environment --pyproject pyproject.toml --output-reproducible \
	  --output-file dist/sbom.json "$$work/install/bin/python"

clean: ## Removes what the other targets made.
	rm -rf .venv demo dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/python:
	$(PYTHON) -m venv .venv
	@touch $@

.venv/server: pyproject.toml constraints.txt | .venv/python
	$(INSTALL) '.[server]'
	@touch $@

.venv/playground: pyproject.toml constraints.txt | .venv/python
	$(INSTALL) '.[server,playground]'
	@touch $@

.venv/dev: pyproject.toml constraints.txt | .venv/python
	$(INSTALL) '.[server,openvino,tracing,playground,compress,dev]'
	@touch $@
