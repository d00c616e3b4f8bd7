#!/usr/bin/env bash
# Runs every fuzz target, or those named, for FUZZ_SECONDS each (600 if not set); does its own set-up.
#
# What a target finds new is kept in fuzz/target/found/TARGET, and what breaks a promise in
# fuzz/artifacts/TARGET, whose path is printed. The corpora in fuzz/corpus are only read; with
# FUZZ_KEEP=1 they become a small set of inputs that reaches what all of them reach, and those of its files
# that somebody has given a name.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh c++:g++
if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "fuzz: installing cargo-fuzz"
    cargo install cargo-fuzz --locked --quiet
fi
if rustup toolchain list 2>/dev/null | grep -q '^nightly'; then
    toolchain=+nightly
else
    # The flags of cargo-fuzz are those of nightly; they are the same in the stable compiler.
    toolchain=
    export RUSTC_BOOTSTRAP=1
fi

# No sanitizer: none of our code that runs is unsafe, and it is three times as fast without.
run() {
    # shellcheck disable=SC2086
    cargo $toolchain fuzz "$1" --sanitizer none "${@:2}"
}

# libFuzzer names an input by its SHA-1.
keep() {
    small=$(mktemp -d)
    run run "$1" "$small" "fuzz/corpus/$1" "fuzz/target/found/$1" -- \
        -set_cover_merge=1 -max_len=1024 -verbosity=0
    find "fuzz/corpus/$1" -type f -regextype posix-extended -regex '.*/[0-9a-f]{40}' -delete
    mv "$small"/* "fuzz/corpus/$1/"
    rmdir "$small"
}

targets=${*:-$(cargo fuzz list)}
failed=
for target in $targets; do
    found=fuzz/target/found/$target
    mkdir -p "$found"
    echo "fuzz: $target for ${FUZZ_SECONDS:-600} s"
    run run "$target" "$found" "fuzz/corpus/$target" -- -max_total_time="${FUZZ_SECONDS:-600}" \
        -rss_limit_mb=2048 -timeout=10 -max_len=1024 -len_control=0 -verbosity=0 -print_final_stats=1 ||
        failed="$failed $target"
    [ "${FUZZ_KEEP:-0}" = 0 ] || keep "$target"
done
if [ -n "$failed" ]; then
    echo "fuzz: a promise is broken in:$failed" >&2
    exit 1
fi
