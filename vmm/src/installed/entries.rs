//! Boot entries of the Boot Loader Specification, type 1: a file for each, in `loader/entries`.
//!
//! Codec: texts to entries, and their order.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::release;

/// Bytes of the options with the values of their variables, and initrds, at most.
const LONGEST_ARGUMENTS: usize = 64 << 10;
const MOST_INITRDS: usize = 64;

/// An entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// Name of its file, without `.conf`.
    pub(super) name: String,
    pub(super) title: String,
    pub(super) kernel: String,
    pub(super) initrds: Vec<String>,
    pub(super) arguments: String,
    sort_key: String,
    machine: String,
    version: String,
}

/// The entry in a file of this name; `None` if it starts no Linux on this architecture, or asks
/// for more than any kernel takes. `$name` in its options stands for a variable of the boot loader.
pub(super) fn read(name: &str, text: &str, variables: &BTreeMap<String, String>) -> Option<Entry> {
    let mut entry = Entry {
        name: name.strip_suffix(".conf")?.to_owned(),
        ..Entry::default()
    };
    let mut options: Vec<&str> = Vec::new();
    for line in text.lines().map(str::trim) {
        let (key, value) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        let value = value.trim();
        match key {
            "title" => value.clone_into(&mut entry.title),
            "version" => value.clone_into(&mut entry.version),
            "machine-id" => value.clone_into(&mut entry.machine),
            "sort-key" => value.clone_into(&mut entry.sort_key),
            "linux" => value.clone_into(&mut entry.kernel),
            "initrd" => entry
                .initrds
                .extend(value.split_ascii_whitespace().map(str::to_owned)),
            "options" => options.extend(value.split_ascii_whitespace()),
            "architecture" if !value.eq_ignore_ascii_case("x64") => return None,
            _ => {}
        }
    }
    let mut left = LONGEST_ARGUMENTS;
    for option in options {
        let value = match option.strip_prefix('$') {
            Some(name) => variables.get(name).map_or("", String::as_str),
            None => option,
        };
        left = left.checked_sub(value.len() + 1)?;
        for word in value.split_ascii_whitespace() {
            if !entry.arguments.is_empty() {
                entry.arguments.push(' ');
            }
            entry.arguments.push_str(word);
        }
    }
    if entry.initrds.len() > MOST_INITRDS {
        return None;
    }
    (!entry.kernel.is_empty()).then_some(entry)
}

/// The first of these in the menu, unless `default` names another one.
pub(super) fn default_of(entries: Vec<Entry>, default: &str) -> Option<Entry> {
    let named = |entry: &&Entry| {
        let default = default.strip_suffix(".conf").unwrap_or(default);
        match default.strip_suffix('*') {
            Some(start) => entry.name.starts_with(start),
            None => entry.name == default,
        }
    };
    let mut sorted = entries;
    sorted.sort_by(order);
    let named = sorted.iter().filter(|_| !default.is_empty()).find(named);
    named.or(sorted.first()).cloned()
}

/// The order of the menu ("Sorting" of the specification): entries with a sort key before those without, the
/// newest version first.
fn order(one: &Entry, other: &Entry) -> Ordering {
    let keyed = |entry: &Entry| entry.sort_key.is_empty();
    let names = || release::compare(&other.name, &one.name);
    keyed(one).cmp(&keyed(other)).then_with(|| {
        if keyed(one) {
            return names();
        }
        let keys = one.sort_key.cmp(&other.sort_key);
        keys.then_with(|| one.machine.cmp(&other.machine))
            .then_with(|| release::compare(&other.version, &one.version))
            .then_with(names)
    })
}

/// The entry that `loader.conf` says is started.
pub(super) fn loader_default(text: &str) -> &str {
    let lines = text.lines().map(str::trim);
    let default = lines.filter_map(|line| line.strip_prefix("default"));
    let mut default = default.filter(|rest| rest.starts_with([' ', '\t']));
    // One with @ names an entry that the loader makes itself, or the one started last.
    let named = default.next().map(str::trim);
    named.filter(|name| !name.starts_with('@')).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, text: &str) -> Entry {
        read(name, text, &BTreeMap::new()).unwrap()
    }

    #[test]
    fn an_entry_says_what_is_started_with_what() {
        let variables = BTreeMap::from([("kernelopts".to_owned(), "root=UUID=1  ro".to_owned())]);
        let text = "# a remark\ntitle\tDebian\nversion 6.1\nlinux /6.1/linux\ninitrd /6.1/initrd\ninitrd /extra\n\
                    options $kernelopts $tuned_params\noptions quiet\n";
        let found = read("a-6.1.conf", text, &variables).unwrap();
        assert_eq!((&*found.name, &*found.title), ("a-6.1", "Debian"));
        assert_eq!(found.initrds, ["/6.1/initrd", "/extra"]);
        assert_eq!(found.arguments, "root=UUID=1 ro quiet");
        for (name, text) in [
            ("a.conf", "title x\nefi /shell.efi"),
            ("a.conf", "linux /k\narchitecture aa64"),
            ("a.txt", "linux /k"),
        ] {
            assert_eq!(read(name, text, &variables), None, "{text}");
        }
    }

    #[test]
    fn what_asks_for_more_than_any_kernel_takes_is_no_entry() {
        let variables = BTreeMap::from([("a".to_owned(), "b ".repeat(4000))]);
        let options = format!("linux /k\noptions {}", "$a ".repeat(1000));
        assert_eq!(read("a.conf", &options, &variables), None);
        let initrds = format!("linux /k\ninitrd {}", "/a ".repeat(1000));
        assert_eq!(read("a.conf", &initrds, &variables), None);
    }

    #[test]
    fn the_newest_is_started_unless_another_is_named() {
        let all = || {
            vec![
                entry("a-6.9.conf", "linux /9"),
                entry("a-6.10.conf", "linux /10"),
                entry("b.conf", "linux /b\nsort-key debian\nversion 6.9"),
                entry("c.conf", "linux /c\nsort-key debian\nversion 6.10"),
            ]
        };
        let kernel = |default: &str| default_of(all(), default).unwrap().kernel;
        assert_eq!(kernel(""), "/c");
        assert_eq!(kernel("b.conf"), "/b");
        assert_eq!(kernel("a-*"), "/10");
        assert_eq!(kernel("gone"), "/c");
        assert_eq!(default_of(all()[..2].to_vec(), "").unwrap().kernel, "/10");
        assert_eq!(default_of(Vec::new(), ""), None);
    }

    #[test]
    fn the_default_of_the_loader() {
        assert_eq!(loader_default("timeout 3\ndefault  a-*\n"), "a-*");
        assert_eq!(loader_default("default @saved"), "");
        assert_eq!(loader_default("defaults x"), "");
    }
}
