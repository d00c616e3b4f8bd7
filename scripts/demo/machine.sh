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

# What the guest said, phase by phase: awk is given the phases first, then the console.
SUMMARY='
function value(name,    at) {
    at = index($0, "\"" name "\":")
    return at ? substr($0, at + length(name) + 3) + 0 : 0
}
function later(a, b) { return a > b ? a : b }
FNR == NR { name[++phases] = $1; first[phases] = $2; began[phases] = $3; next }
# The last line may have been cut off.
!/"event":"ledger".*}$/ { next }
{
    while (phase < phases && FNR > first[phase + 1]) phase++
    vcpu = value("vcpu")
    blocks[phase] += value("flushed") - flushed[vcpu]
    flushes[phase] += value("round") - round[vcpu]
    flushed[vcpu] = value("flushed"); round[vcpu] = value("round")
    errors[vcpu] = value("errors"); wrong[vcpu] = value("wrong")
    longest[phase] = later(longest[phase], value("longest"))
    gap[phase] = later(gap[phase], value("gap"))
}
END {
    for (phase = 1; phase < phases; phase++)
        printf "%-9s %8d blocks %6d flushes  %6d blocks/s  longest request %7.1f ms  longest gap %7.1f ms\n",
            name[phase], blocks[phase], flushes[phase],
            blocks[phase] / (began[phase + 1] - began[phase]), longest[phase] / khz, gap[phase] / khz
    for (vcpu in flushed) {
        print vcpu, flushed[vcpu] >"flushed"
        blocks_sum += flushed[vcpu]; rounds += round[vcpu]
        failed += errors[vcpu]; bad += wrong[vcpu]
    }
    for (phase in gap) { wait_max = later(wait_max, longest[phase]); gap_max = later(gap_max, gap[phase]) }
    printf "%d blocks of 4 KiB and %d flushes in %.1f s, %d errors, %d read back wrong; it waited %.1f ms for a request at most, and stood still for %.1f ms at most\n",
        blocks_sum, rounds, began[phases] - began[1], failed, bad, wait_max / khz, gap_max / khz >"guest.txt"
    exit failed + bad > 0
}'

end_load() {
    "$FERRY" machine status machine.toml
    begin_phase end
    end "$MACHINE" "the machine"
    grep -q '"type":"summary".*"resets":0' machine.out || fail "the machine began anew"
    local khz
    khz=$(sed -n 's/.*"tsc_khz":\([0-9]*\).*/\1/p' machine.out)
    [ -n "$khz" ] || fail "KVM does not say how fast the time stamp counter is"
    awk -v khz="$khz" "$SUMMARY" phases machine.console >load.txt || fail "the guest saw an error"
    cat load.txt guest.txt
}

prove_load() {
    end "$RECEIVE" "the other site"
    say "A second machine, at the other site: is every flushed write there?"
    describe check there/disk.vhdx "do=ledger-check $LEDGER ledgers=$VCPUS"
    "$FERRY" run check.toml --json >check.out 2>check.log || fail "the second machine failed"
    # flushed: each processor and what it has said; then what the disk holds of each of them.
    awk '
    function value(name) { return substr($0, index($0, "\"" name "\":") + length(name) + 3) + 0 }
    FNR == NR { said[$1] = $2; vcpus++; sum += $2; next }
    /"event":"ledger-check"/ {
        seen++
        if (value("holds") < said[value("ledger")]) { print "lost: " $0; lost++ }
        held += value("holds")
    }
    END {
        printf "%d blocks flushed by the guest, 0 lost: the ledger of each processor is whole up to there, and all hold %d\n",
            sum, held
        exit lost > 0 || seen != vcpus || vcpus == 0
    }' flushed check.console >verify.txt || fail "a write is lost: $(cat verify.txt)"
    cat verify.txt
}
