//! What a target is told of a machine before anything is begun, and whether it would take it.
//!
//! Must never change anything: the machine runs, and may stay where it is.

use std::path::Path;

use mirror::files::{load_record, sidecar_path};
use serde::{Deserialize, Serialize};
use vdisk::disk::ImageFormat;
use vmm::description::{Description, Disk, Kernel};
use vmm::snapshot::HostFacts;
use vmm::virtio::net::Tap;

use crate::commands::run::cannot;
use crate::failure::{Failure, Result};
use crate::saved::disks;
use crate::saved::manifest::{Manifest, SavedDisk};

/// The only version.
const VERSION: u32 = 1;

/// A machine that wants to come.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Passport {
    version: u32,
    /// What it is. Its state is not there yet.
    pub(crate) manifest: Manifest,
    /// What it was told of its host: [`HostFacts::encode`] in hexadecimal digits.
    given: String,
}

impl Passport {
    pub(crate) fn new(manifest: Manifest, given: &HostFacts) -> Self {
        use std::fmt::Write as _;
        let bytes = given.encode();
        let mut text = String::with_capacity(2 * bytes.len());
        for byte in bytes {
            let _ = write!(text, "{byte:02x}");
        }
        Self {
            version: VERSION,
            manifest,
            given: text,
        }
    }

    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self)
            .map_err(|e| Failure::usage(format!("the machine has no form to be told of: {e}")))
    }

    /// What these bytes say; the text says why nothing.
    pub(crate) fn parse(bytes: &[u8]) -> std::result::Result<Self, String> {
        #[derive(Deserialize)]
        struct Which {
            version: u32,
        }
        let which: Which = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if which.version != VERSION {
            return Err(format!(
                "the machine is offered in version {}; this program knows version {VERSION}",
                which.version
            ));
        }
        serde_json::from_slice(bytes).map_err(|e| e.to_string())
    }

    fn given(&self) -> std::result::Result<HostFacts, String> {
        let digits = self.given.as_bytes().chunks(2).map(|pair| {
            let pair = std::str::from_utf8(pair).ok()?;
            u8::from_str_radix(pair, 16).ok()
        });
        let bytes: Option<Vec<u8>> = digits.collect();
        let bytes = bytes.ok_or("what it was told of its host is damaged")?;
        HostFacts::decode(&bytes).map_err(|e| e.to_string())
    }

    /// Whether the machine can be the one that `vm` describes, here; the text says why not.
    pub(crate) fn fits(&self, vm: &Description) -> std::result::Result<(), String> {
        self.manifest
            .fits(vm)
            .map_err(|why| format!("the machine is another one than is described here: {why}"))?;
        let here = vmm::host_facts().map_err(|e| e.to_string())?;
        here.takes(&self.given()?).map_err(|e| e.to_string())?;
        for (saved, wanted) in self.manifest.disks.iter().zip(&vm.disks) {
            disk(saved, wanted)?;
        }
        starts(vm).map_err(|failure| failure.what)
    }
}

/// Whether a disk can come to where it is wanted, or is there if the machine only reads it.
fn disk(saved: &SavedDisk, wanted: &Disk) -> std::result::Result<(), String> {
    let path = &wanted.path;
    if saved.read_only() {
        let here = SavedDisk {
            image: path.clone(),
            ..saved.clone()
        };
        let format = wanted.format.map(crate::plan::format_name);
        return disks::identity(&here, format).map_err(|_| {
            format!(
                "{}: is not the disk that the machine reads as {}; bring a copy of it there",
                path.display(),
                saved.name
            )
        });
    }
    let vhdx = ImageFormat::of_path(path) == ImageFormat::Vhdx;
    if vhdx != saved.version.is_some() {
        return Err(format!(
            "{}: its suffix says another format than the disk {} has",
            path.display(),
            saved.name
        ));
    }
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    if !folder.unwrap_or(Path::new(".")).is_dir() {
        return Err(format!("{}: its folder does not exist", path.display()));
    }
    let record = load_record(&sidecar_path(path)).map_err(|e| e.to_string())?;
    if record.is_none() && path.exists() {
        return Err(format!("{}: is there already", path.display()));
    }
    Ok(())
}

/// Whether what the machine needs of this host besides is there.
fn starts(vm: &Description) -> Result<()> {
    let mut needed = vm.boot.initrd.iter().collect::<Vec<_>>();
    if let Kernel::File(kernel) = &vm.boot.kernel {
        needed.push(kernel);
    }
    for path in needed {
        if !path.is_file() {
            let what = format!(
                "{}: is not there, and a reset would need it",
                path.display()
            );
            return Err(Failure::usage(what));
        }
    }
    for network in &vm.networks {
        Tap::open(&network.tap, network.mtu).map_err(|error| cannot(&error))?;
    }
    Ok(())
}
