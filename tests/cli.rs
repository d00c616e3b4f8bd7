//! The command line as a script or a person meets it: the program is run, nothing inside is called.

mod cli {
    mod create;
    mod disk;
    mod run;
    mod text;
}
