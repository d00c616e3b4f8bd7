# How the demo runs programs: what it says, what it waits for, what it ends. To be sourced, in the demo's folder.

MOUNTS=()

say() { printf '\n== %s\n' "$*"; }

fail() {
    echo "error: $1" >&2
    for log in "$HOME_DIR"/*.log; do
        [ -s "$log" ] && { echo "--- $(basename "$log")" >&2; tail -n 15 "$log" >&2; }
    done
    exit 1
}

cleanup() {
    local mount tries=100
    for mount in ${MOUNTS[@]+"${MOUNTS[@]}"}; do fusermount3 -uz "$mount" 2>/dev/null || true; done
    # shellcheck disable=SC2046
    kill $(jobs -pr) 2>/dev/null || true
    while [ -n "$(jobs -pr)" ] && [ $((tries -= 1)) -gt 0 ]; do sleep 0.1; done
    # shellcheck disable=SC2046
    kill -9 $(jobs -pr) 2>/dev/null || true
}

# wait_for SECONDS COMMAND...: until the command succeeds.
wait_for() {
    local tries=$(($1 * 20))
    shift
    until "$@" 2>/dev/null; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || return 1
        sleep 0.05
    done
}

# start NAME COMMAND...: in the background, with its stdout in NAME.out and its stderr in NAME.log. Its id is in STARTED.
start() {
    local name=$1
    shift
    "$@" >"$name.out" 2>"$name.log" &
    STARTED=$!
}

# end PID NAME: ask a program to end, which it has to do well.
end() {
    # One that has ended says how when it is waited for.
    kill -TERM "$1" 2>/dev/null || true
    wait "$1" || fail "$2 did not end well"
}

# A program has said what begins so once it is ready.
has_said() { grep -q "^$2" "$1.out"; }

# mount_disk FILE SOCKET: the disk as a file, by nbdfuse.
mount_disk() {
    : >"$1"
    nbdfuse "$1" --unix "$2" &
    NBDFUSE=$!
    MOUNTS+=("$1")
    wait_for 10 test -s "$1" || fail "nbdfuse does not show the disk"
}

unmount_disk() {
    fusermount3 -u "$1" || fail "the disk cannot be unmounted from $1"
    # nbdfuse ends once it has flushed.
    wait "$NBDFUSE" || fail "nbdfuse failed"
    MOUNTS=()
}
