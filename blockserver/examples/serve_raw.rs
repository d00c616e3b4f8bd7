//! Serves raw images over NBD: `serve_raw [--workers N] [--blocking] [--buffered] ENDPOINT FILE...`
//!
//! For measuring the server by itself. A single file is the default export, several are named by
//! their paths. It ends when its standard input does.

use std::error::Error;
use std::fs::OpenOptions;
use std::io::Read as _;

use blockserver::export::{Disk, ExportOptions, prepare_file};
use blockserver::server::{Server, ServerConfig};
use vdisk::engine::Engine;

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
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let size = file.metadata()?.len();
        let alignment = if direct { prepare_file(&file, true) } else { 1 };
        let engine = Engine::raw(size, alignment.into(), false);
        server.add_export(
            path,
            Disk::new(file, engine, alignment),
            ExportOptions::default(),
        )?;
    }
    let address = server.listen(&endpoint.parse()?)?;
    println!("listening on {address}");
    let _ = std::io::stdin().read(&mut [0]);
    server.shutdown()?;
    Ok(())
}
