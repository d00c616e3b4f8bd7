//! Asks a target whether it would take a machine, before anything is begun.
//!
//! One message there, one back, on a connection of their own. Must never change anything.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;

use super::lane::next_message;
use super::room::Room;
use super::socket::{SiteAddress, Traffic, connect};
use crate::error::{Error, ErrorKind, Result};
use crate::wire::{Decoder, MAX_PAYLOAD, Message, encode};

/// How long the target may take: it may have to ask its host what it can do.
const WITHIN: Duration = Duration::from_secs(30);

/// Ask the target at `to` (`tcp:HOST:PORT`) whether it would take the machine that `offer` tells of. Blocks.
///
/// # Errors
/// [`ErrorKind::Refused`] with its reason when it would not; [`ErrorKind::InvalidArgument`] and [`ErrorKind::Io`]
/// when it cannot be asked.
pub fn offer(to: &str, offer: Bytes) -> Result<()> {
    let at = &SiteAddress::parse(to)?;
    if offer.len() > MAX_PAYLOAD {
        let what = "the machine cannot be told of in one message";
        return Err(Error::new(ErrorKind::InvalidArgument, what));
    }
    let failed = |e| Error::io(ErrorKind::Io, format!("{to} cannot be asked"), e);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let asked = runtime.block_on(async { tokio::time::timeout(WITHIN, ask(at, offer)).await });
    runtime.shutdown_background();
    match asked {
        Ok(Ok(Ok(Message::Taken))) => Ok(()),
        Ok(Ok(Ok(Message::Refused { text, .. }))) => Err(Error::new(
            ErrorKind::Refused,
            format!("the target refused: {text}"),
        )),
        Ok(Ok(Ok(other))) => Err(Error::misbehaved(format!(
            "the target answered an offer with {other:?}"
        ))),
        Ok(Ok(Err(why))) => Err(Error::new(
            ErrorKind::Io,
            format!("{to} does not answer an offer ({why}): is it a version that takes machines?"),
        )),
        Ok(Err(error)) => Err(failed(error)),
        Err(_) => Err(Error::new(
            ErrorKind::Io,
            format!("{to} does not answer an offer"),
        )),
    }
}

async fn ask(at: &SiteAddress, offer: Bytes) -> std::io::Result<Result<Message, String>> {
    let mut stream = connect(at, Traffic::Ordered).await?;
    let frame = encode(&Message::Offer(offer));
    stream.write_all(&frame.head).await?;
    stream.write_all(&frame.payload).await?;
    stream.flush().await?;
    let answer = next_message(&mut stream, &mut Decoder::default(), &mut Room::default()).await;
    Ok(answer.map_err(|heard| format!("{heard:?}")))
}
