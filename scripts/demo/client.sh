# The demo's load where no machine can run: a client of NBD that writes, flushes and keeps a ledger. To be sourced.

title() { echo "a 16 TB disk moved while $RATE writes a second went on"; }

load_is() { echo "a client over NBD, and no machine: $NO_MACHINE"; }

begin_phase() { echo "$1" >phase; }

start_load() {
    say "The disk is served; a client writes $RATE times a second, and flushes"
    echo "(no machine: $NO_MACHINE)"
    serve_disk
    begin_phase before
    start load "$FERRY" load run unix:here/disk.sock --offset "$LOAD_FROM" --length 1G \
        --ledger ledger --rate "$RATE" --flush-every 16 --phases phase
    LOAD=$STARTED
}

end_load() {
    end "$LOAD" "the client that writes"
    mv load.out load.txt
    cat load.txt
    end "$SERVE" "the first site"
}

prove_load() {
    say "Is every acknowledged write at the other site?"
    "$FERRY" load verify unix:there/disk.sock --ledger ledger | tee verify.txt
    end "$RECEIVE" "the other site"
}
