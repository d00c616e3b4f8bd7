//! Which of the kernels in a file system is started.
//!
//! Machine: asks for texts, names and files, and decides. The order is that of boot loaders: what GRUB's
//! configuration says, then the entries of the Boot Loader Specification, then Debian's links to the newest
//! kernel, then the newest by name. Whatever names a kernel that is not there is passed over and told.

use super::{entries, grub, release};
use crate::Result;

/// Bytes of a configuration, at most.
const MOST_TEXT: u64 = 1 << 20;
/// Entries that are read, at most.
const MOST_ENTRIES: usize = 256;
/// Folders that hold what a boot loader needs: of a root file system, and of one that is for this alone.
const FOLDERS: [&str; 2] = ["/boot", ""];

/// How the names of kernels end that were replaced, or are being unpacked.
const LEFT_OVER: [&str; 3] = [".old", ".dpkg-new", ".dpkg-tmp"];

/// What named the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// GRUB's configuration.
    Grub,
    /// An entry of the Boot Loader Specification.
    LoaderEntry,
    /// The links `vmlinuz` and `initrd.img`.
    Links,
    /// Nothing; it has the highest version.
    Newest,
}

impl Source {
    /// In a word, for programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Grub => "grub",
            Self::LoaderEntry => "loader_entry",
            Self::Links => "links",
            Self::Newest => "newest",
        }
    }
}

/// A file system, as far as this has to see it. Paths are absolute; links are followed inside of it.
pub(super) trait Tree {
    /// The text of a file, or `None` if there is no file. Longer ones are an error.
    fn text(&self, path: &str, most: u64) -> Result<Option<String>>;
    /// The names in a folder, in any order; none if it is no folder.
    fn names(&self, path: &str) -> Result<Vec<String>>;
    /// Whether there is a file.
    fn is_file(&self, path: &str) -> Result<bool>;
}

/// What is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) source: Source,
    pub(super) title: Option<String>,
    pub(super) kernel: String,
    pub(super) initrds: Vec<String>,
    pub(super) arguments: String,
    /// UUID of the file system that the files are in, if it is another one.
    pub(super) volume: Option<String>,
}

/// What was looked at, and what was strange about it.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) looked: Vec<String>,
    pub(super) remarks: Vec<String>,
}

/// Choose in the file system `tree` of this UUID; `others` are the UUIDs of those beside it.
pub(super) fn choose(
    tree: &impl Tree,
    (uuid, others): (&str, &[&str]),
    seen: &mut Seen,
) -> Result<Option<Choice>> {
    for folder in FOLDERS {
        if let Some(choice) = by_grub(tree, (folder, others), seen)? {
            return Ok(Some(choice));
        }
        if let Some(choice) = by_entries(tree, (folder, "", &grub::read("", None)), seen)? {
            return Ok(Some(choice));
        }
    }
    let choice = match by_links(tree, seen)? {
        None => by_version(tree, seen)?,
        found => found,
    };
    Ok(choice.map(|choice| Choice {
        arguments: format!("root=UUID={uuid} ro"),
        ..choice
    }))
}

fn by_grub(
    tree: &impl Tree,
    (folder, others): (&str, &[&str]),
    seen: &mut Seen,
) -> Result<Option<Choice>> {
    for name in ["grub", "grub2"] {
        let path = format!("{folder}/{name}/grub.cfg");
        seen.looked.push(path.clone());
        let Some(text) = tree.text(&path, MOST_TEXT)? else {
            continue;
        };
        let saved = tree.text(&format!("{folder}/{name}/grubenv"), MOST_TEXT)?;
        let menu = grub::read(&text, saved.as_deref());
        if menu.by_entries && menu.entry.is_none() {
            let default = menu.default.clone();
            return by_entries(tree, (folder, &default, &menu), seen);
        }
        let Some(entry) = menu.entry else {
            seen.remarks.push(format!("{path} has no entry"));
            continue;
        };
        if entry.kernel.is_empty() {
            let what = format!("{path} starts `{}`, which is no Linux", entry.title);
            seen.remarks.push(what);
            continue;
        }
        let choice = Choice {
            source: Source::Grub,
            title: Some(entry.title).filter(|title| !title.is_empty()),
            kernel: entry.kernel,
            initrds: entry.initrds,
            arguments: entry.arguments,
            volume: entry.volume.filter(|uuid| others.contains(&&**uuid)),
        };
        if let Some(choice) = there(tree, choice, (&path, seen))? {
            return Ok(Some(choice));
        }
    }
    Ok(None)
}

fn by_entries(
    tree: &impl Tree,
    (folder, default, menu): (&str, &str, &grub::Menu),
    seen: &mut Seen,
) -> Result<Option<Choice>> {
    let place = format!("{folder}/loader/entries");
    let mut found = Vec::new();
    let mut names = tree.names(&place)?;
    names.retain(|name| name.strip_suffix(".conf").is_some());
    names.sort_by(|one, other| release::compare(other, one));
    for name in names.into_iter().take(MOST_ENTRIES) {
        if let Some(text) = tree.text(&format!("{place}/{name}"), MOST_TEXT)? {
            found.extend(entries::read(&name, &text, &menu.variables));
        }
    }
    seen.looked.push(format!("{place}/*.conf"));
    let loader = match default {
        "" => tree.text(&format!("{folder}/loader/loader.conf"), MOST_TEXT)?,
        default => Some(format!("default {default}")),
    };
    let default = entries::loader_default(loader.as_deref().unwrap_or(""));
    let Some(entry) = entries::default_of(found, default) else {
        return Ok(None);
    };
    let path = format!("{place}/{}.conf", entry.name);
    let choice = Choice {
        source: Source::LoaderEntry,
        title: Some(entry.title).filter(|title| !title.is_empty()),
        kernel: entry.kernel,
        initrds: entry.initrds,
        arguments: entry.arguments,
        volume: None,
    };
    there(tree, choice, (&path, seen))
}

/// The choice, if its files are there; in `/boot` if they are not where it says, since an entry may have been
/// written for a file system that is mounted there.
fn there(
    tree: &impl Tree,
    choice: Choice,
    (path, seen): (&str, &mut Seen),
) -> Result<Option<Choice>> {
    if choice.volume.is_some() {
        // Whoever reads the other file system finds out.
        return Ok(Some(choice));
    }
    for folder in ["", "/boot"] {
        let within = |path: &String| format!("{folder}/{}", path.trim_start_matches('/'));
        let kernel = within(&choice.kernel);
        if !tree.is_file(&kernel)? {
            continue;
        }
        let initrds: Vec<String> = choice.initrds.iter().map(within).collect();
        for initrd in &initrds {
            if !tree.is_file(initrd)? {
                let what = format!("{path} names the initrd {initrd}, which is not there");
                seen.remarks.push(what);
                return Ok(None);
            }
        }
        return Ok(Some(Choice {
            kernel,
            initrds,
            ..choice
        }));
    }
    let kernel = &choice.kernel;
    let what = format!("{path} names the kernel {kernel}, which is not there");
    seen.remarks.push(what);
    Ok(None)
}

fn by_links(tree: &impl Tree, seen: &mut Seen) -> Result<Option<Choice>> {
    for folder in ["", "/boot"] {
        let (kernel, initrd) = (format!("{folder}/vmlinuz"), format!("{folder}/initrd.img"));
        seen.looked.push(kernel.clone());
        if tree.is_file(&kernel)? {
            let initrds = if tree.is_file(&initrd)? {
                vec![initrd]
            } else {
                Vec::new()
            };
            return Ok(Some(bare(Source::Links, kernel, initrds)));
        }
    }
    Ok(None)
}

fn by_version(tree: &impl Tree, seen: &mut Seen) -> Result<Option<Choice>> {
    seen.looked.push("/boot/vmlinuz-*".to_owned());
    let names = tree.names("/boot")?;
    let versions = names
        .iter()
        .filter_map(|name| name.strip_prefix("vmlinuz-"));
    let newest = versions
        .filter(|version| !LEFT_OVER.iter().any(|end| version.ends_with(end)))
        .max_by(|one, other| release::compare(one, other));
    let Some(version) = newest else {
        return Ok(None);
    };
    let mut initrds = Vec::new();
    for name in [
        format!("initrd.img-{version}"),
        format!("initramfs-{version}.img"),
    ] {
        if initrds.is_empty() && names.contains(&name) {
            initrds.push(format!("/boot/{name}"));
        }
    }
    let kernel = format!("/boot/vmlinuz-{version}");
    Ok(Some(bare(Source::Newest, kernel, initrds)))
}

fn bare(source: Source, kernel: String, initrds: Vec<String>) -> Choice {
    Choice {
        source,
        title: None,
        kernel,
        initrds,
        arguments: String::new(),
        volume: None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    impl Tree for BTreeMap<&str, &str> {
        fn text(&self, path: &str, _: u64) -> Result<Option<String>> {
            Ok(self.get(path).map(|text| (*text).to_owned()))
        }

        fn names(&self, path: &str) -> Result<Vec<String>> {
            let inside = |name: &&str| Some(name.strip_prefix(path)?.strip_prefix('/')?.to_owned());
            Ok(self.keys().filter_map(inside).collect())
        }

        fn is_file(&self, path: &str) -> Result<bool> {
            Ok(self.contains_key(path))
        }
    }

    const GRUB: (&str, &str) = (
        "/boot/grub/grub.cfg",
        "menuentry x {\nlinux /boot/vmlinuz-1 root=/dev/vda1\ninitrd /boot/initrd.img-1\n}",
    );
    const KERNELS: [(&str, &str); 5] = [
        ("/boot/vmlinuz-1", ""),
        ("/boot/initrd.img-1", ""),
        ("/boot/vmlinuz-6.1.0-9", ""),
        ("/boot/vmlinuz-6.1.0-18", ""),
        ("/boot/initrd.img-6.1.0-18", ""),
    ];

    fn chosen(files: &[(&'static str, &'static str)]) -> (Option<Choice>, Seen) {
        let tree: BTreeMap<_, _> = files.iter().copied().collect();
        let mut seen = Seen::default();
        let choice = choose(&tree, ("1", &["2"]), &mut seen).unwrap();
        (choice, seen)
    }

    #[test]
    fn grub_comes_before_entries_links_and_versions() {
        let entry = (
            "/boot/loader/entries/a.conf",
            "linux /vmlinuz-6.1.0-9\noptions a",
        );
        let links = [("/vmlinuz", ""), ("/initrd.img", "")];
        let mut files = KERNELS.to_vec();
        let kernel = |files: &[_]| {
            let choice = chosen(files).0.unwrap();
            (
                choice.source,
                choice.kernel,
                choice.initrds.len(),
                choice.arguments,
            )
        };
        let newest = (
            Source::Newest,
            "/boot/vmlinuz-6.1.0-18".into(),
            1,
            "root=UUID=1 ro".into(),
        );
        assert_eq!(kernel(&files), newest);
        files.extend(links);
        let link = (Source::Links, "/vmlinuz".into(), 1, "root=UUID=1 ro".into());
        assert_eq!(kernel(&files), link);
        files.push(entry);
        let by_entry = (
            Source::LoaderEntry,
            "/boot/vmlinuz-6.1.0-9".into(),
            0,
            "a".into(),
        );
        assert_eq!(kernel(&files), by_entry);
        files.push(GRUB);
        let by_grub = (
            Source::Grub,
            "/boot/vmlinuz-1".into(),
            1,
            "root=/dev/vda1".into(),
        );
        assert_eq!(kernel(&files), by_grub);
    }

    #[test]
    fn what_names_a_kernel_that_is_gone_is_passed_over_and_told() {
        let (choice, seen) = chosen(&[GRUB, KERNELS[2]]);
        assert_eq!(choice.unwrap().kernel, "/boot/vmlinuz-6.1.0-9");
        assert!(seen.remarks[0].contains("/boot/vmlinuz-1"), "{seen:?}");
        let (choice, seen) = chosen(&[GRUB, KERNELS[0]]);
        assert_eq!(choice.unwrap().initrds, [""; 0]);
        assert!(seen.remarks[0].contains("/boot/initrd.img-1"), "{seen:?}");
    }

    #[test]
    fn a_menu_of_entries_starts_the_saved_one() {
        let files = [
            (
                "/grub2/grub.cfg",
                "load_env\nset default=\"${saved_entry}\"\nblscfg",
            ),
            ("/loader/entries/a.conf", "linux /a"),
            ("/loader/entries/b.conf", "linux /b"),
            ("/a", ""),
            ("/b", ""),
        ];
        assert_eq!(chosen(&files).0.unwrap().kernel, "/b");
        let mut saved = files.to_vec();
        saved.push(("/grub2/grubenv", "saved_entry=a\n"));
        assert_eq!(chosen(&saved).0.unwrap().kernel, "/a");
    }

    #[test]
    fn where_nothing_is_it_is_told_what_was_looked_for() {
        let (choice, seen) = chosen(&[("/etc/fstab", "")]);
        assert_eq!(choice, None);
        for path in [
            "/boot/grub/grub.cfg",
            "/loader/entries/*.conf",
            "/boot/vmlinuz-*",
        ] {
            assert!(seen.looked.iter().any(|looked| looked == path), "{seen:?}");
        }
    }
}
