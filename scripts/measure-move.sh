#!/usr/bin/env bash
# Measures how long a client's writes take before, while and after its disk moves to another site on
# this machine; arguments go on (see --help). Needs nbdcopy and about three times --data-mb of space.
#
# Run as root it asks for more than its share of the processors, so that what else runs disturbs
# less. The table goes to stdout, all figures as JSON to measure-move.json in cargo's target folder.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-target}
program=${DISKFERRY:-$target/release/diskferry}
if [ ! -x "$program" ]; then
    echo "error: $program is missing" >&2
    echo "hint: cargo build --release" >&2
    exit 1
fi
kind=()
if [ "$(id -u)" -eq 0 ]; then
    kind=(nice -n -15)
fi
exec "${kind[@]}" python3 -B benches/compare/moving.py --diskferry "$program" \
    --directory "$target" --json "$target/measure-move.json" "$@"
