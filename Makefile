# Two commands matter: `make quickstart` and `make test`. Both do their own set-up, once.
SHELL := /bin/bash
PYTHON ?= python3
HOME_FOLDER := .graftwork
LIBTORCH := $(HOME_FOLDER)/libtorch/torch/build-version
NCCL := $(HOME_FOLDER)/libtorch/nvidia/nccl/lib/libnccl.so.2
BASE := $(HOME_FOLDER)/base/all-minilm-l6-v2/model.safetensors
WEED := $(HOME_FOLDER)/seaweedfs/weed
WHEELS := $(HOME_FOLDER)/wheels
SETS := question_type sms_spam movie_sentiment tweet_sentiment tweet_intensity bbc_topic
NIGHT_SETS := question_kind plot_or_review film_intensity product_intensity editorial_intensity word_pleasantness word_arousal
DATA := $(foreach set,$(SETS),$(HOME_FOLDER)/data/$(set)/import.json)
NIGHT_DATA := $(foreach set,$(NIGHT_SETS),$(HOME_FOLDER)/data/$(set)/import.json)
GRAFTWORK := target/release/graftwork
# `make quickstart JOB=my.toml` and `make nightly JOB=my.toml` take another job file than their own.
JOB :=
export OMP_WAIT_POLICY := PASSIVE

.PHONY: quickstart nightly night-data test test-servers test-azure test-deploy test-gpu test-all check bench bench-peer bench-gpu bench-pieces bench-programs golden follow build nccl data release fit-memory clean help

help:
	@echo "make quickstart   set up, then train adapters and a fusion on real data and show the report"
	@echo "make nightly      set up, then train and compare one night of the benchmark (jobs/nightly.toml)"
	@echo "make test         set up, then run all tests"
	@echo "make test-servers  the coordinator over PostgreSQL and an object store (make test-all does it too)"
	@echo "make test-azure   the same stores in Azurite, where Node.js and npm are (make test-all does it too)"
	@echo "make test-all     and the tests that need servers, namespaces or the Python peer, or take long"
	@echo "make test-deploy  deployment: chart, images, Prometheus, traces, Slurm, a release on a bare machine (make test-all does it too);"
	@echo "                   as root it installs those of Debian's packages that lack"
	@echo "make test-gpu     on a machine with NVIDIA GPUs: numbers and steps against the processor, collectives over NCCL"
	@echo "make release      the archive of a release, in out/release"
	@echo "make check        formatting, lints and docs, warnings as errors"
	@echo "make nccl         fetch NCCL, which workers with GPUs need (make test does it too)"
	@echo "make bench        measure Graftwork: a table, out/bench/record.json and a page; BENCH='--rows 400 --runs 1' is quick"
	@echo "make bench-peer   the same beside AdapterHub's library, in turn, against what must be reached (hours)"
	@echo "make bench-gpu    training and prediction on a GPU, beside AdapterHub's library on the same one"
	@echo "make bench-pieces kernels and input, each alone, with statistics"
	@echo "make fit-memory   measure the memory of workers, and fit the model that predicts it"
	@echo "make golden GOLDEN=DIR          compare the engine with golden numerics"
	@echo "make follow TRAJECTORY=DIR      follow a recorded training run step by step"

quickstart: build data
	@$(GRAFTWORK) run --again $(or $(JOB),jobs/quickstart.toml) || { code=$$?; [ $$code -eq 3 ] || exit $$code; }

# The night names the commit of this checkout, where git knows one; with changed files it is called dirty, and names none.
nightly: build data night-data
	@code=$${GRAFTWORK_CODE:-$$(git describe --always --abbrev=40 --dirty --exclude='*' 2>/dev/null)}; \
		[ -z "$$code" ] || export GRAFTWORK_CODE="$$code"; \
		$(GRAFTWORK) nightly $(or $(JOB),jobs/nightly.toml)

night-data: $(NIGHT_DATA)

build: $(LIBTORCH)
	@cargo build --release --locked -p graftwork -p graftwork-worker

data: build $(BASE) $(DATA)

$(LIBTORCH):
	@$(PYTHON) scripts/setup.py libtorch

nccl: $(NCCL)

$(NCCL): | $(LIBTORCH)
	@$(PYTHON) scripts/setup.py nccl

$(BASE):
	@$(PYTHON) scripts/setup.py base

$(WHEELS)/.data: scripts/packages.json
	@$(PYTHON) scripts/setup.py data && touch $@

$(HOME_FOLDER)/data/%/import.json: $(WHEELS)/.data jobs/data.toml | build
	@$(GRAFTWORK) import --recipe jobs/data.toml --name $* --from $(WHEELS) --to $(@D) && touch $@

# The crowd's answers are timed, so it runs alone.
CROWD := five_hundred_workers_lose_no_lease
test: $(LIBTORCH) $(NCCL) $(BASE) data
	cargo test --release --locked --workspace -- --skip $(CROWD)
	cargo test --release --locked --workspace --bin graftwork -- $(CROWD)

# All that starts a coordinator again, over PostgreSQL and an object store instead of a folder, and what only those can
# show. Without one of the servers nothing of it runs, and the script says why.
ON_SERVERS := broken_links by_itself groups guarded recovery restarts standby sweeps uploads
test-servers: $(WEED) build
	@$(PYTHON) scripts/setup.py postgres
	@scripts/servers.py sh -ec ' \
		cargo test --release --locked --workspace --bin graftwork -- --include-ignored --skip $(CROWD); \
		cargo test --release --locked --workspace $(addprefix --test ,$(ON_SERVERS)); \
		cargo test --release --locked --workspace --test deploy -- a_state_moves'; \
		code=$$?; [ $$code -eq 75 ] || exit $$code

# The same stores in Azurite, which speaks as Azure's blob storage does: blobs alone, and a coordinator over them.
test-azure: build
	@$(PYTHON) scripts/setup.py postgres azurite
	@scripts/servers.py --azurite sh -ec ' \
		cargo test --release --locked --workspace --bin graftwork -- --include-ignored blobs; \
		cargo test --release --locked --workspace --test recovery --test standby --test uploads; \
		cargo test --release --locked --workspace --test deploy -- a_state_moves'; \
		code=$$?; [ $$code -eq 75 ] || exit $$code

$(WEED): | $(LIBTORCH)
	@$(PYTHON) scripts/setup.py seaweedfs

# Deployment files and what operators use. Tests whose tool is not there are skipped and say so.
test-deploy: build
	@scripts/deploy-tools.sh
	GRAFTWORK_LONG_TESTS=1 cargo test --release --locked --workspace --test deploy

# GRAFTWORK_LIBTORCH names a libtorch with its CUDA part (docs/install.md). Without a GPU everything here is skipped and
# says so. The collective suite runs in threads where there is a GPU for each, and in processes that share the first one.
test-gpu: build $(NCCL)
	cargo test --release --locked --workspace --test gpu
	cargo test --release --locked --workspace --test groups -- gpu

test-all: test test-servers test-azure test-deploy
	@scripts/peer.sh
	GRAFTWORK_LONG_TESTS=1 cargo test --release --locked --workspace --test peer --test benchmark --test quickstart --test hosts --test scale --test operating

fit-memory: $(LIBTORCH) $(BASE) data
	cargo test --release --locked --workspace --test memory -- --nocapture

check: $(LIBTORCH)
	cargo fmt --all -- --check
	cargo clippy --release --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --workspace --no-deps --document-private-items

# BENCH holds options of scripts/bench.py, such as --data DIR --rows 400 --runs 1 --only suite start.
bench: bench-programs data
	@scripts/bench.py $(BENCH)

bench-peer: bench-programs data
	@scripts/peer.sh
	@scripts/bench.py --peer $(BENCH)

# Both programs on the first GPU, in bf16 unless BENCH names a --precision; rows with a counterpart in the library have a bar.
bench-gpu: bench-programs data
	@scripts/peer.sh
	@scripts/bench.py --peer --device cuda --out out/bench-gpu $(BENCH)

bench-pieces: $(LIBTORCH) $(BASE)
	@cargo bench --locked -p graftwork-engine --bench pieces -- $(BENCH)

bench-programs: build
	@cargo build --release --locked -p graftwork-engine --examples

golden: build
	@$(GRAFTWORK) golden $(GOLDEN)

follow: build $(BASE)
	@$(GRAFTWORK) follow $(TRAJECTORY) --base-model $(dir $(BASE))

# Builds the programs once more, so that they name no folder of this machine; RELEASE="--programs target/release" packs those
# of `make build` instead.
release: $(LIBTORCH)
	@$(PYTHON) scripts/release.py $(RELEASE)

clean:
	cargo clean
