# What the scripts that measure begin with; to be sourced. Goes to the root of the tree and sets
# `target`, the folder of cargo, `program`, diskferry as it was built to be measured, and `measure`,
# which runs python3: as root with more than its share of the processors, so that what else runs
# disturbs less.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-target}
program=${DISKFERRY:-$target/release/diskferry}
if [ ! -x "$program" ]; then
    echo "error: $program is missing" >&2
    echo "hint: cargo build --release" >&2
    exit 1
fi
measure=(python3 -B)
if [ "$(id -u)" -eq 0 ]; then
    measure=(nice -n -15 "${measure[@]}")
fi
