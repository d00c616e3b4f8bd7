//! A disk that is asked things: an export of an NBD server, or an image opened here.
//!
//! Requests are submitted and completed apart, so that one thread keeps many outstanding. What is
//! submitted to an image is done at once and completes with the next wait.

use std::collections::VecDeque;
use std::time::Duration;

use blockserver::nbd::blocking_client::{ClientError, ConnectOptions, PipelinedClient};
use blockserver::nbd::client::{Answer, ClientRequest, Wanted};
use blockserver::nbd::uri::Address;
use vdisk::disk::Disk;

use crate::commands::image;
use crate::failure::{Exit, Failure, Result};
use crate::plan::DiskName;

/// What to ask of a disk.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op<'a> {
    Read { offset: u64, len: u32 },
    Write { offset: u64, data: &'a [u8] },
    Flush,
}

/// One thing that was done.
#[derive(Debug)]
pub(crate) struct Done {
    /// What [`Device::submit`] answered.
    pub(crate) id: u64,
    /// The bytes that were read; nothing for the rest.
    pub(crate) data: Vec<u8>,
}

/// A disk to ask.
pub(crate) enum Device {
    Nbd(Box<PipelinedClient>),
    Image(Box<Image>),
}

/// An image opened here.
pub(crate) struct Image {
    disk: Disk,
    next: u64,
    done: VecDeque<Done>,
}

impl Image {
    /// Does it at once.
    fn submit(&mut self, op: Op<'_>) -> Result<u64> {
        let mut data = Vec::new();
        match op {
            Op::Read { offset, len } => {
                data.resize(len as usize, 0);
                self.disk.read_at(offset, &mut data)?;
            }
            Op::Write { offset, data } => self.disk.write_at(offset, data)?,
            Op::Flush => self.disk.flush()?,
        }
        let id = self.next;
        self.next += 1;
        self.done.push_back(Done { id, data });
        Ok(id)
    }
}

impl Device {
    /// Opens what `name` means; `depth` requests will be outstanding at most.
    pub(crate) fn open(name: &DiskName, depth: usize, writes: bool) -> Result<Self> {
        match name {
            DiskName::Image(path, format) => Ok(Self::Image(Box::new(Image {
                disk: image::open(path, *format, !writes)?,
                next: 0,
                done: VecDeque::new(),
            }))),
            DiskName::Nbd(address) => Ok(Self::Nbd(Box::new(connect(address, depth)?))),
        }
    }

    /// Bytes of the disk.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Nbd(client) => client.remote().size,
            Self::Image(image) => image.disk.size(),
        }
    }

    /// Asks for `op`; answers the number under which it will complete.
    pub(crate) fn submit(&mut self, op: Op<'_>) -> Result<u64> {
        match self {
            Self::Nbd(client) => {
                let request = match op {
                    Op::Read { offset, len } => ClientRequest::read(offset, len),
                    Op::Write { offset, data } => ClientRequest::write(offset, data),
                    Op::Flush => ClientRequest::flush(),
                };
                Ok(client.submit(&request)?)
            }
            Self::Image(image) => image.submit(op),
        }
    }

    /// Waits until something is done, for `limit` at most; `None` if nothing was, or nothing is
    /// outstanding. A request that failed is an error.
    pub(crate) fn wait(&mut self, limit: Option<Duration>) -> Result<Option<Done>> {
        match self {
            Self::Image(image) => Ok(image.done.pop_front()),
            Self::Nbd(client) => {
                let Some(completion) = client.wait_at_most(limit)? else {
                    return Ok(None);
                };
                let id = completion.cookie;
                match completion.result {
                    Ok(Answer::Data(data)) => Ok(Some(Done { id, data })),
                    Ok(_) => Ok(Some(Done {
                        id,
                        data: Vec::new(),
                    })),
                    Err(refusal) => Err(ClientError::Failed {
                        command: completion.command,
                        offset: completion.offset,
                        len: completion.len,
                        errno: refusal.errno,
                        message: refusal.message,
                    }
                    .into()),
                }
            }
        }
    }

    /// Gives back the bytes of a read, so that the next one need not allocate.
    pub(crate) fn recycle(&mut self, buffer: Vec<u8>) {
        match self {
            Self::Nbd(client) => client.recycle(buffer),
            Self::Image(_) => drop(buffer),
        }
    }

    /// Asks for `op` and waits for it; nothing else may be outstanding.
    pub(crate) fn call(&mut self, op: Op<'_>) -> Result<()> {
        self.submit(op)?;
        self.wait(None).map(drop)
    }

    /// Is not needed any more; an image is closed cleanly.
    pub(crate) fn close(self) -> Result<()> {
        match self {
            Self::Nbd(_) => Ok(()),
            Self::Image(image) => Ok(image.disk.close()?),
        }
    }
}

fn connect(address: &Address, depth: usize) -> Result<PipelinedClient> {
    let options = ConnectOptions {
        wanted: Wanted {
            allocation: false,
            ..Wanted::default()
        },
        max_in_flight: depth,
        ..ConnectOptions::default()
    };
    Ok(PipelinedClient::connect(address, &options)?)
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let what = error.to_string();
        match error {
            ClientError::Connect { .. } => Self::new(Exit::Network, what)
                .hint("is the server running, and is the address right?"),
            ClientError::Io(_) | ClientError::Closed(_) => Self::new(Exit::Network, what),
            _ => Self::new(Exit::Failed, what),
        }
    }
}
