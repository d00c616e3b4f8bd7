//! The host's side: a namespace, an interface with an address, and datagrams that are counted.

use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use vmm::virtio::VirtioDevice;
use vmm::virtio::net::{Net, Tap, Traffic};
use vmm::{Exit, Machine};

use crate::ran::{Printed, config, started};

/// The guest's address.
pub(crate) const MAC: [u8; 6] = [0x02, 0xDF, 0, 0, 0, 1];
const MAC_TEXT: &str = "02:df:00:00:00:01";
/// Set where a test runs in its namespace.
const INSIDE: &str = "DISKFERRY_TEST_NAMESPACE";
/// How many datagrams a guest sends for each that asks for some.
const BURST: u64 = 4;
/// After that long nothing comes any more.
const STUCK: Duration = Duration::from_mins(2);

/// Runs the test `name` once more in a network namespace of its own; `true` in there, and the caller goes on.
#[track_caller]
pub(crate) fn inside(name: &str) -> bool {
    if std::env::var_os("DISKFERRY_NO_TAP").is_some_and(|value| value == "1") {
        eprintln!("DISKFERRY_NO_TAP=1: nothing is tested");
        return false;
    }
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let this = std::env::current_exe().expect("a program");
    let status = Command::new("timeout")
        .args(["300", "unshare", "--user", "--map-root-user", "--net", "--"])
        .arg(this)
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .status();
    let status = status.expect("timeout can be run");
    assert!(status.success(), "{name} in a network namespace: {status}");
    false
}

/// The same, for a test that needs our machine too.
#[track_caller]
pub(crate) fn inside_with_kvm(name: &str) -> bool {
    !crate::ran::without_kvm() && inside(name)
}

/// Runs `ip` with these words.
#[track_caller]
pub(crate) fn ip(words: &str) {
    let path = std::env::var("PATH").unwrap_or_default();
    let status = Command::new("ip")
        .args(words.split(' '))
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .status();
    let status = status.expect("ip can be run: scripts/setup.sh");
    assert!(status.success(), "ip {words}");
}

/// Gives the host an address on `tap0`, where the guest is known.
pub(crate) fn address() {
    ip("addr add 10.9.0.1/24 dev tap0");
    ip(&format!(
        "neigh add 10.9.0.2 lladdr {MAC_TEXT} dev tap0 nud permanent"
    ));
}

/// A tap that is made, with an address.
pub(crate) fn made(mtu: u16) -> Arc<Tap> {
    let tap = Tap::open("tap0", Some(mtu)).expect("a tap");
    address();
    Arc::new(tap)
}

/// A machine with a network device on a tap.
pub(crate) struct Wired {
    pub(crate) machine: Machine,
    pub(crate) printed: Printed,
    pub(crate) traffic: Arc<Traffic>,
}

impl Wired {
    /// The machine, which does what `words` say.
    pub(crate) fn new(tap: &Arc<Tap>, words: &str) -> Self {
        let device = Net::new(Arc::clone(tap), MAC);
        let traffic = device.traffic();
        let device: Box<dyn VirtioDevice> = Box::new(device);
        let (machine, printed) = started(&config(1, 64 << 20, words), vec![device]);
        Self {
            machine,
            printed,
            traffic,
        }
    }

    /// Waits for its end, which must be a good one; the only event of that name.
    #[track_caller]
    pub(crate) fn ended(&self, event: &str) -> serde_json::Value {
        let exit = self.machine.wait();
        assert_eq!(exit, Exit::PowerOff(0), "{}", self.printed.text());
        let mut events = self.printed.events(event);
        assert_eq!(events.len(), 1, "{}", self.printed.text());
        events.remove(0)
    }
}

/// A socket to the guest.
pub(crate) fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("10.9.0.1:0").expect("an address");
    socket.connect("10.9.0.2:7").expect("a route");
    socket.set_read_timeout(Some(STUCK)).expect("a timeout");
    socket
}

/// The word at a place of what the guest sends by itself.
pub(crate) fn stamp(number: u64, at: u64) -> u64 {
    let mut mixed = (number ^ at).wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Datagram `number` of `len` bytes, of at least 8.
fn datagram(number: u64, len: usize) -> Vec<u8> {
    let places = (0..).step_by(8);
    let words = places.map(|at| if at == 0 { number } else { stamp(number, at) });
    words.flat_map(u64::to_le_bytes).take(len).collect()
}

/// Sends datagrams of these sizes to a guest that sends them back, `window` of them at a time, and expects each
/// of them back, whole and in its turn.
#[track_caller]
pub(crate) fn exchange(sizes: &[usize], window: usize) {
    let socket = socket();
    let mut seen = vec![0; 1 << 16];
    let mut send = |number: usize| {
        let sent = socket.send(&datagram(number as u64, sizes[number]));
        assert_eq!(sent.expect("a link"), sizes[number]);
    };
    let first = window.min(sizes.len());
    (0..first).for_each(&mut send);
    for (number, size) in sizes.iter().enumerate() {
        let len = socket.recv(&mut seen);
        let len = len.unwrap_or_else(|error| panic!("datagram {number} of {size}: {error}"));
        assert!(
            seen[..len] == datagram(number as u64, *size),
            "datagram {number} of {size} bytes came as {len} others, {:?}",
            &seen[..len.min(16)]
        );
        if number + window < sizes.len() {
            send(number + window);
        }
    }
}

/// So many sizes between 8 and `most`, the ends among them.
pub(crate) fn sizes(count: usize, most: usize) -> Vec<usize> {
    let between = |number| 8 + stamp(7, number) as usize % (most - 7);
    let ends = [8, most].into_iter();
    ends.chain((0..).map(between)).take(count).collect()
}

/// Asks a guest for datagrams, and expects so many of `size` bytes, whole and in their order.
#[track_caller]
pub(crate) fn expect_sent(frames: u64, size: usize) {
    let socket = socket();
    let mut seen = vec![0; 1 << 16];
    for number in 0..frames {
        // It sends no more at once than a socket keeps.
        if number % BURST == 0 {
            socket.send(b"please").expect("a link");
        }
        let len = socket.recv(&mut seen);
        let len = len.unwrap_or_else(|error| panic!("datagram {number}: {error}"));
        assert!(
            seen[..len] == datagram(number, size),
            "{number}: {len} bytes"
        );
    }
}
