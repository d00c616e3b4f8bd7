//! An export of an NBD server, its holes told by the server.

use std::sync::{Arc, Mutex, PoisonError};

use blockserver::nbd::blocking_client::BlockingClient;
use blockserver::nbd::uri::Address;
use blockserver::nbd::wire::{allocation, transmission};

use super::{Run, Source};
use crate::failure::Result;

/// The most that is asked about at once, bytes.
const WINDOW: u64 = 1 << 30;

/// A connection, which several readers may share.
struct Export {
    client: Arc<Mutex<BlockingClient>>,
    size: u64,
    tells_holes: bool,
}

/// Connects once for each handle if the server says that it may, else once for all of them.
pub(super) fn open(address: &Address, handles: usize) -> Result<Vec<Box<dyn Source>>> {
    let first = Export::connect(address)?;
    let many = first.with(|client| client.remote().has(transmission::CAN_MULTI_CONN));
    let next = || -> Result<Box<dyn Source>> {
        Ok(Box::new(if many {
            Export::connect(address)?
        } else {
            first.share()
        }))
    };
    let others: Vec<_> = (1..handles).map(|_| next()).collect::<Result<_>>()?;
    let mut all: Vec<Box<dyn Source>> = vec![Box::new(first)];
    all.extend(others);
    Ok(all)
}

impl Export {
    fn connect(address: &Address) -> Result<Self> {
        let client = BlockingClient::connect(address)?;
        let remote = client.remote();
        Ok(Self {
            size: remote.size,
            tells_holes: remote.allocation.is_some(),
            client: Arc::new(Mutex::new(client)),
        })
    }

    fn share(&self) -> Self {
        Self {
            client: Arc::clone(&self.client),
            ..*self
        }
    }

    fn with<T>(&self, ask: impl FnOnce(&mut BlockingClient) -> T) -> T {
        // A reader that panicked ends the whole copy, whatever the others still read.
        ask(&mut self.client.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Source for Export {
    fn size(&self) -> u64 {
        self.size
    }

    fn runs(&mut self, offset: u64, len: u64) -> Result<Vec<Run>> {
        if !self.tells_holes {
            return Ok(vec![Run { len, zero: false }]);
        }
        let extents = self.with(|client| client.block_status(offset, len.min(WINDOW)))?;
        let runs = extents.iter().map(|extent| Run {
            len: extent.len.into(),
            zero: extent.flags & allocation::ZERO != 0,
        });
        Ok(runs.collect())
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        Ok(self.with(|client| client.read(offset, buffer))?)
    }
}
