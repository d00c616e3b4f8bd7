# Whether the disk holds what each processor has said is flushed. Files: `flushed` (processor, blocks), the console of the check.
FNR == NR { said[$1] = $2; vcpus++; sum += $2; next }
/"event":"ledger-check"/ {
    seen++
    if (value("holds") < said[value("ledger")]) lost = lost "\nflushed " said[value("ledger")] ": " $0
    held += value("holds")
}
END {
    if (lost != "") { print "a flushed write is lost:" lost; exit 1 }
    if (vcpus == 0 || seen != vcpus) { printf "%d ledgers were looked at, of %d\n", seen, vcpus; exit 1 }
    printf "%d blocks flushed by the guest, 0 lost: the ledger of each processor is whole up to there, and all hold %d\n",
        sum, held
}
