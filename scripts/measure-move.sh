#!/usr/bin/env bash
# Measures how long a client's writes take before, while and after its disk moves to another site on
# this machine; arguments go on (see --help). Needs nbdcopy and about three times --data-mb of space.
#
# The table goes to stdout, all figures as JSON to measure-move.json in cargo's target folder.
source "$(dirname "$0")/measuring.sh"
exec "${measure[@]}" benches/compare/moving.py --diskferry "$program" --directory "$target" \
    --json "$target/measure-move.json" "$@"
