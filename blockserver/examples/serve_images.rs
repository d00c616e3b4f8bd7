//! Serves images over NBD: `serve_images [--workers N] [--blocking] [--buffered] ENDPOINT FILE...`
//!
//! For measuring the server by itself. A single file is the default export, several are named by
//! their paths. It ends when its standard input does.

use std::error::Error;
use std::io::Read as _;
use std::path::Path;

use blockserver::export::{Disk, ExportOptions};
use blockserver::server::{Server, ServerConfig};
use vdisk::disk::OpenOptions;

fn main() -> Result<(), Box<dyn Error>> {
    let mut config = ServerConfig::default();
    let mut direct = true;
    let mut words = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--workers" => config.workers = arguments.next().ok_or("how many workers?")?.parse()?,
            "--blocking" => config.force_blocking = true,
            "--buffered" => direct = false,
            _ => words.push(argument),
        }
    }
    let (endpoint, files) = words
        .split_first()
        .ok_or("an endpoint and files are needed")?;
    let server = Server::start(config)?;
    for path in files {
        let open = if direct {
            Disk::open
        } else {
            Disk::open_buffered
        };
        let disk = open(Path::new(path), &OpenOptions::default())?;
        server.add_export(path, disk, ExportOptions::default())?;
    }
    let address = server.listen(&endpoint.parse()?)?;
    println!("listening on {address}");
    let _ = std::io::stdin().read(&mut [0]);
    server.shutdown()?;
    Ok(())
}
