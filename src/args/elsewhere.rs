//! What `serve` is told of disks that are exports of other servers.

use std::path::PathBuf;

use clap::Args;

#[derive(Args, Debug)]
pub(crate) struct ElsewhereArgs {
    /// The file that stands here for a disk given as an NBD address: NAME.nbd, made if there is none; one for each, in order
    #[arg(long, value_name = "FILE")]
    pub(crate) state: Vec<PathBuf>,
    /// Let a disk given as an NBD address cross a network, for everybody there to read and change
    #[arg(long)]
    pub(crate) plain: bool,
}
