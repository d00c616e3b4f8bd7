//! What `pair` is told, and who a process is to other sites.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Who this process is to other sites.
#[derive(Args, Clone, Debug)]
pub(crate) struct IdentityArgs {
    // As an attribute: a name with underlines would want backticks in a comment.
    #[arg(
        long,
        value_name = "DIR",
        help = "Who this site is to others [default: $DISKFERRY_IDENTITY, else ~/.config/diskferry/identity]"
    )]
    pub(crate) identity: Option<PathBuf>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum PairVerb {
    /// Make a key and a certificate for this site
    New(PairNewArgs),
    /// Tell where this site's certificate lies, and its fingerprint
    Show(IdentityArgs),
    /// Take another site for what it says it is
    Trust(PairTrustArgs),
    /// Trust a site no more
    Forget(PairForgetArgs),
    /// List the sites that are trusted
    List(IdentityArgs),
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry pair new
  diskferry pair new --identity /etc/diskferry --name berlin

The key never leaves the folder; the certificate is for everybody to see.")]
pub(crate) struct PairNewArgs {
    #[command(flatten)]
    pub(crate) identity: IdentityArgs,
    /// The name in the certificate, for people and for NBD clients that look at it [default: this host's]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
}

#[derive(Args, Debug)]
#[command(after_help = "Example:
  diskferry pair trust /media/usb/cert.pem --as berlin")]
pub(crate) struct PairTrustArgs {
    #[command(flatten)]
    pub(crate) identity: IdentityArgs,
    /// The other site's cert.pem
    #[arg(value_name = "CERTIFICATE")]
    pub(crate) certificate: PathBuf,
    /// What the site is called here
    #[arg(long = "as", value_name = "NAME")]
    pub(crate) name: String,
}

#[derive(Args, Debug)]
#[command(after_help = "Example:
  diskferry pair forget berlin")]
pub(crate) struct PairForgetArgs {
    #[command(flatten)]
    pub(crate) identity: IdentityArgs,
    /// What the site is called here
    pub(crate) name: String,
}
