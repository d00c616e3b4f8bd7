#!/usr/bin/env bash
# Compares diskferry with its peers on this machine; arguments go on (see --help).
#
# The table goes to stdout, the same as JSON to compare.json in cargo's target folder.
source "$(dirname "$0")/measuring.sh"
exec "${measure[@]}" benches/compare --diskferry "$program" --directory "$target" \
    --json "$target/compare.json" "$@"
