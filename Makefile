# The two commands are `make demo` and `make test`; each does all of its own set-up.

CARGO ?= cargo

# The fuzz targets are a workspace of their own; here without libFuzzer, on any compiler.
FUZZ = --manifest-path fuzz/Cargo.toml --no-default-features --target-dir target/fuzz --quiet

# Each night other scenarios; a failure prints the seed that repeats it.
NIGHT_POINTS ?= 100000
NIGHT_FROM ?= $(shell date +%s)000

# The simulated migrations: what each world promises.
SEEDS ?= 1000000
SEEDS_FROM ?= 0
WORLDS = no_fault_ever_makes_two_owners a_target_that_follows_holds a_disk_that_has_moved_goes_back \
	disks_that_follow_together_hold whatever_happens_the_server_has_the_disk

.PHONY: help setup test test-nested demo lint docs bench fuzz night seeds

help:
	@echo "make demo    move the 16 TB disk of a busy machine to another site and prove nothing was lost"
	@echo "make test    everything that is promised, tested, but a stock kernel"
	@echo "make test-nested  boot Debian's own kernel, and a Debian, on our machine, in a host in software; no KVM needed"
	@echo "make lint    formatting and lints, warnings denied"
	@echo "make docs    the API documentation, warnings denied"
	@echo "make bench   the criterion benches, and a comparison with qemu on this machine"
	@echo "make fuzz    every fuzz target for FUZZ_SECONDS (600), cargo-fuzz installed if missing"
	@echo "make night   NIGHT_POINTS (100000) crash points of the simulation, other ones each time"
	@echo "make seeds   SEEDS (1000000) simulated migrations, in equal parts of each kind, from SEEDS_FROM (0) on"
	@echo "make setup   install or name the programs the above need"

setup:
	@scripts/setup.sh

test: setup
	$(CARGO) test --workspace --quiet
	RUSTFLAGS="--cfg loom" $(CARGO) test --package vdisk --lib --target-dir target/loom --quiet loom
	$(CARGO) test $(FUZZ)

test-nested:
	@scripts/setup.sh lz4:lz4 dpkg:dpkg mmdebstrap:mmdebstrap mkfs.vfat:dosfstools
	scripts/test-nested.sh

demo: setup
	scripts/demo.sh

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --quiet -- -D warnings
	RUSTFLAGS="--cfg freestanding" $(CARGO) clippy --package guest --lib --target-dir target/freestanding --quiet -- -D warnings
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) clippy $(FUZZ) --all-targets -- -D warnings

docs:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --quiet

bench:
	@scripts/setup.sh python3:python3 strace:strace
	$(CARGO) bench
	$(CARGO) build --release
	scripts/compare.sh

fuzz:
	@scripts/fuzz.sh

night:
	DISKFERRY_POINTS=$(NIGHT_POINTS) DISKFERRY_FROM=$(NIGHT_FROM) \
		$(CARGO) test --package vdisk --test crash -- --nocapture

seeds:
	DISKFERRY_SEEDS=$$(($(SEEDS) / $(words $(WORLDS)))) DISKFERRY_FROM=$(SEEDS_FROM) \
		$(CARGO) test --package mirror --lib -- --nocapture $(WORLDS)
