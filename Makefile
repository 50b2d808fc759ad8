# `make serve` and `make test` need Python 3.11 or newer and nothing else; see README.md.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tests wait for servers more than they compute, so more run at once than most machines have cores.
JOBS ?= 4
# What the tests drive besides Python packages: programs, each with Debian's name for its package where that is another.
TEST_TOOLS := skopeo podman buildah umoci docker:docker.io dockerd:docker.io docker-registry redis-server sshd:openssh-server npm curl systemd-analyze:systemd
# What npm installs for the tests.
TOOLS := .tools

# Tests start hundreds of processes; images of CI often say that no bytecode is kept, and each would compile all modules.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: serve test test-tools debian-tools lint format clean

serve: $(VENV)/.moorage
	$(BIN)/moorage serve ./data

test: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal $(PYTEST_ARGS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Programs from Debian's archive, and azurite from npm. Not needed to serve; without one, the tests that drive it say so
# and are skipped. Servers of Debian's live in sbin, which not every user has on the path.
test-tools: $(TOOLS)/node_modules/.bin/azurite-blob

debian-tools:
	@PATH="$$PATH:/usr/sbin"; missing=; for tool in $(TEST_TOOLS); do \
	  command -v $${tool%%:*} >/dev/null || missing="$$missing $${tool##*:}"; \
	done; \
	if [ -n "$$missing" ]; then \
	  command -v apt-get >/dev/null || { echo "please install:$$missing" >&2; exit 1; }; \
	  sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  $$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
	fi

$(TOOLS)/node_modules/.bin/azurite-blob: | debian-tools
	npm install --prefix $(TOOLS) --no-audit --no-fund --loglevel=error azurite@3

# The pip that Python brings may be years old: to find versions that go together took one 70 s of processor, and its
# successors 18.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip

$(VENV)/.moorage: pyproject.toml | $(VENV)/bin/python
	@echo 'installing Moorage into $(VENV)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $(VENV)/.moorage $@

$(VENV)/.lint: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(VENV)/.moorage $(VENV)/.test $@

clean:
	rm -rf $(VENV) $(TOOLS) dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
