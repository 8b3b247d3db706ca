# natsmux: `make help` lists what can be made.

.DEFAULT_GOAL := help
.PHONY: help run build test-deps check test sim prove fuzz failover soak

export PORT HTTP KILL NATS_SERVER SEED SEEDS SECONDS_EACH RUNS

help: ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile

run: ## the demo: two brokers, natsmux, a broker killed every 10 s (PORT=4222 HTTP=8222 KILL=0 NATS_SERVER=path)
	@python3 tests/demo/run.py --check
	@test -n "$$NATS_SERVER" || python3 tests/tools/fetch-broker >/dev/null
	cargo build --release
	@exec python3 tests/demo/run.py

build: ## the daemon, in release
	cargo build --release

test-deps: ## what the tests need (as root: Debian packages; the rest under target/)
	@tests/tools/install-test-deps

check: ## formatting and lints
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings

test: test-deps check ## everything: dependencies, formatting, lints, all tests
	cargo test

sim: ## the machines under a seeded simulation (SEEDS=10000, or SEED=x for a trace)
	cargo test --release --test sim

prove: ## bugs planted one by one, which the simulation's oracle must find: about 4 min
	python3 tests/planted/prove.py

fuzz: ## the parsers, JSON, configuration and ledger under libFuzzer (SECONDS_EACH=30 or RUNS=n)
	tests/fuzz/run

failover: test-deps ## brokers that go away in every way, in full: about 15 min of figures
	FAILOVER=full cargo test --release --test failover --test clients -- --test-threads=1

soak: test-deps ## the same for hours' sake: 10 min without a broker, 10 min of load, 1,000 failovers
	FAILOVER=soak cargo test --release --test failover -- --test-threads=1
