//! A served disk as the world meets it: killed under load, full, trimmed, attacked, ended in order.
//!
//! The real program is run and other programs talk to it; nothing inside is called but the client.
//! `DISKFERRY_SEED=n` repeats what a run printed.

#[path = "cli/run.rs"]
mod run;
#[path = "cli/serving.rs"]
mod serving;

mod serve {
    mod chain;
    mod ends;
    mod files;
    mod full;
    mod hostile;
    mod kill;
    mod limits;
    mod many;
    mod random;
    mod refused;
    mod room;
    mod tls;
}
