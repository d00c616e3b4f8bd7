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
