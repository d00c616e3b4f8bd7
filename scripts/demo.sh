#!/usr/bin/env bash
# The main job, shown: a busy 16 TB disk moves to another site, and nothing is lost.
#
# A 16 TB VHDX gets a real ext4 file system. A machine runs from it, writes and flushes, and keeps a
# ledger; a second site on loopback receives; the disk is mirrored live and cut over while the machine
# goes on. Then every flushed write, the file system and every file are looked for at the new site.
# Without /dev/kvm, or with DISKFERRY_NO_KVM=1, a client of NBD stands in for the machine. Needs
# /dev/fuse and about three times DEMO_TREE_MB of space; ends with a report, also in target/demo/report.txt.
set -euo pipefail
cd "$(dirname "$0")/.."

TREE_MB=${DEMO_TREE_MB:-300}
# Of the client: writes a second. Of the machine: ticks from round to round, for each processor.
RATE=${DEMO_RATE:-500}
PACE=${DEMO_PACE:-32M}
QUIET_SECONDS=${DEMO_SECONDS:-5}
COPY_SECONDS=${DEMO_COPY_SECONDS:-600}
FILE_SYSTEM=15T
LOAD_FROM=15T

SCRIPTS=$PWD/scripts/demo
HOME_DIR=$PWD/target/demo
FERRY=$(realpath -m "${CARGO_TARGET_DIR:-target}")/release/diskferry
PATH=$PATH:/usr/sbin:/sbin
# Texts of programs, the order of names and the point of decimals are read here.
export LC_ALL=C

source "$SCRIPTS/running.sh"
trap cleanup EXIT
trap 'exit 130' INT TERM

# A load is: title, load_is, begin_phase, start_load, end_load, prove_load.
choose_load() {
    NO_MACHINE=
    if [ "${DISKFERRY_NO_KVM:-}" = 1 ]; then
        NO_MACHINE="DISKFERRY_NO_KVM=1 was set"
    elif [ ! -e /dev/kvm ]; then
        NO_MACHINE="this host has no /dev/kvm"
    elif [ ! -r /dev/kvm ] || [ ! -w /dev/kvm ]; then
        NO_MACHINE="$(id -un) may not use /dev/kvm"
    fi
    if [ -z "$NO_MACHINE" ]; then
        source "$SCRIPTS/machine.sh"
    else
        source "$SCRIPTS/client.sh"
    fi
}

prepare() {
    [ -e /dev/fuse ] || fail "there is no /dev/fuse; in a container, start it with --device /dev/fuse"
    say "Building"
    cargo build --release --quiet
    # A demo that was killed may have left its disk mounted.
    fusermount3 -uz "$HOME_DIR/mnt/disk" 2>/dev/null || true
    rm -rf "$HOME_DIR"
    mkdir -p "$HOME_DIR/here" "$HOME_DIR/there" "$HOME_DIR/mnt"
    cd "$HOME_DIR"
}

# Files of this system, some hundred megabytes of them, as far as they can be read.
make_tree() {
    local limit=$((TREE_MB << 20))
    mkdir -p "$1"
    { find /usr/share /usr/lib /usr/bin -xdev -type f -size -20M -readable -printf '%s %p\n' 2>/dev/null || true; } |
        sort -k2 |
        awk -v limit="$limit" '{ total += $1; if (total > limit) next; sub(/^[0-9]+ /, ""); print }' |
        { tar -C / -cf - --no-recursion --ignore-failed-read -T - 2>/dev/null || true; } |
        tar -C "$1" -xf -
}

serve_disk() {
    start serve "$FERRY" serve here/disk.vhdx --listen unix:here/disk.sock
    SERVE=$STARTED
    wait_for 10 has_said serve serving || fail "the disk is not served"
}

make_disk() {
    say "A 16 TB disk, and on it ext4 with $TREE_MB MB of files"
    "$FERRY" create here/disk.vhdx 16T
    make_tree tree
    (cd tree && find . -type f -print0 | sort -z | xargs -0 sha256sum) >sums
    echo "$(wc -l <sums) files, $(du -sh tree | cut -f1)"
    serve_disk
    mount_disk mnt/disk here/disk.sock
    mkfs.ext4 -q -F -G 4096 -T largefile4 -J size=64 -d tree \
        -E lazy_itable_init=1,lazy_journal_init=1,nodiscard mnt/disk $FILE_SYSTEM 2>mkfs.log ||
        fail "no file system could be made"
    unmount_disk mnt/disk
    end "$SERVE" "the server of the new disk"
    rm -rf tree
}

move() {
    say "Another site receives; the disk is mirrored while it is written"
    start there "$FERRY" receive --listen tcp:127.0.0.1:0 --into there --serve unix:there/disk.sock
    RECEIVE=$STARTED
    wait_for 10 has_said there receiving || fail "the other site does not receive"
    local address started=$SECONDS
    address=$(sed -n 's/^receiving at \(tcp:[^ ]*\) .*/\1/p' there.out)
    begin_phase during
    "$FERRY" mirror start here/disk.vhdx --to "$address" --manual
    while :; do
        "$FERRY" mirror status here/disk.vhdx >mirror.txt || fail "the move has ended"
        grep -q '^synced' mirror.txt && break
        [ $((SECONDS - started)) -lt "$COPY_SECONDS" ] || fail "the copy takes too long"
        sleep 0.2
    done
    echo "$(cat mirror.txt) (in $((SECONDS - started)) s)" | tee copy.txt
    begin_phase in-step
    sleep "$QUIET_SECONDS"
    say "Cutover"
    begin_phase cutover
    timeout 120 "$FERRY" mirror cutover here/disk.vhdx --wait | tail -n 1 | tee cutover.txt
    # A guest says now and then how long it has waited.
    sleep 0.5
    begin_phase after
    sleep "$QUIET_SECONDS"
}

look_for_files() {
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

look_at_disks() {
    say "The disk is looked at by others"
    "$FERRY" check there/disk.vhdx
    qemu-img check there/disk.vhdx
    if qemu-img info here/disk.vhdx >refused.log 2>&1; then
        fail "qemu-img opens the disk that was handed over"
    fi
    echo "the old disk is refused: $(tail -n 1 refused.log)"
}

report() {
    {
        echo "Diskferry demo: $(title)"
        echo
        echo "load           $(load_is)"
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

choose_load
prepare
make_disk
start_load
sleep "$QUIET_SECONDS"
move
end_load
look_for_files
prove_load
look_at_disks
report
