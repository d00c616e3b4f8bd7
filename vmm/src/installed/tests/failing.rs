//! Disks that cannot be read: that is told as what it is.

use super::*;

/// A disk that cannot be read from some place on.
struct Failing {
    file: FileDisk,
    from: u64,
}

impl BootDisk for Failing {
    fn size(&self) -> u64 {
        self.file.size()
    }

    fn sector(&self) -> u32 {
        self.file.sector()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        if offset + into.len() as u64 > self.from {
            return Err(std::io::Error::other("a scratch"));
        }
        self.file.read_at(offset, into)
    }
}

/// What is said of a disk that cannot be read from `from` on.
fn failing(path: &Path, from: u64) -> Error {
    let file = FileDisk {
        file: File::open(path).unwrap(),
        sector: 512,
    };
    let files = Files {
        kernel: Box::new(std::io::sink()),
        initrd: Box::new(std::io::sink()),
    };
    load(Arc::new(Failing { file, from }), files).unwrap_err()
}

/// The checksum of headers of GUID partition tables.
fn crc32(bytes: &[u8]) -> u32 {
    let bits = |sum: u32| (0..8).fold(sum, |sum, _| (sum >> 1) ^ (0xEDB8_8320 * (sum & 1)));
    !bytes
        .iter()
        .fold(u32::MAX, |sum, byte| bits(sum ^ u32::from(*byte)))
}

#[test]
fn what_the_disk_says_is_not_taken_for_what_is_on_it() {
    let root = Root::new();
    let path = disk(&root.image(32, &[]), GPT_ROOT, 512);
    for from in [0, 1 << 20, 2 << 20] {
        let error = failing(&path, from);
        assert_eq!(error.kind(), ErrorKind::Host, "{error}");
        assert!(error.to_string().contains("a scratch"), "{error}");
    }
    // The entries of the table lie where nothing can be read.
    let file = File::options().read(true).write(true).open(&path);
    let file = file.unwrap();
    let mut header = [0; 92];
    file.read_exact_at(&mut header, 512).unwrap();
    header[72..80].copy_from_slice(&4096_u64.to_le_bytes());
    header[16..20].fill(0);
    let sum = crc32(&header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    file.write_all_at(&header, 512).unwrap();
    let error = failing(&path, 1 << 20);
    assert_eq!(error.kind(), ErrorKind::Host, "{error}");
}
