//! Who this process is to other sites, and what may go over a network without that.

use std::path::{Path, PathBuf};

use blockserver::nbd::uri::{Address, Endpoint};
use mirror::net::{SiteAddress, tls};

use crate::failure::{Exit, Failure, Result};

/// The folder of this site's identity.
pub(crate) fn folder(given: Option<&Path>) -> PathBuf {
    if let Some(given) = given {
        return given.to_owned();
    }
    let named = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(folder) = named("DISKFERRY_IDENTITY") {
        return folder.into();
    }
    let config = named("XDG_CONFIG_HOME").map(PathBuf::from);
    let home = || named("HOME").map(|home| Path::new(&home).join(".config"));
    let config = config.or_else(home).unwrap_or_else(|| "/etc".into());
    config.join("diskferry").join("identity")
}

/// Be what the folder says, if there is one; one that is `given` has to be there.
pub(crate) fn introduce(given: Option<&Path>) -> Result<()> {
    let folder = folder(given);
    if given.is_none() && !folder.join(tls::CERTIFICATE_FILE).exists() {
        return Ok(());
    }
    let identity = match tls::Identity::load(&folder) {
        Ok(identity) => identity,
        // Who did not ask for it may have no use for it: what goes over `tls:` says that it is missing.
        Err(error) if given.is_none() => {
            tracing::warn!("this process has no identity: {error}");
            return Ok(());
        }
        Err(error) => {
            let hint = "`diskferry pair new` makes an identity";
            return Err(Failure::new(Exit::Failed, error.to_string()).hint(hint));
        }
    };
    if identity.peers() == 0 {
        tracing::warn!(
            "{}: no other site is trusted yet; `diskferry pair trust` adds one",
            folder.display()
        );
    }
    tls::introduce(identity);
    Ok(())
}

/// What is wrong where this process is nobody to others.
pub(crate) fn missing() -> std::io::Error {
    let what =
        "this process has no identity for encrypted connections (--identity, `diskferry pair new`)";
    std::io::Error::new(std::io::ErrorKind::NotFound, what)
}

/// Refuse an address at which others could read along, unless that is asked for, and one that wants an identity that this
/// process does not have.
pub(crate) fn allowed(address: &str, plain: bool) -> Result<()> {
    let site = SiteAddress::parse(address).map_err(|error| Failure::usage(error.to_string()))?;
    if site.is_sealed() {
        needed_for(address)?;
    }
    if plain || site.is_sealed() || site.is_loopback() {
        return Ok(());
    }
    let what = format!(
        "{address}: all of the disk would cross the network for everybody to read and change"
    );
    Err(Failure::usage(what).hint(
        "say tls: instead of tcp: (see `diskferry pair`), or --plain if nobody else is on that network",
    ))
}

/// Refuse what is encrypted if this process has no identity.
fn needed_for(address: &str) -> Result<()> {
    if tls::is_introduced() {
        return Ok(());
    }
    let what = format!("{address}: this process has no identity (--identity)");
    let hint = "`diskferry pair new` makes one; then start this process again";
    Err(Failure::usage(what).hint(hint))
}

/// The same for the address of an export.
pub(crate) fn needed_at(export: &Address) -> Result<()> {
    match &export.endpoint {
        Endpoint::Tls { .. } => needed_for(&export.to_string()),
        Endpoint::Tcp { .. } | Endpoint::Unix(_) => Ok(()),
    }
}

/// Refuse an NBD address at which others could read along what clients of the other site ask of a disk once it has moved,
/// where the move itself, at `site`, is encrypted and that was not asked for.
pub(crate) fn passes_on(site: &str, clients: &Endpoint, plain: bool) -> Result<()> {
    let site = SiteAddress::parse(site).map_err(|error| Failure::usage(error.to_string()))?;
    let near = |at: &Endpoint| {
        let at = SiteAddress::parse(&at.to_string());
        at.is_ok_and(|at| at.is_loopback())
    };
    if plain || !site.is_sealed() || !matches!(clients, Endpoint::Tcp { .. }) || near(clients) {
        return Ok(());
    }
    let what = format!(
        "{clients}: what clients of the other site ask of a disk once it has moved would cross the network for everybody \
         to read and change"
    );
    Err(Failure::usage(what).hint(
        "name tls:HOST:PORT first, before what others are served at; or say --plain if nobody else is on that network",
    ))
}
