//! Ended in order under load: the image is closed, and no log waits to be replayed.

use std::time::Duration;

use crate::run::{command, diskferry, folder, program};
use crate::serving::Serving;

#[test]
fn a_server_that_is_asked_to_end_under_load_closes_its_disks() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "4G", "--block-size", "1M"]).ok();
    for round in 0..4 {
        let serving = Serving::start(here, &["a.vhdx", "--listen", "unix:s"]);
        let load = [
            "load", "run", "unix:s", "--ledger", "l", "--rate", "5000", "--length", "2G",
        ];
        let mut client = command(here, "diskferry", &load)
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("the program can be run");
        std::thread::sleep(Duration::from_millis(100 + 60 * round));
        let summary = serving.end();
        client.wait().expect("it ends");
        println!("{summary}");
        let info = diskferry(here, &["info", "--json", "a.vhdx"]).ok().json();
        assert_eq!(info["log"]["dirty"], false, "{info}");
        diskferry(here, &["check", "a.vhdx"]).ok();
        let checked = program(here, "qemu-img", &["check", "a.vhdx"]).ok();
        assert!(!checked.stderr.contains("log"), "{}", checked.stderr);
        // Closed in order, even what nobody flushed is there.
        let words = ["load", "verify", "a.vhdx", "--ledger", "l", "--json"];
        let line = diskferry(here, &words).ok().json();
        assert_eq!(line["wrong"], 0, "{line}");
        assert!(!here.join("s").exists(), "the socket goes with the server");
    }
}
