//! The command line as a script or a person meets it: the program is run, nothing inside is called.

mod cli {
    mod chain;
    mod check;
    mod compact;
    mod convert;
    mod copying;
    mod create;
    mod disk;
    mod evacuation;
    mod flatten;
    mod formats;
    mod limits;
    mod load;
    mod locking;
    mod metadata;
    mod packages;
    #[cfg(feature = "s3")]
    mod packages_in_stores;
    mod packages_of_changes;
    mod packages_sealed;
    mod resize;
    mod run;
    mod serve;
    mod serving;
    mod snapshot;
    mod text;
    mod throttled;
    mod track;
}
