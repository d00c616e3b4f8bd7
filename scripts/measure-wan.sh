#!/usr/bin/env bash
# Measures moves over an emulated line that is slow, far, lossy or breaks, beside QEMU's mirror; arguments go on (see --help).
# As root: the sites are network namespaces of their own. Needs fio with its nbd engine, qemu-utils, qemu-storage-daemon
# and 6 GB of space.
#
# The table goes to stdout, all figures as JSON to measure-wan.json in cargo's target folder.
source "$(dirname "$0")/measuring.sh"
link=$target/release/testlink
if [ ! -x "$link" ]; then
    echo "error: $link is missing" >&2
    echo "hint: cargo build --release --package testlink" >&2
    exit 1
fi
exec "${measure[@]}" benches/compare/wan.py --diskferry "$program" --link "$link" --directory "$target" \
    --json "$target/measure-wan.json" "$@"
