# Every target works alone on a fresh clone: it needs Python 3.11 to 3.13, make and the package registries.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
ARGS ?=
EXTRAS ?= dev,joblib,submitit,optuna
SEEDS ?= 1
# How `make lab` judges each run: within half a minute, samples included.
EVALUATE ?= +preset=quick
# How `make study` judges each run.
JUDGE ?= +preset=study

.DEFAULT_GOAL := help
.PHONY: help install lab study results train evaluate compare networks sweep tensorboard bench \
	test test-all test-gpu torture check

help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

install: $(VENV)/installed ## the virtual environment with the tested versions

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[$(EXTRAS)]'
	@touch $@

# With several seeds the long trainings come first, so that no processor is idle at the end.
lab: $(VENV)/installed ## the main job: train baseline and deep on MNIST and compare them; SEEDS=3 trains each three times
	@set -e; stamp=$$(date +%Y-%m-%d/%H-%M-%S); \
	if [ $(SEEDS) = 1 ]; then \
		runs="[outputs/$$stamp-baseline,outputs/$$stamp-deep]"; \
		for model in baseline deep; do \
			$(RUN) -m vae.train model=$$model hydra.run.dir=outputs/$$stamp-$$model $(ARGS); \
		done; \
	else \
		runs=outputs/$$stamp-lab; \
		$(RUN) -m vae.train --multirun model=deep,baseline seed="range($(SEEDS))" \
			hydra/launcher=joblib hydra.sweep.dir=$$runs $(ARGS); \
	fi; \
	$(RUN) -m vae.evaluate "runs=$$runs" $(EVALUATE) compare=outputs/$$stamp-compare; \
	echo "'make tensorboard' shows the runs on the dashboard."

STUDY := complexity complexity_encoder complexity_decoder
comma := ,

study: $(VENV)/installed ## does the generative ability grow with the networks? three sweeps and one page; resumes where it stopped
	@set -e; for name in $(STUDY); do \
		$(RUN) -m vae.train --multirun +experiment=$$name hydra.sweep.dir=outputs/study/$$name $(ARGS); \
	done; \
	runs="[$(subst $() ,$(comma),$(STUDY:%=outputs/study/%))]"; \
	$(RUN) -m vae.evaluate "runs=$$runs" $(JUDGE); \
	$(RUN) -m vae.compare "runs=$$runs" page=study out=outputs/study

# What docs/results.md shows besides the lab and the study: sweeps over settings and three seeds, and the published models.
SWEPT := lab_best_sigma collapse_vs_sigma linear_vs_deep remedies
PUBLISHED := wu2017_vae10 wu2017_vae50 burda2015_vae_cosine
sweep_into = $(RUN) -m vae.train --multirun +experiment=$(1) hydra.sweep.dir=outputs/results/$(1)

results: $(VENV)/installed ## what docs/results.md shows besides the lab and the study, at full length, many hours; skips what is done, resumes the rest
	@set -e; for name in $(SWEPT); do \
		$(call sweep_into,$$name) seed=0,1,2 $(ARGS); \
	done; \
	$(call sweep_into,rate_distortion) $(ARGS); \
	for name in $(PUBLISHED); do \
		$(call sweep_into,$$name) $(ARGS); \
	done; \
	$(RUN) -m vae.evaluate runs=outputs/results/wu2017_vae10 +preset=log_p; \
	$(RUN) -m vae.evaluate runs=outputs/results/wu2017_vae50 +preset=log_p gap.images=500; \
	$(RUN) -m vae.evaluate runs=outputs/results/burda2015_vae_cosine +preset=l_5000; \
	$(RUN) docs/results/collect.py outputs/results/*/

train: $(VENV)/installed ## one run: make train ARGS="model=deep model.latent_dim=8"
	$(RUN) -m vae.train $(ARGS)

evaluate: $(VENV)/installed ## full-strength estimators: make evaluate ARGS="run=<run folder>"
	$(RUN) -m vae.evaluate $(ARGS)

compare: $(VENV)/installed ## runs on one page: make compare ARGS="runs=[<run folder>,<run folder>]"
	$(RUN) -m vae.compare $(ARGS)

networks: $(VENV)/installed ## a run's networks as files for use elsewhere: make networks ARGS="run=<run folder>"
	$(RUN) -m vae.export $(ARGS)

sweep: $(VENV)/installed ## both models over six latent dimensions: make sweep ARGS="trainer.max_epochs=5"
	$(RUN) -m vae.train --multirun model=baseline,deep model.latent_dim=2,4,8,16,32,64 $(ARGS)

tensorboard: $(VENV)/installed ## the dashboard over all runs, on this machine only
	$(RUN) -m vae.dashboard --host 127.0.0.1 $(ARGS)

bench: $(VENV)/installed ## how fast training is, against a hand-written loop and others
	$(PIP) --editable '.[bench]'
	$(RUN) benchmarks/bench.py $(ARGS)

test: $(VENV)/installed ## the tests, but for the slow ones
	$(RUN) -m pytest -m "not slow" $(ARGS)

test-all: $(VENV)/installed ## all tests
	$(RUN) -m pytest $(ARGS)

test-gpu: $(VENV)/installed ## the tests that need a CUDA GPU
	$(RUN) -m pytest -m gpu --numprocesses=0 $(ARGS)

torture: $(VENV)/installed ## kill runs at random moments, resume each, compare how they end
	$(RUN) tests/torture.py $(ARGS)

check: $(VENV)/installed ## lint, format, types and import contracts
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
