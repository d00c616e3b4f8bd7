//! Installed disks: sound ones, made by the programs that make such disks, with bytes of them changed.
//!
//! What must hold: reading ends, asks for nothing outside of the disk, and what it finds keeps the limits.
//! The library ext4-view may panic on what it reads, and is contained; nothing else may.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};

use arbitrary::{Arbitrary, Unstructured};
use vmm::installed::{BootDisk, Files, load};

/// Blocks of the images.
const BLOCK: usize = 1024;
/// What mkfs.ext4 is told for each of them: with checksums and without, which are worth most here, as every
/// change is believed; in extents and in lists of blocks; with descriptors in their own groups.
const OPTIONS: [&str; 4] = [
    "^metadata_csum,^64bit,^resize_inode",
    "^extents,^metadata_csum,^64bit,^resize_inode",
    "^metadata_csum,^64bit,meta_bg,^resize_inode",
    "metadata_csum,64bit,^resize_inode",
];
const GRUB: &str = "set default=\"${saved_entry}\"\nif [ -s $prefix/grubenv ]; then\nload_env\nfi\n\
                    submenu 'more' --id more {\nmenuentry 'x' --id x {\nsearch --fs-uuid --set=root 1\n\
                    linux ($root)/boot/vmlinuz-1 root=/dev/vda1 ro $more 'a b'\ninitrd /boot/initrd.img-1\n}\n}\n";

#[derive(Arbitrary, Debug)]
struct Plan {
    base: u8,
    changes: Vec<Change>,
    end: Option<u16>,
}

#[derive(Arbitrary, Debug)]
struct Change {
    /// Which of the blocks that are not empty.
    block: u8,
    at: u16,
    what: What,
}

#[derive(Arbitrary, Debug)]
enum What {
    Byte(u8),
    Word(u32),
    Small(u8),
    Block(u8),
    Text(String),
}

/// An image, and which of its blocks hold anything.
struct Base {
    bytes: Vec<u8>,
    blocks: Vec<usize>,
}

struct Spoilt {
    base: &'static Base,
    changes: Vec<(usize, Vec<u8>)>,
    size: u64,
}

impl BootDisk for Spoilt {
    fn size(&self) -> u64 {
        self.size
    }

    fn sector(&self) -> u32 {
        512
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        assert!(offset + into.len() as u64 <= self.size, "outside");
        let offset = offset as usize;
        into.copy_from_slice(&self.base.bytes[offset..offset + into.len()]);
        for (at, bytes) in &self.changes {
            for (at, byte) in (*at..).zip(bytes) {
                if let Some(place) = at.checked_sub(offset).and_then(|at| into.get_mut(at)) {
                    *place = *byte;
                }
            }
        }
        Ok(())
    }
}

fn program(name: &str, words: &[&str], input: &str) {
    let mut child = Command::new(format!("/usr/sbin/{name}"))
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| panic!("{name}: {e}; scripts/setup.sh installs it"));
    let mut typed = child.stdin.take().expect("a pipe");
    typed.write_all(input.as_bytes()).expect("it reads");
    drop(typed);
    assert!(child.wait().expect("it ends").success(), "{name} {words:?}");
}

/// Makes an image in `folder`; the first two have a journal that was not emptied, the last two a partition.
fn image(folder: &Path, number: usize) -> Base {
    let path = folder.join("image");
    let file = fs::File::create(&path).expect("a file");
    file.set_len(3 << 20).expect("a file");
    let name = path.to_str().expect("a name");
    let tree = folder.join("tree");
    let mut words = vec![
        "-q", "-F", "-b", "1024", "-I", "256", "-N", "64", "-g", "1024",
    ];
    words.extend(["-d", tree.to_str().expect("a name"), "-O", OPTIONS[number]]);
    if number < 2 {
        words.extend(["-J", "size=1"]);
    } else {
        words.extend(["-O", "^has_journal"]);
    }
    words.push(name);
    program("mkfs.ext4", &words, "");
    if number < 2 {
        let block = folder.join("block");
        fs::write(&block, [0; BLOCK]).expect("a file");
        let script = format!("jo\njw -b 2900,2901 {0}\njw -r 2900\njc\n", block.display());
        program("debugfs", &["-w", "-f", "-", name], &script);
    }
    let mut bytes = fs::read(&path).expect("the image");
    if number >= 2 {
        file.set_len(0).expect("a file");
        file.set_len(5 << 20).expect("a file");
        let label = if number == 2 { "gpt" } else { "dos" };
        let table = format!("label: {label}\nstart=1MiB, size=3MiB\n");
        program("sfdisk", &["-q", name], &table);
        file.write_all_at(&bytes, 1 << 20).expect("a file");
        bytes = fs::read(&path).expect("the image");
    }
    let blocks = bytes.chunks(BLOCK).enumerate();
    let used = blocks.filter(|(_, block)| block.iter().any(|byte| *byte != 0));
    Base {
        blocks: used.map(|(number, _)| number).collect(),
        bytes,
    }
}

fn bases() -> &'static [Base] {
    static BASES: OnceLock<Vec<Base>> = OnceLock::new();
    BASES.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("boot-from-disk-{}", std::process::id()));
        for inside in ["boot/grub", "boot/loader/entries"] {
            fs::create_dir_all(folder.join("tree").join(inside)).expect("a folder");
        }
        let put = |name: &str, text: &str| {
            fs::write(folder.join("tree/boot").join(name), text).expect("a file");
        };
        put("grub/grub.cfg", GRUB);
        put("grub/grubenv", "# GRUB\nsaved_entry=more>x\nmore=quiet\n");
        put("vmlinuz-1", &"kernel".repeat(2000));
        put("initrd.img-1", "initrd");
        put(
            "loader/entries/a.conf",
            "title a\nlinux /vmlinuz-1\noptions $more",
        );
        for number in 0..40 {
            put(&format!("a-file-of-a-longer-name-{number}"), "");
        }
        for (link, to) in [
            ("vmlinuz", "boot/vmlinuz-1"),
            ("initrd.img", "/boot/../initrd.img"),
        ] {
            std::os::unix::fs::symlink(to, folder.join("tree").join(link)).expect("a link");
        }
        let bases = (0..OPTIONS.len()).map(|number| image(&folder, number));
        let bases = bases.collect();
        fs::remove_dir_all(&folder).expect("a folder");
        contain();
        bases
    })
}

/// A panic of the library goes its way; every other one is what it was before.
fn contain() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panicked| {
        let place = panicked.location().map_or("", |place| place.file());
        if !place.contains("ext4-view") {
            before(panicked);
        }
    }));
}

fn spoilt(plan: &Plan) -> Spoilt {
    let base = &bases()[usize::from(plan.base) % OPTIONS.len()];
    let changes = plan.changes.iter().take(64).map(|change| {
        let block = base.blocks[usize::from(change.block) % base.blocks.len()];
        let at = block * BLOCK + usize::from(change.at) % BLOCK;
        let bytes = match &change.what {
            What::Byte(byte) => vec![*byte],
            What::Word(word) => word.to_le_bytes().to_vec(),
            What::Small(number) => u32::from(*number).to_le_bytes().to_vec(),
            What::Block(which) => {
                let other = base.blocks[usize::from(*which) % base.blocks.len()];
                (other as u32).to_le_bytes().to_vec()
            }
            What::Text(text) => text.as_bytes().to_vec(),
        };
        (at, bytes)
    });
    let len = base.bytes.len();
    let cut = plan.end.map(|end| usize::from(end) * 512 % len);
    Spoilt {
        base,
        changes: changes.collect(),
        size: cut.unwrap_or(len) as u64,
    }
}

/// The body.
pub fn run(data: &[u8]) {
    let Ok(plan) = Plan::arbitrary_take_rest(Unstructured::new(data)) else {
        return;
    };
    let disk = Arc::new(spoilt(&plan));
    let files = Files {
        kernel: Box::new(io::sink()),
        initrd: Box::new(io::sink()),
    };
    match load(disk, files) {
        Ok(found) => {
            assert!(found.kernel_bytes <= 512 << 20 && found.initrd_bytes <= 1 << 30);
            assert!(!found.kernel.is_empty());
        }
        Err(error) => {
            let said = error.to_string();
            assert!(!said.contains("circles"), "it never ends: {said}");
            assert!(!plan.changes.is_empty() || plan.end.is_some(), "{said}");
        }
    }
}
