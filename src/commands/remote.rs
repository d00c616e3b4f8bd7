//! A disk that another process serves, reached through its control socket.

use std::path::Path;

use crate::control::client::Client;
use crate::control::{DiskState, place};
use crate::failure::{Failure, Result};
use crate::plan;

/// A disk at the server that has it.
pub(super) struct Remote {
    pub(super) client: Client,
    /// As it was when it was found.
    pub(super) state: DiskState,
}

impl Remote {
    /// The disk at the server behind `control`, or behind the socket that belongs to the disk.
    pub(super) fn find(disk: &Path, control: Option<&str>) -> Result<Self> {
        let socket = match control {
            Some(text) => plan::control_path(text)?,
            None => place::socket_of(disk)?,
        };
        Self::at(Client::new(&socket), disk)
    }

    /// The same, if there is such a server.
    pub(super) fn look(disk: &Path) -> Result<Option<Self>> {
        let client = Client::new(&place::socket_of(disk)?);
        if client.answers() {
            Self::at(client, disk).map(Some)
        } else {
            Ok(None)
        }
    }

    /// The disk of that name.
    pub(super) fn named(client: Client, name: &str) -> Result<Self> {
        let disks: Vec<DiskState> = client.get("/v1/disks")?;
        let none = || Failure::usage(format!("there is no disk called `{name}`"));
        let state = disks.into_iter().find(|state| state.name == name);
        let state = state.ok_or_else(none)?;
        Ok(Self { client, state })
    }

    fn at(client: Client, disk: &Path) -> Result<Self> {
        let disks: Vec<DiskState> = client.get("/v1/disks")?;
        let wanted = std::fs::canonicalize(disk).ok();
        let same = |state: &DiskState| {
            Path::new(&state.path) == disk
                || (wanted.is_some() && std::fs::canonicalize(&state.path).ok() == wanted)
        };
        let none = || Failure::usage(format!("{}: is not served there", disk.display()));
        let state = disks.into_iter().find(same).ok_or_else(none)?;
        Ok(Self { client, state })
    }

    /// What belongs to it, as in `mirror/cutover`.
    pub(super) fn resource(&self, what: &str) -> String {
        format!("/v1/disks/{}/{what}", escape(&self.state.name))
    }
}

/// The name as part of a URL path.
pub(super) fn escape(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    name.bytes()
        .map(|byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}
