# Every target works alone on a fresh clone: it needs Python 3.11 to 3.13, make and the package registries.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
ARGS ?=
EXTRAS ?= dev,joblib,submitit

.DEFAULT_GOAL := help
.PHONY: help install lab compare evaluate networks train sweep tensorboard bench test torture check

help: ## what can be made
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 14

install: $(VENV)/installed ## the virtual environment with the tested versions

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

lab: $(VENV)/installed ## the main job: train the baseline and the deep pair on MNIST, compare them on a page
	@stamp=$$(date +%Y-%m-%d/%H-%M-%S) && \
	$(RUN) -m vae.train model=baseline hydra.run.dir=outputs/$$stamp-baseline $(ARGS) && \
	$(RUN) -m vae.train model=deep hydra.run.dir=outputs/$$stamp-deep $(ARGS) && \
	$(RUN) -m vae.compare "runs=[outputs/$$stamp-baseline,outputs/$$stamp-deep]" out=outputs/$$stamp-compare && \
	echo "'make tensorboard' shows both runs on the dashboard."

compare: $(VENV)/installed ## runs on one page: make compare ARGS="runs=[<run folder>,<run folder>]"
	$(RUN) -m vae.compare $(ARGS)

evaluate: $(VENV)/installed ## full-strength figures of a run: make evaluate ARGS="run=<run folder>"
	$(RUN) -m vae.evaluate $(ARGS)

networks: $(VENV)/installed ## a run's networks as files for use elsewhere: make networks ARGS="run=<run folder>"
	$(RUN) -m vae.export $(ARGS)

train: $(VENV)/installed ## one run: make train ARGS="model=deep model.latent_dim=8"
	$(RUN) -m vae.train $(ARGS)

sweep: $(VENV)/installed ## both models over six latent dimensions: make sweep ARGS="trainer.max_epochs=5"
	$(RUN) -m vae.train --multirun model=baseline,deep model.latent_dim=2,4,8,16,32,64 $(ARGS)

tensorboard: $(VENV)/installed ## the dashboard over all runs, on this machine only
	$(VENV)/bin/tensorboard --logdir outputs --host 127.0.0.1

test: $(VENV)/installed ## the tests
	$(RUN) -m pytest $(ARGS)

bench: $(VENV)/installed ## how fast training is, against a loop by hand and others
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(RUN) benchmarks/bench.py $(ARGS)

torture: $(VENV)/installed ## kill 200 runs at random moments and resume each
	$(RUN) tests/torture.py $(ARGS)

check: $(VENV)/installed ## lint, format and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
