//! What the folder of a snapshot says of itself: `snapshot.json`, written last.
//!
//! Whatever it does not know is refused: a field that a later version needs must not be passed over.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vmm::description::Description;

use crate::failure::{Exit, Failure, Result};

/// The only version.
const VERSION: u32 = 1;
const FORMAT: &str = "diskferry-machine";

/// A snapshot of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// Always "diskferry-machine".
    format: String,
    version: u32,
    /// The file `memory` carries the same.
    pub(crate) id: Uuid,
    /// Seconds since 1970.
    pub(crate) time: u64,
    /// The file that described the machine; a copy of it is in the folder.
    pub(crate) machine: PathBuf,
    pub(crate) vcpus: u8,
    /// Bytes.
    pub(crate) memory: u64,
    pub(crate) state: StateFile,
    pub(crate) disks: Vec<SavedDisk>,
    #[serde(default)]
    pub(crate) networks: Vec<SavedNetwork>,
}

/// A network device, in the order of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedNetwork {
    /// The tap of the host that it was on.
    pub(crate) tap: String,
    pub(crate) mac: [u8; 6],
}

/// The file `machine.state`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StateFile {
    pub(crate) bytes: u64,
    /// BLAKE3 of it, in hexadecimal digits.
    pub(crate) blake3: String,
}

/// A disk, in the order of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedDisk {
    pub(crate) name: String,
    /// Where the machine had it.
    pub(crate) path: PathBuf,
    pub(crate) queues: u8,
    /// Bytes of the disk.
    pub(crate) size: u64,
    /// What holds the disk as it was.
    pub(crate) image: PathBuf,
    /// The version of its data (`DataWriteGuid`); a raw image has none.
    pub(crate) version: Option<String>,
    /// Of a disk that the machine writes: the version of the disk built on `image` until it is written.
    pub(crate) child: Option<String>,
}

impl SavedDisk {
    /// Whether the machine does not write it.
    pub(crate) fn read_only(&self) -> bool {
        self.child.is_none()
    }
}

impl Manifest {
    /// Of a machine that `machine` describes.
    pub(crate) fn new(
        (machine, vm): (&Path, &Description),
        (id, time): (Uuid, u64),
        state: &[u8],
        (disks, networks): (Vec<SavedDisk>, Vec<SavedNetwork>),
    ) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            id,
            time,
            machine: machine.to_owned(),
            vcpus: vm.vcpus,
            memory: vm.memory,
            state: StateFile::of(state),
            disks,
            networks,
        }
    }

    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        let text = serde_json::to_vec_pretty(self);
        text.map_err(|e| Failure::new(Exit::Failed, format!("the manifest has no form: {e}")))
    }

    /// What these bytes say; the text says why nothing.
    pub(crate) fn parse(bytes: &[u8]) -> std::result::Result<Self, String> {
        #[derive(Deserialize)]
        struct Which {
            format: String,
            version: u32,
        }
        let which: Which = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if which.format != FORMAT {
            return Err("is not of a machine".to_owned());
        }
        if which.version != VERSION {
            return Err(format!(
                "is of version {}; this program reads version {VERSION}",
                which.version
            ));
        }
        serde_json::from_slice(bytes).map_err(|error| error.to_string())
    }

    /// Refuse to bring it back as the machine that `vm` describes, if that is another one.
    pub(crate) fn fits(&self, vm: &Description) -> std::result::Result<(), String> {
        if (self.vcpus, self.memory) != (vm.vcpus, vm.memory) {
            return Err(format!(
                "it has {} processors and {} bytes of memory",
                self.vcpus, self.memory
            ));
        }
        self.fits_networks(vm)?;
        let saved = self
            .disks
            .iter()
            .map(|disk| (&disk.name, disk.read_only(), disk.queues));
        let wanted = vm
            .disks
            .iter()
            .map(|disk| (&disk.name, disk.read_only, disk.queues));
        if saved.clone().eq(wanted) {
            return Ok(());
        }
        let disk = |(name, read_only, queues): (&String, bool, u8)| {
            let how = if read_only { ", read_only" } else { "" };
            format!("{name} ({queues} queues{how})")
        };
        let disks: Vec<String> = saved.map(disk).collect();
        Err(format!("its disks are: {}", disks.join(", ")))
    }

    /// Taps may have other names on another host. An address that nobody chose is the one that it had.
    fn fits_networks(&self, vm: &Description) -> std::result::Result<(), String> {
        let pairs = self.networks.iter().zip(&vm.networks);
        let mut given = pairs.filter_map(|(saved, wanted)| Some((saved.mac, wanted.mac?)));
        if self.networks.len() == vm.networks.len() && given.all(|(saved, mac)| saved == mac) {
            return Ok(());
        }
        let network = |saved: &SavedNetwork| format!("{} ({})", saved.tap, mac_in_words(saved.mac));
        let networks: Vec<String> = self.networks.iter().map(network).collect();
        Err(format!("its networks are: [{}]", networks.join(", ")))
    }
}

/// As it is written in `vm.toml`.
pub(crate) fn mac_in_words(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

impl StateFile {
    /// A file of these bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.len() as u64,
            blake3: blake3::hash(bytes).to_hex().to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(disks: &str) -> Description {
        on(disks, "tap='tap0'")
    }

    fn on(disks: &str, network: &str) -> Description {
        let text = format!(
            "vcpus=2\nmemory='64M'\nboot.kernel='k'\ndisk=[{disks}]\n[[network]]\n{network}"
        );
        Description::parse(&text, "/vm".as_ref()).unwrap()
    }

    fn manifest() -> Manifest {
        let disk = |name: &str, child: Option<&str>| SavedDisk {
            name: name.to_owned(),
            path: format!("/vm/{name}.vhdx").into(),
            queues: 2,
            size: 1 << 30,
            image: format!("/vm/{name}.one.vhdx").into(),
            version: Some("v".to_owned()),
            child: child.map(str::to_owned),
        };
        let disks = vec![disk("a", Some("c")), disk("b", None)];
        let vm = described("");
        let about = (Path::new("/vm/vm.toml"), &vm);
        let networks = vec![SavedNetwork {
            tap: "tap7".to_owned(),
            mac: [2, 0, 0, 0, 0, 7],
        }];
        Manifest::new(about, (Uuid::nil(), 7), b"state", (disks, networks))
    }

    #[test]
    fn what_was_written_is_read_and_what_is_not_known_is_refused() {
        let manifest = manifest();
        let bytes = manifest.to_bytes().unwrap();
        assert_eq!(Manifest::parse(&bytes), Ok(manifest));
        let text = String::from_utf8(bytes).unwrap();
        for (from, to, named) in [
            ("\"version\": 1", "\"version\": 2", "version 2"),
            ("diskferry-machine", "another", "not of a machine"),
            ("\"vcpus\"", "\"more\": 1, \"vcpus\"", "more"),
            ("\"queues\": 2", "\"queues\": 256", "256"),
            ("{", "", "expected"),
        ] {
            let changed = text.replacen(from, to, 1);
            let why = Manifest::parse(changed.as_bytes()).unwrap_err();
            assert!(why.contains(named), "{named} in: {why}");
        }
    }

    #[test]
    fn a_machine_comes_back_as_itself_only() {
        let manifest = manifest();
        let same = "{path='a.vhdx'},{path='b.vhdx',read_only=true}";
        assert_eq!(manifest.fits(&described(same)), Ok(()));
        for other in [
            "",
            "{path='b.vhdx',read_only=true},{path='a.vhdx'}",
            "{path='a.vhdx'},{path='b.vhdx'}",
            "{path='a.vhdx',queues=1},{path='b.vhdx',read_only=true}",
        ] {
            let why = manifest.fits(&described(other)).unwrap_err();
            assert!(why.contains("b (2 queues, read_only)"), "{why}");
        }
        for (network, here) in [
            ("tap='other'\nmac='02:00:00:00:00:07'", true),
            ("tap='tap7'\nmac='02:00:00:00:00:08'", false),
            ("tap='tap7'\n[[network]]\ntap='tap8'", false),
        ] {
            let fits = manifest.fits(&on(same, network));
            assert_eq!(fits.is_ok(), here, "{network}");
            let why = fits.err().unwrap_or_default();
            assert!(here || why.contains("tap7 (02:00:00:00:00:07)"), "{why}");
        }
        let mut larger = described(same);
        larger.memory *= 2;
        assert!(manifest.fits(&larger).unwrap_err().contains("67108864"));
    }
}
