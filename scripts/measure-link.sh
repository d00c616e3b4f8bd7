#!/usr/bin/env bash
# Measures what a move over a link of limited bandwidth costs its client and the link; arguments go on (see --help).
# As root: the sites are network namespaces of their own. Needs fio with its nbd engine, qemu-img and 5 GB of space.
#
# The table goes to stdout, all figures as JSON to measure-link.json in cargo's target folder.
source "$(dirname "$0")/measuring.sh"
exec "${measure[@]}" benches/compare/link.py --diskferry "$program" --directory "$target" \
    --json "$target/measure-link.json" "$@"
