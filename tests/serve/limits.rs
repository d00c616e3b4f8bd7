//! A file that may not grow any further: that write fails and says why, everything else goes on.

use blockserver::nbd::Errno;
use blockserver::nbd::blocking_client::{BlockingClient, ClientError};

use crate::run::{diskferry, folder, program};
use crate::serving::Serving;

const MIB: u64 = 1 << 20;

#[test]
fn a_limit_of_the_files_length_fails_the_write_that_needs_more_and_ends_nothing() {
    let here = folder();
    let here = here.path();
    diskferry(here, &["create", "a.vhdx", "1G", "--block-size", "1M"]).ok();
    let place = format!("unix:{}", here.join("s").display());
    let serving = Serving::start(here, &["a.vhdx", "--listen", &place]);
    let address = serving.uri().parse().expect("an address");
    let mut client = BlockingClient::connect(&address).expect("it listens");
    let block = |number: u64| vec![number as u8 + 1; MIB as usize];
    client.write(0, &block(0), true).expect("there is room");
    let limit = |most: String| {
        let pid = serving.pid().to_string();
        let most = format!("--fsize={most}:unlimited");
        program(here, "prlimit", &["--pid", &pid, &most]).ok();
    };
    // Less than what the file has grown to ahead of its use.
    limit((40 * MIB).to_string());
    let mut kept = vec![0];
    let mut refused = 0;
    for number in 1..200 {
        match client.write(number * MIB, &block(number), false) {
            Ok(()) => kept.push(number),
            Err(ClientError::Failed {
                errno: Errno::NoSpace,
                ..
            }) => refused += 1,
            Err(error) => panic!("{error}"),
        }
        if number % 16 == 0 {
            client.write(0, &block(0), false).expect("it has its place");
            client.flush().expect("what has its place can be flushed");
        }
    }
    assert!(
        kept.len() > 10 && refused > 100,
        "{kept:?}, {refused} refused"
    );
    let mut back = vec![0; MIB as usize];
    for number in &kept {
        client.read(number * MIB, &mut back).expect("read");
        assert!(back == block(*number), "block {number}");
    }
    limit("unlimited".to_owned());
    client
        .write(150 * MIB, &block(150), true)
        .expect("there is room again");
    drop(client);
    serving.end();
    diskferry(here, &["check", "a.vhdx"]).ok();
    program(here, "qemu-img", &["check", "-q", "a.vhdx"]).ok();
}
