# The demo's load inside a machine: the guest that is built in writes and flushes on a queue of each
# processor, and says on its console what is durable (docs/vmm-guest.md, `ledger`). To be sourced.

# The guest's processors never rest; half of the host's are left to the disk and to the other site.
VCPUS=$(($(nproc) / 2))
VCPUS=${DEMO_VCPUS:-$((VCPUS < 1 ? 1 : VCPUS > 4 ? 4 : VCPUS))}
LEDGER="from=$LOAD_FROM blocks=16384"

title() { echo "the 16 TB disk of a machine moved while the machine wrote to it"; }

load_is() {
    echo "a machine on KVM, with a queue of the disk and a ledger for each of its processors ($VCPUS)"
    echo "guest          $(cat guest.txt)"
}

# describe NAME DISK WORDS: a machine with this disk that does what the words say.
describe() {
    cat >"$1.toml" <<END
vcpus = $VCPUS
memory = "128M"
boot.kernel = "built-in"
boot.command_line = "$3"
console.to = "file:$1.console"
[[disk]]
path = "$2"
END
}

# From which line of the console on, and from when on.
begin_phase() { echo "$1 $(wc -l <machine.console) $EPOCHREALTIME" >>phases; }

start_load() {
    say "A machine starts from the disk; it writes, flushes, and says what is durable"
    describe machine here/disk.vhdx "do=ledger $LEDGER pace=$PACE every=8"
    start machine "$FERRY" run machine.toml --json
    MACHINE=$STARTED
    wait_for 10 has_said machine '{.*"type":"running"' || fail "the machine does not start"
    wait_for 10 grep -q '"event":"ledger"' machine.console || fail "the guest does not write"
    "$FERRY" machine status machine.toml
    begin_phase before
}

end_load() {
    "$FERRY" machine status machine.toml
    begin_phase end
    end "$MACHINE" "the machine"
    grep -q '"type":"summary".*"resets":0' machine.out || fail "the machine began anew"
    local khz
    khz=$(sed -n 's/.*"tsc_khz":\([0-9]*\).*/\1/p' machine.out)
    [ -n "$khz" ] || fail "KVM does not say how fast the time stamp counter is"
    awk -v khz="$khz" -f "$SCRIPTS/value.awk" -f "$SCRIPTS/phases.awk" phases machine.console >load.txt || fail "the guest saw an error"
    cat load.txt guest.txt
}

prove_load() {
    end "$RECEIVE" "the other site"
    say "A second machine, at the other site: is every flushed write there?"
    describe check there/disk.vhdx "do=ledger-check $LEDGER ledgers=$VCPUS"
    timeout 600 "$FERRY" run check.toml --json >check.out 2>check.log || fail "the second machine failed"
    awk -f "$SCRIPTS/value.awk" -f "$SCRIPTS/held.awk" flushed check.console >verify.txt ||
        fail "$(cat verify.txt)"
    cat verify.txt
}
