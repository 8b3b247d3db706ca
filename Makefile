# natsmux: `make help` lists what can be made.

.DEFAULT_GOAL := help
.PHONY: help run build test-deps bench-deps check test sim turmoil prove fuzz mutants deny failover soak bench growth instructions

export PORT HTTP KILL NATS_SERVER SEED SEEDS FIRST SECONDS_EACH RUNS MAX_LEN

DENY = cargo-deny 0.20.2
MUTANTS = cargo-mutants 27.1.0
SHARD ?= 0/4
ROUNDS ?= 5
ONLY ?=
TLS ?=

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
	RUST_TEST_THREADS=3 cargo test
	export TEST_SHARING=identity RUST_TEST_THREADS=3; \
	cargo test --test broker --test clients --test cloudfoundry --test corpus && \
	cargo test --test failover -- --skip network --skip leaf --skip judge

sim: ## the machines under a seeded simulation (SEEDS=10000, or SEED=x for a trace)
	cargo test --release --test sim

turmoil: ## the drivers on a simulated network, seeded (SEEDS=500, or SEED=x for a trace)
	cargo clippy --features turmoil --lib --test drivers -- -D warnings
	cargo test --release --features turmoil --test drivers

prove: ## bugs planted one by one, which the simulation's oracle must find: about 4 min
	python3 tests/planted/prove.py

fuzz: ## the parsers, JSON, configuration, commands, pull requests and ledger under libFuzzer (SECONDS_EACH=30 or RUNS=n)
	tests/fuzz/run

mutants: ## proto and ledger changed in every small way, which their unit tests must notice (SHARD=0/4: 1/4 of it, about half an hour)
	"$$(tests/tools/cargo-tool $(MUTANTS))" mutants --shard $(SHARD) --output target/mutants --timeout 20

deny: ## bans, licences and sources of all dependencies
	"$$(tests/tools/cargo-tool $(DENY))" deny check bans licenses sources

failover: test-deps ## brokers that go away in every way, in full: about 15 min of figures
	FAILOVER=full cargo test --release --test failover --test clients -- --test-threads=1

instructions: ## instructions of the hot paths under callgrind, none more than 3 % above its bound
	@tests/tools/install-test-deps valgrind
	tests/tools/count-instructions

bench-deps:
	@tests/tools/install-test-deps haproxy

bench: bench-deps ## beside a direct connection, HAProxy and a leaf node: about 10 min (ROUNDS=5 ONLY=fan-in TLS=ecdsa)
	cargo bench --bench wire -- --rounds $(ROUNDS) --only "$(ONLY)" --tls "$(TLS)"

growth: bench-deps ## the same as curves over sessions, subscriptions, subscribers: about 6 min a round (ROUNDS=5)
	cargo bench --bench wire -- --growth yes --rounds $(ROUNDS) --only "$(ONLY)"

soak: test-deps ## the same for hours' sake: 10 min without a broker, 10 min of load, 1,000 failovers
	FAILOVER=soak cargo test --release --test failover -- --test-threads=1
