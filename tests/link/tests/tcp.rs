//! The kernel's TCP over the link: all arrives, no sooner than it can, and an outage is one.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use testlink::{End, Link, Namespace, Shape, inside};

const DELAY: Duration = Duration::from_millis(20);
const NEAR: &str = "10.77.3.1/24";
const FAR: &str = "10.77.3.2/24";

/// Bytes that go over it.
const MUCH: usize = 2 << 20;

#[test]
fn what_is_sent_arrives_after_the_delay_though_packets_are_lost_and_the_link_is_cut() {
    if !inside("what_is_sent_arrives_after_the_delay_though_packets_are_lost_and_the_link_is_cut") {
        return;
    }
    let (near, far) = (Namespace::new().unwrap(), Namespace::new().unwrap());
    let end = |namespace, address| End { namespace, address };
    let shape = Shape {
        loss: 2000,
        ..Shape::new(50_000_000, DELAY)
    };
    let ends = [end(&near, NEAR), end(&far, FAR)];
    let link = Link::join(ends, ("link0", 1500), (shape, 7)).unwrap();
    let listener = far.enter(|| TcpListener::bind("10.77.3.2:7")).unwrap();
    let listener = listener.unwrap();
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut sent = stream.try_clone().unwrap();
        std::io::copy(&mut stream, &mut sent).unwrap();
    });
    let mut stream = near
        .enter(|| TcpStream::connect("10.77.3.2:7"))
        .unwrap()
        .unwrap();
    stream.set_nodelay(true).unwrap();
    for _ in 0..3 {
        let since = Instant::now();
        stream.write_all(b"x").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        assert!(since.elapsed() >= DELAY * 2, "{:?}", since.elapsed());
    }
    let mut again = stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        let bytes: Vec<u8> = (0..MUCH).map(|at| (at / 7) as u8).collect();
        again.write_all(&bytes).unwrap();
        bytes
    });
    std::thread::sleep(DELAY * 2);
    link.cut();
    let before = link.counts();
    std::thread::sleep(DELAY * 5);
    let during = link.counts();
    assert_eq!(before.map(|way| way.arrived), during.map(|way| way.arrived));
    link.mend();
    let mut found = vec![0; MUCH];
    stream.read_exact(&mut found).unwrap();
    assert!(found == writer.join().unwrap(), "other bytes came back");
    drop(stream);
    let [there, back] = link.counts();
    assert!(there.arrived.bytes > MUCH as u64 && back.arrived.bytes > MUCH as u64);
    assert!(there.cut.packets > 0 && there.lost.packets + back.lost.packets > 0);
    link.reshape(|shape| shape.loss = 0);
    drop(link);
    drop(echo);
}
