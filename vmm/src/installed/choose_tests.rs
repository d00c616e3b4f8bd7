//! Which kernel of a file system is chosen, and what is passed over.

use super::*;
use crate::Error;

impl Tree for BTreeMap<&str, &str> {
    fn text(&self, path: &str, _: u64) -> Result<Option<String>> {
        self.is_file(path)?;
        Ok(self.get(path).map(|text| (*text).to_owned()))
    }

    fn names(&self, path: &str) -> Result<Vec<String>> {
        let inside = |name: &&str| Some(name.strip_prefix(path)?.strip_prefix('/')?.to_owned());
        Ok(self.keys().filter_map(inside).collect())
    }

    fn is_file(&self, path: &str) -> Result<bool> {
        match self.get(path) {
            Some(&DAMAGED) => Err(Error::kernel(format!("{path} leads too far"))),
            Some(&DANGLING) | None => Ok(false),
            Some(_) => Ok(true),
        }
    }
}

/// Content of what cannot be looked at, and of a link that leads to nothing.
const DAMAGED: &str = "damaged";
const DANGLING: &str = "dangling";

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
    let choice = choose(&tree, ("1", &[]), &mut seen).unwrap();
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
fn the_newest_is_one_that_is_there() {
    for newest in [DANGLING, DAMAGED] {
        let (choice, seen) = chosen(&[("/boot/vmlinuz-2", newest), KERNELS[0], KERNELS[1]]);
        assert_eq!(choice.unwrap().kernel, "/boot/vmlinuz-1");
        assert!(seen.remarks[0].contains("/boot/vmlinuz-2"), "{seen:?}");
        let initrd = ("/boot/initrd.img-2", newest);
        let (choice, seen) = chosen(&[("/boot/vmlinuz-2", ""), initrd, KERNELS[0]]);
        assert_eq!(choice.unwrap().kernel, "/boot/vmlinuz-1");
        assert!(seen.remarks[0].contains("/boot/initrd.img-2"), "{seen:?}");
    }
}

#[test]
fn what_is_damaged_is_passed_over_and_told_whichever_source_it_is() {
    for path in [
        "/boot/grub/grub.cfg",
        "/boot/grub/grubenv",
        "/boot/grub2/grub.cfg",
        "/boot/loader/entries/a.conf",
        "/loader/loader.conf",
        "/vmlinuz",
        "/boot/vmlinuz",
    ] {
        let (choice, seen) = chosen(&[(path, DAMAGED), KERNELS[0], KERNELS[1]]);
        assert_eq!(choice.unwrap().kernel, "/boot/vmlinuz-1", "{path}");
        let told = path == "/boot/grub/grubenv" || seen.remarks[0].contains(path);
        assert!(told, "{path}: {seen:?}");
    }
}

#[test]
fn files_in_another_file_system_are_looked_for_there() {
    let text = "menuentry x {\nsearch --fs-uuid 2\nlinux /vmlinuz-1 a\n}";
    let root: BTreeMap<_, _> = [("/boot/grub/grub.cfg", text), KERNELS[2]].into();
    let boot = BTreeMap::from([("/vmlinuz-1", "")]);
    let chosen = |boot: &BTreeMap<_, _>| {
        let mut seen = Seen::default();
        let choice = choose(&root, ("1", &[("2", boot)]), &mut seen).unwrap();
        let choice = choice.unwrap();
        (choice.volume, choice.kernel, seen.remarks.len())
    };
    let there = (Some("2".to_owned()), "/vmlinuz-1".to_owned(), 0);
    assert_eq!(chosen(&boot), there);
    let here = (None, "/boot/vmlinuz-6.1.0-9".to_owned(), 1);
    assert_eq!(chosen(&BTreeMap::new()), here);
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
