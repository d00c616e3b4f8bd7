//! Every metric that there is: its name, its kind, and what it says. `docs/metrics.md` has the same list.

use prometheus::proto::MetricType;

/// One metric.
#[derive(Debug)]
pub(crate) struct Definition {
    pub(crate) name: &'static str,
    pub(crate) kind: MetricType,
    pub(crate) help: &'static str,
}

macro_rules! metrics {
    ($($constant:ident, $kind:ident, $name:literal, $help:literal;)*) => {
        $(
            pub(super) const $constant: Definition = Definition {
                name: $name,
                kind: MetricType::$kind,
                help: $help,
            };
        )*
        /// All of them, in the order in which they are served.
        pub(crate) const ALL: &[Definition] = &[$($constant),*];
    };
}

metrics! {
    BUILD, GAUGE, "diskferry_build_info", "1; the label says which version runs.";
    DISK_SIZE, GAUGE, "diskferry_disk_size_bytes", "Bytes of the disk as clients see it.";
    DISK_FILE, GAUGE, "diskferry_disk_file_bytes", "Bytes that the disk's file takes on its file system.";
    REQUESTS, COUNTER, "diskferry_export_requests_total", "Requests of clients that ended, well or not.";
    BYTES, COUNTER, "diskferry_export_bytes_total", "Bytes that those requests concerned.";
    ERRORS, COUNTER, "diskferry_export_errors_total", "Requests of clients that failed.";
    LATENCY, HISTOGRAM, "diskferry_export_latency_seconds", "How long requests of clients took, from when they were read to their answer.";
    THROTTLED, COUNTER, "diskferry_export_throttled_requests_total", "Requests that had to wait because of the disk's limits.";
    THROTTLED_FOR, COUNTER, "diskferry_export_throttled_seconds_total", "How long those requests waited, all together.";
    PHASE, GAUGE, "diskferry_move_phase", "1 for the phase that the disk's newest move is in, 0 for the others.";
    CONNECTED, GAUGE, "diskferry_move_connected", "1 while the other host is reached.";
    ELAPSED, GAUGE, "diskferry_move_elapsed_seconds", "How long the move has taken; it stands still once the move has ended.";
    SCANNED, GAUGE, "diskferry_move_scanned_bytes", "Up to here the disk was asked what is allocated.";
    FOUND, GAUGE, "diskferry_move_found_bytes", "Allocated bytes found so far: what there is to do.";
    REMAINING, GAUGE, "diskferry_move_remaining_bytes", "Bytes to be copied or on the way, of what was found so far.";
    BACKLOG, GAUGE, "diskferry_move_backlog_bytes", "Bytes of new writes that are not durable at the target.";
    TRANSFERRED, COUNTER, "diskferry_move_transferred_bytes_total", "Bytes that were sent and are durable at the target, before they were packed.";
    READ, COUNTER, "diskferry_move_read_bytes_total", "Bytes read of the disk to be copied or compared.";
    SENT, COUNTER, "diskferry_move_sent_bytes_total", "Bytes written to sockets, everything counted.";
    WRITTEN, COUNTER, "diskferry_move_written_bytes_total", "Bytes that clients wrote since the move began.";
    SAVED, GAUGE, "diskferry_move_saved_bytes", "Bytes that did not have to travel: holes, zeros, what hashes showed to be there, what was written over while it waited, and what packing took away.";
    RATE, GAUGE, "diskferry_move_rate_bytes_per_second", "Bytes a second that became durable at the target lately.";
    DIRTY_RATE, GAUGE, "diskferry_move_dirty_rate_bytes_per_second", "Bytes a second that clients wrote lately.";
    LIMIT, GAUGE, "diskferry_move_limit_bytes_per_second", "To what the copy is held; absent where it is not.";
    BRAKE, GAUGE, "diskferry_move_brake_bytes_per_second", "To what clients' writes are held for the deadline; absent where they are not.";
    LAG, GAUGE, "diskferry_move_lag_seconds", "How old, at the most, what the target has of the disk is; absent before it was in step, and once the move has ended.";
    ESTIMATE, GAUGE, "diskferry_move_estimate_seconds", "Until the target is in step: likely, least and most (+Inf: never); absent where it is not known.";
    PAUSE, GAUGE, "diskferry_move_pause_seconds", "How long requests were held at the switchover; absent before it.";
    RECONNECTS, COUNTER, "diskferry_move_reconnects_total", "How often the link was lost.";
    FALLBACKS, COUNTER, "diskferry_move_fallbacks_total", "Changes that went to the bitmap because the queue was full.";
    ENDED, COUNTER, "diskferry_moves_ended_total", "Moves of the disk that ended since the process began, by how.";
    TARGET_STATE, GAUGE, "diskferry_target_state", "1 for what the record of a disk that is received says, 0 for the others.";
    TARGET_CONNECTED, GAUGE, "diskferry_target_connected", "1 while a source is connected that brings the disk.";
    TARGET_WRITTEN, COUNTER, "diskferry_target_written_bytes_total", "Bytes that came for the disk and were written to it or to its journal.";
    TARGET_JOURNAL, GAUGE, "diskferry_target_journal_bytes", "Bytes in the journal of a disk that follows.";
    TARGET_EPOCHS, COUNTER, "diskferry_target_epochs_total", "Consistent moments of the source that came while the disk followed it.";
}
