#!/usr/bin/env bash
# The main job, shown: a busy 16 TB disk moves to another site, and nothing is lost.
#
# A 16 TB VHDX with a real ext4 file system is served; a client writes and flushes at a steady rate
# and keeps a ledger; a second site on loopback receives; the disk is mirrored live and cut over
# while the client goes on. Then every acknowledged write, the file system and every file are looked
# for at the new site. Needs /dev/fuse and about three times DEMO_TREE_MB of space; ends with a
# report, also in target/demo/report.txt.
set -euo pipefail
cd "$(dirname "$0")/.."

TREE_MB=${DEMO_TREE_MB:-300}
RATE=${DEMO_RATE:-500}
QUIET_SECONDS=${DEMO_SECONDS:-5}
COPY_SECONDS=${DEMO_COPY_SECONDS:-600}
FILE_SYSTEM=15T
LOAD_AREA="--offset 15T --length 1G"

HOME_DIR=$PWD/target/demo
FERRY=$(realpath -m "${CARGO_TARGET_DIR:-target}")/release/diskferry
PIDS=()
MOUNTS=()
PATH=$PATH:/usr/sbin:/sbin

say() { printf '\n== %s\n' "$*"; }

fail() {
    echo "error: $1" >&2
    for log in "$HOME_DIR"/*.log; do
        [ -s "$log" ] && { echo "--- $(basename "$log")" >&2; tail -n 15 "$log" >&2; }
    done
    exit 1
}

cleanup() {
    local mount pid
    for mount in ${MOUNTS[@]+"${MOUNTS[@]}"}; do fusermount3 -u "$mount" 2>/dev/null || true; done
    for pid in ${PIDS[@]+"${PIDS[@]}"}; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
}
trap cleanup EXIT
trap 'exit 130' INT TERM

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

# A server's log names its address once it serves.
serves() { grep -q "^$2" "$1"; }

# mount_disk FILE SOCKET: the disk as a file, by nbdfuse.
mount_disk() {
    : >"$1"
    nbdfuse "$1" --unix "$2" &
    PIDS+=($!)
    MOUNTS+=("$1")
    wait_for 10 test -s "$1" || fail "nbdfuse does not show the disk"
}

unmount_disk() {
    fusermount3 -u "$1" || fail "the disk cannot be unmounted from $1"
    # nbdfuse ends once it has flushed.
    wait "${PIDS[-1]}" || fail "nbdfuse failed"
    unset 'PIDS[-1]'
    MOUNTS=()
}

# Files of this system, some hundred megabytes of them.
make_tree() {
    local limit=$((TREE_MB << 20))
    mkdir -p "$1"
    find /usr/share /usr/lib /usr/bin -xdev -type f -size -20M -readable -printf '%s %p\n' 2>/dev/null |
        sort -k2 |
        awk -v limit="$limit" '{ total += $1; if (total > limit) next; sub(/^[0-9]+ /, ""); print }' |
        tar -C / -cf - --no-recursion --ignore-failed-read -T - 2>/dev/null |
        tar -C "$1" -xf -
}

phase() { echo "$1" >"$HOME_DIR/phase"; }

prepare() {
    [ -e /dev/fuse ] || fail "there is no /dev/fuse; in a container, start it with --device /dev/fuse"
    say "Building"
    cargo build --release --quiet
    rm -rf "$HOME_DIR"
    mkdir -p "$HOME_DIR/here" "$HOME_DIR/there" "$HOME_DIR/mnt"
    cd "$HOME_DIR"
}

make_disk() {
    say "A 16 TB disk, and on it ext4 with $TREE_MB MB of files"
    "$FERRY" create here/disk.vhdx 16T
    "$FERRY" serve here/disk.vhdx --listen unix:here/disk.sock >here.log 2>&1 &
    SERVE=$!
    PIDS+=($SERVE)
    wait_for 10 serves here.log serving || fail "the disk is not served"
    make_tree tree
    (cd tree && find . -type f -print0 | sort -z | xargs -0 sha256sum) >sums
    echo "$(wc -l <sums) files, $(du -sh tree | cut -f1)"
    mount_disk mnt/disk here/disk.sock
    mkfs.ext4 -q -F -G 4096 -T largefile4 -J size=64 -d tree \
        -E lazy_itable_init=1,lazy_journal_init=1,nodiscard mnt/disk $FILE_SYSTEM 2>mkfs.log ||
        fail "no file system could be made"
    unmount_disk mnt/disk
    rm -rf tree
}

start_load() {
    say "A client writes $RATE times a second, and flushes"
    phase before
    # shellcheck disable=SC2086
    "$FERRY" load run unix:here/disk.sock $LOAD_AREA --ledger ledger --rate "$RATE" \
        --flush-every 16 --phases phase >load.txt 2>load.log &
    LOAD=$!
    PIDS+=($LOAD)
    sleep "$QUIET_SECONDS"
}

move() {
    say "Another site receives; the disk is mirrored while it is written"
    "$FERRY" receive --listen tcp:127.0.0.1:0 --into there --serve unix:there/disk.sock \
        >there.log 2>&1 &
    RECEIVE=$!
    PIDS+=($RECEIVE)
    wait_for 10 serves there.log receiving || fail "the other site does not receive"
    local address started=$SECONDS
    address=$(sed -n 's/^receiving at \(tcp:[^ ]*\) .*/\1/p' there.log)
    phase during
    "$FERRY" mirror start here/disk.vhdx --to "$address" --manual
    until "$FERRY" mirror status here/disk.vhdx >mirror.txt && grep -q '^synced' mirror.txt; do
        [ $((SECONDS - started)) -lt "$COPY_SECONDS" ] || fail "the copy takes too long"
        sleep 0.2
    done
    echo "$(cat mirror.txt) (in $((SECONDS - started)) s)" | tee copy.txt
    phase in-step
    sleep "$QUIET_SECONDS"
    say "Cutover"
    phase cutover
    "$FERRY" mirror cutover here/disk.vhdx --wait | tail -n 1 | tee cutover.txt
    phase after
    sleep "$QUIET_SECONDS"
    kill -TERM "$LOAD"
    wait "$LOAD" || fail "the client saw an error"
    cat load.txt
}

look_for_everything() {
    say "Is every acknowledged write at the other site?"
    "$FERRY" load verify unix:there/disk.sock --ledger ledger | tee verify.txt
    say "Is the file system clean, and every file the same?"
    mount_disk mnt/disk there/disk.sock
    e2fsck -fn mnt/disk >e2fsck.log 2>&1 || fail "e2fsck found something"
    tail -n 1 e2fsck.log
    mkdir out
    debugfs -R "rdump / out" mnt/disk >debugfs.log 2>&1
    unmount_disk mnt/disk
    (cd out && sha256sum --quiet --check ../sums) || fail "a file is not the same"
    echo "$(wc -l <sums) files are the same"
    rm -rf out
}

end() {
    say "The servers end; the disk is looked at by others"
    kill -TERM "$SERVE" "$RECEIVE"
    wait "$SERVE" || fail "the first site did not end well"
    wait "$RECEIVE" || fail "the other site did not end well"
    "$FERRY" check there/disk.vhdx
    qemu-img check there/disk.vhdx
    if qemu-img info here/disk.vhdx >refused.log 2>&1; then
        fail "qemu-img opens the disk that was handed over"
    fi
    echo "the old disk is refused: $(tail -n 1 refused.log)"
}

report() {
    {
        echo "Diskferry demo: a 16 TB disk moved while $RATE writes a second went on"
        echo
        echo "file system    ext4 of $FILE_SYSTEM with $(wc -l <sums) files, clean, all the same"
        echo "ledger         $(cat verify.txt)"
        echo "copy           $(cat copy.txt)"
        echo "cutover        $(cat cutover.txt)"
        echo
        cat load.txt
    } >report.txt
    say "Report"
    cat report.txt
}

prepare
make_disk
start_load
move
look_for_everything
end
report
