//! File systems that were not shut down cleanly: what their journals hold counts, and nothing else does.

use super::*;

const BLOCK: u64 = 4096;
/// Checksums of metadata, and with them of the journal, or neither.
const SUMS: [&[&str]; 2] = [
    &["-b", "4096"],
    &["-b", "4096", "-O", "^metadata_csum,^64bit"],
];

/// An image, and what debugfs does to it.
struct Unclean {
    image: PathBuf,
}

impl Unclean {
    fn new(root: &Root, options: &[&str]) -> Self {
        let image = root.image(64, options);
        Self { image }
    }

    fn debugfs(&self, commands: &str) -> String {
        program(
            "debugfs",
            &["-w", "-f", "-", self.image.to_str().unwrap()],
            commands,
        )
    }

    /// The blocks of a file.
    fn blocks(&self, of: &str) -> Vec<u64> {
        let said = self.debugfs(&format!("blocks {of}\n"));
        let list = said
            .lines()
            .rfind(|line| !line.starts_with("debugfs"))
            .unwrap();
        let blocks = list.split_ascii_whitespace();
        blocks.map(|block| block.parse().unwrap()).collect()
    }

    /// A file with a block that begins like this.
    fn content(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.image.with_extension(name);
        let mut block = bytes.to_vec();
        block.resize(BLOCK as usize, 0);
        fs::write(&path, block).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn kernel(&self) -> Vec<u8> {
        let (installed, kernel, _) = found_in(&self.image, 512).unwrap();
        assert_eq!(installed.remarks, [""; 0]);
        kernel
    }
}

const PATH: &str = "/boot/vmlinuz-6.1.0-18-cloud-amd64";

#[test]
fn what_was_committed_to_the_journal_counts_as_if_it_had_been_replayed() {
    for options in SUMS {
        let root = Root::new();
        let unclean = Unclean::new(&root, options);
        let block = unclean.blocks(PATH)[0];
        let one = unclean.content("one", b"the one!");
        let two = unclean.content("two", b"the two!");
        let magic = unclean.content("magic", &[&journal::MAGIC[..], b"abcd"].concat());
        assert_eq!(unclean.kernel(), KERNEL);
        unclean.debugfs(&format!("jo\njw -b {block} {one}\njc\n"));
        assert_eq!(unclean.kernel(), b"the one!", "{options:?}");
        unclean.debugfs(&format!("jo\njw -b {block} {two}\njc\n"));
        assert_eq!(unclean.kernel(), b"the two!", "{options:?}");
        unclean.debugfs(&format!("jo\njw -b {block} {magic}\njc\n"));
        assert_eq!(unclean.kernel(), [&journal::MAGIC[..], b"abcd"].concat());
        unclean.debugfs(&format!("jo\njw -r {block}\njc\n"));
        assert_eq!(unclean.kernel(), KERNEL, "{options:?}");
        unclean.debugfs(&format!("jo\njw -b {block} {one}\njc\n"));
        assert_eq!(unclean.kernel(), b"the one!", "{options:?}");
        // And so does the program see it that repairs file systems.
        program(
            "e2fsck",
            &["-fy", "-E", "journal_only", unclean.image.to_str().unwrap()],
            "",
        );
        assert_eq!(unclean.kernel(), b"the one!", "{options:?}");
    }
}

#[test]
fn a_transaction_that_was_not_committed_does_not_count() {
    for options in SUMS {
        let root = Root::new();
        let unclean = Unclean::new(&root, options);
        let block = unclean.blocks(PATH)[0];
        let one = unclean.content("one", b"the one!");
        let two = unclean.content("two", b"the two!");
        unclean.debugfs(&format!("jo\njw -b {block} {one}\njc\n"));
        unclean.debugfs(&format!("jo\njw -c -b {block} {two}\njc\n"));
        assert_eq!(unclean.kernel(), b"the one!", "{options:?}");
    }
}

/// A block of a journal without checksums.
fn journal_block(kind: u32, sequence: u32, rest: &[u32]) -> Vec<u8> {
    let fields = [kind, sequence].into_iter().chain(rest.iter().copied());
    let mut block = journal::MAGIC.to_vec();
    block.extend(fields.flat_map(u32::to_be_bytes));
    block
}

#[test]
fn a_journal_that_goes_on_at_its_beginning_is_read_to_its_end() {
    let root = Root::new();
    let unclean = Unclean::new(&root, SUMS[1]);
    let block = unclean.blocks(PATH)[0];
    let log = unclean.blocks("<8>");
    unclean.debugfs("feature needs_recovery\n");
    let file = File::options()
        .read(true)
        .write(true)
        .open(&unclean.image)
        .unwrap();
    let put = |at: u64, bytes: &[u8]| file.write_all_at(bytes, at).unwrap();
    let mut length = [0; 4];
    file.read_exact_at(&mut length, log[0] * BLOCK + 0x10)
        .unwrap();
    let last = u32::from_be_bytes(length) as usize - 1;
    put(log[0] * BLOCK + 0x18, &7_u32.to_be_bytes());
    put(log[0] * BLOCK + 0x1C, &(last as u32).to_be_bytes());
    // A tag's flags: the last one, and no UUID behind it.
    let descriptor = journal_block(1, 7, &[block as u32, 0xA]);
    put(log[last] * BLOCK, &descriptor);
    put(log[1] * BLOCK, b"round it");
    assert_eq!(unclean.kernel(), KERNEL);
    put(log[2] * BLOCK, &journal_block(2, 7, &[]));
    assert_eq!(unclean.kernel(), b"round it");
}

#[test]
fn a_journal_that_cannot_be_read_is_told_and_what_is_there_is_read() {
    let root = Root::new();
    let unclean = Unclean::new(&root, SUMS[1]);
    unclean.debugfs("feature needs_recovery\n");
    let log = unclean.blocks("<8>");
    let file = File::options().write(true).open(&unclean.image).unwrap();
    file.write_all_at(&[0; 16], log[0] * BLOCK).unwrap();
    let (installed, kernel, _) = found_in(&unclean.image, 512).unwrap();
    assert_eq!(kernel, KERNEL);
    let [remark] = &installed.remarks[..] else {
        panic!("{:?}", installed.remarks)
    };
    assert!(remark.contains("not shut down cleanly"), "{remark}");
}

/// A file system whose journal, of 8 MiB and without checksums, begins at its first block with transaction 7.
struct Hostile {
    unclean: Unclean,
    file: File,
    /// The blocks of its journal.
    log: Vec<u64>,
}

impl Hostile {
    fn new(root: &Root) -> Self {
        let options = [SUMS[1], &["-J", "size=8"]].concat();
        let unclean = Unclean::new(root, &options);
        let log = unclean.blocks("<8>");
        unclean.debugfs("feature needs_recovery\n");
        let mut options = File::options();
        let file = options.read(true).write(true).open(&unclean.image);
        let file = file.unwrap();
        let hostile = Self { unclean, file, log };
        hostile.put(hostile.log[0] * BLOCK + 0x18, &7_u32.to_be_bytes());
        hostile.put(hostile.log[0] * BLOCK + 0x1C, &1_u32.to_be_bytes());
        hostile
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, at).unwrap();
    }

    /// Replaces the extents of the journal by these: the first block, how many, where they are.
    fn put_extents(&self, extents: &[(u32, u16, u64)]) {
        let mut table = [0; 4];
        // The descriptor of the first group has the place of its inodes.
        self.file.read_exact_at(&mut table, BLOCK + 8).unwrap();
        let mut bytes = vec![0x0A, 0xF3, extents.len() as u8, 0, 4, 0, 0, 0, 0, 0, 0, 0];
        for (logical, blocks, physical) in extents {
            bytes.extend(logical.to_le_bytes());
            bytes.extend(blocks.to_le_bytes());
            bytes.extend([0; 2]);
            bytes.extend((*physical as u32).to_le_bytes());
        }
        let inode = u64::from(u32::from_le_bytes(table)) * BLOCK + 7 * 256;
        self.put(inode + 0x28, &bytes);
    }

    /// The disk is read as if there were no journal, which is told in these words.
    #[track_caller]
    fn is_passed_over(&self, why: &str) {
        let (installed, kernel, _) = found_in(&self.unclean.image, 512).unwrap();
        assert_eq!(kernel, KERNEL);
        let [remark] = &installed.remarks[..] else {
            panic!("{:?}", installed.remarks)
        };
        assert!(remark.contains(why), "{remark}");
    }
}

#[test]
fn a_journal_that_revokes_without_end_takes_no_memory_without_end() {
    let root = Root::new();
    let hostile = Hostile::new(&root);
    let each = 1020;
    let revoking = &hostile.log[1..];
    let enough = (1 << 20) / each as usize + 2;
    assert!(revoking.len() > enough);
    for (place, block) in (0..).zip(&revoking[..enough]) {
        let revoked = (0..each).map(|of| place * each + of);
        let rest: Vec<u32> = [BLOCK as u32].into_iter().chain(revoked).collect();
        hostile.put(block * BLOCK, &journal_block(5, 7, &rest));
    }
    hostile.is_passed_over("revokes more blocks");
}

#[test]
fn a_journal_is_nowhere_twice_and_nowhere_outside() {
    let root = Root::new();
    let hostile = Hostile::new(&root);
    let (first, blocks) = (hostile.log[0], hostile.log.len() as u16);
    let block = hostile.unclean.blocks(PATH)[0];
    let descriptor = journal_block(1, 7, &[block as u32, 0xA]);
    hostile.put((first + 1) * BLOCK, &descriptor);
    hostile.put((first + 2) * BLOCK, b"the one!");
    hostile.put((first + 3) * BLOCK, &journal_block(2, 7, &[]));
    assert_eq!(hostile.unclean.kernel(), b"the one!");
    hostile.put_extents(&[(0, 8, first), (8, blocks - 8, first + 8)]);
    assert_eq!(hostile.unclean.kernel(), b"the one!");
    for extents in [
        [(0, 8, first), (8, blocks - 8, first + 7)],
        [(0, 8, first), (7, blocks - 8, first + 8)],
        [(0, 8, first), (8, 0x8001, first + 8)],
        [(0, 8, first), (8, 0, first + 8)],
        [(0, 8, first), (8, blocks - 8, (64 << 20) / BLOCK - 8)],
    ] {
        hostile.put_extents(&extents);
        hostile.is_passed_over("its journal");
    }
    // The copy of a block lies outside, which nobody looks at before it is needed.
    hostile.put_extents(&[(0, 2, first), (2, 8, 1 << 30)]);
    hostile.is_passed_over("its journal");
}

#[test]
fn a_journal_that_is_longer_than_any_is_not_read_as_a_shorter_one() {
    let root = Root::new();
    let hostile = Hostile::new(&root);
    let length = (1_u32 << 20) + 1;
    hostile.put(hostile.log[0] * BLOCK + 0x10, &length.to_be_bytes());
    hostile.is_passed_over("longer than any");
}

#[test]
fn a_journal_that_cuts_its_file_system_off_does_not_end_the_search() {
    let (harmed, whole) = (Root::new(), Root::new());
    // Without gaps between the tables, which its journal would fill.
    let options = ["-b", "4096", "-O", "^metadata_csum,^64bit,^flex_bg"];
    let unclean = Unclean::new(&harmed, &options);
    let log = unclean.blocks("<8>");
    let bytes = fs::read(&unclean.image).unwrap();
    let block = |number: u64| bytes[(number * BLOCK) as usize..][..BLOCK as usize].to_vec();
    let inodes = u64::from(u32::from_le_bytes(block(1)[8..12].try_into().unwrap()));
    assert!(inodes < log[0]);
    let mut first = block(0);
    // The file system ends where its journal begins, and its first inodes are in the journal.
    first[1024 + 4..][..4].copy_from_slice(&(log[0] as u32).to_le_bytes());
    let first = unclean.content("first", &first);
    let inode = unclean.content("inodes", &block(inodes));
    unclean.debugfs(&format!(
        "jo\njw -b 0 {first}\njw -b {inodes} {inode}\njc\n"
    ));
    let path = unclean.image.with_extension("two");
    let file = File::create(&path).unwrap();
    file.set_len(128 << 20).unwrap();
    let table =
        "label: dos\nstart=1MiB, size=64MiB, type=83, bootable\nstart=80MiB, size=32MiB, type=83";
    program("sfdisk", &["-q", path.to_str().unwrap()], table);
    let bytes = fs::read(&unclean.image).unwrap();
    file.write_all_at(&bytes, 1 << 20).unwrap();
    let bytes = fs::read(whole.image(32, &[])).unwrap();
    file.write_all_at(&bytes, 80 << 20).unwrap();
    let (installed, kernel, _) = found_in(&path, 512).unwrap();
    assert_eq!(
        (installed.partition.as_str(), kernel.as_slice()),
        ("partition 2", KERNEL)
    );
}
