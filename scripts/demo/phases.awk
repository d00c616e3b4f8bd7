# What the guest said on its console, phase by phase. Files: the phases (name, lines before it, when it began), the console.
# Prints a line for each phase; writes `flushed`, what each processor said last, and `guest.txt`, the sum. Wants khz, ticks in a
# millisecond. Fails if the guest saw an error.
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
}
