//! Where a server listens.

use blockserver::nbd::blocking_client::BlockingClient;
use blockserver::nbd::uri::{Address, Endpoint};
use blockserver::server::{Server, ServerConfig};

use super::site::{Site, on_both};

#[test]
fn a_path_in_use_is_refused_and_a_stale_one_replaced() {
    let dir = tempfile::tempdir().expect("a directory");
    let endpoint = Endpoint::Unix(dir.path().join("s"));
    let config = || ServerConfig {
        workers: 1,
        listen: vec![endpoint.clone()],
        ..ServerConfig::default()
    };
    let first = Server::start(config()).expect("a free path");
    let refused = Server::start(config()).expect_err("it is in use");
    assert_eq!(refused.kind(), std::io::ErrorKind::AddrInUse);
    let place = dir.path().join("s").display().to_string();
    assert!(refused.to_string().contains(&place), "{refused}");
    first.shutdown().expect("a clean end");
    assert!(!dir.path().join("s").exists(), "the path is given back");
    drop(std::os::unix::net::UnixListener::bind(dir.path().join("s")).expect("a stale one"));
    Server::start(config())
        .expect("nobody listens there")
        .shutdown()
        .expect("a clean end");
    std::fs::write(dir.path().join("s"), "precious").expect("written");
    Server::start(config()).expect_err("a file of another kind is nobody's to replace");
    assert_eq!(
        std::fs::read(dir.path().join("s")).expect("it stays"),
        b"precious"
    );
}

#[test]
fn tcp_clients_are_served_at_the_port_that_was_chosen() {
    on_both(|config| {
        let (site, _export) = Site::with_raw_disk(config, 1 << 20);
        let any = Endpoint::Tcp {
            host: "127.0.0.1".to_owned(),
            port: 0,
        };
        let endpoint = site.server.listen(&any).expect("a free port");
        assert!(site.server.local_addresses().contains(&endpoint));
        let refused = site.server.listen(&endpoint).expect_err("it is in use");
        let said = refused.to_string();
        assert!(said.contains("cannot listen on tcp:127.0.0.1:"), "{said}");
        let address = Address {
            endpoint,
            export: "disk".to_owned(),
        };
        let mut client = BlockingClient::connect(&address).expect("a client");
        client.write(5, b"over TCP", false).expect("a write");
        let mut found = [0; 8];
        site.client("disk").read(5, &mut found).expect("a read");
        assert_eq!(&found, b"over TCP");
    });
}
