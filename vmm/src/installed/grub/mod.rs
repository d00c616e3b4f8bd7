//! What GRUB would start by a `grub.cfg`, as far as `grub-mkconfig` writes such files.
//!
//! Codec: texts to an entry. Commands are carried out that choose and describe entries (`set`, `if`, `menuentry`,
//! `submenu`, `load_env`, `search`, `linux`, `initrd`); all others do nothing. A file is never there, except for
//! `grubenv`; an entry for the next start only (`next_entry`) is not heeded, since nothing is written here that
//! would take it back.

mod script;
mod words;

use std::collections::BTreeMap;

use script::{Command, Word};
use words::Piece;

/// Bytes of the value of a variable, and how many there are, at most.
const LONGEST_VALUE: usize = 8 << 10;
const MOST_VARIABLES: usize = 1 << 12;
/// Commands that are carried out, and bytes that their words have and the variables they load, at most.
const MOST_COMMANDS: usize = 1 << 17;
const MOST_WORD_BYTES: usize = 16 << 20;
/// What a word or a variable counts for besides its bytes.
const WEIGHT: usize = 32;
/// Entries of a menu, at most.
const MOST_ENTRIES: usize = 1 << 12;
/// What is known of the GRUB that would read this.
const KNOWN: [(&str, &str); 6] = [
    ("feature_menuentry_id", "y"),
    ("feature_timeout_style", "y"),
    ("grub_platform", "efi"),
    ("grub_cpu", "x86_64"),
    ("menuentry_id_option", "--id"),
    ("prefix", "/boot/grub"),
];

/// What an entry starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// As it stands in the menu.
    pub(super) title: String,
    /// Path of the kernel; empty if it starts no Linux.
    pub(super) kernel: String,
    /// Paths of the initrds.
    pub(super) initrds: Vec<String>,
    /// The kernel's command line.
    pub(super) arguments: String,
    /// UUID of the file system that the paths are in, if one is searched for.
    pub(super) volume: Option<String>,
}

/// What a configuration says.
#[derive(Clone, Debug, Default)]
pub(super) struct Menu {
    /// The entry that is started when nobody chooses.
    pub(super) entry: Option<Entry>,
    /// Whether the entries are those of the Boot Loader Specification.
    pub(super) by_entries: bool,
    /// What is started when nobody chooses, as the configuration says it.
    pub(super) default: String,
    /// The variables at its end.
    pub(super) variables: BTreeMap<String, String>,
}

/// Read a configuration, with the text of the `grubenv` beside it.
pub(super) fn read(text: &str, saved: Option<&str>) -> Menu {
    let mut grub = Grub {
        saved: saved.map(environment),
        commands_left: MOST_COMMANDS,
        bytes_left: MOST_WORD_BYTES,
        ..Grub::default()
    };
    for (name, value) in KNOWN {
        grub.variables.insert(name.into(), value.into());
    }
    grub.run(&script::commands(&words::tokens(text)));
    let default = grub.variables.get("default").cloned().unwrap_or_default();
    let items = std::mem::take(&mut grub.items);
    let entry = grub.default_of(&default, items);
    Menu {
        entry,
        by_entries: grub.by_entries,
        default,
        variables: grub.variables,
    }
}

/// The variables of a `grubenv`.
pub(super) fn environment(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.split_once('='));
    let kept = pairs.filter(|(name, value)| *name != "next_entry" && value.len() <= LONGEST_VALUE);
    kept.take(MOST_VARIABLES)
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// An entry of a menu, or a menu inside of it.
#[derive(Clone, Debug, Default)]
struct Item {
    title: String,
    id: String,
    inside: Vec<Command>,
    is_menu: bool,
}

#[derive(Debug, Default)]
struct Grub {
    saved: Option<BTreeMap<String, String>>,
    variables: BTreeMap<String, String>,
    items: Vec<Item>,
    by_entries: bool,
    found: Entry,
    commands_left: usize,
    bytes_left: usize,
}

impl Grub {
    /// The entry that `default` names: numbers, titles or ids with `>` between a menu and what is in it.
    fn default_of(&mut self, default: &str, mut items: Vec<Item>) -> Option<Entry> {
        let mut path = default.split('>');
        // As deep as menus are inside of menus: the script's depth bounds that.
        loop {
            let wanted = path.next().unwrap_or_default().trim();
            // An entry without an id is not one whose id is nothing.
            let is = |item: &Item| item.id == wanted || item.title == wanted;
            let named = items.iter().position(|item| !wanted.is_empty() && is(item));
            let place = named.or_else(|| wanted.parse().ok()).unwrap_or(0);
            let place = if place < items.len() { place } else { 0 };
            if items.is_empty() {
                return None;
            }
            let item = items.swap_remove(place);
            if !item.is_menu {
                self.found = Entry {
                    title: item.title,
                    ..Entry::default()
                };
                self.run(&item.inside);
                return Some(std::mem::take(&mut self.found));
            }
            self.items.clear();
            self.run(&item.inside);
            items = std::mem::take(&mut self.items);
        }
    }

    /// Carry commands out; whether the last one succeeded.
    fn run(&mut self, commands: &[Command]) -> bool {
        let mut succeeded = true;
        for command in commands {
            let Some(left) = self.commands_left.checked_sub(1) else {
                return false;
            };
            self.commands_left = left;
            succeeded = match command {
                Command::Plain(words, inside) => {
                    let words = self.expand(words);
                    self.one(&words, inside)
                }
                Command::If(cases, otherwise) => {
                    let holds = cases.iter().find(|(condition, _)| self.run(condition));
                    self.run(holds.map_or(otherwise, |(_, done)| done))
                }
            };
        }
        succeeded
    }

    fn load_env(&mut self) {
        for (name, value) in self.saved.iter().flatten() {
            let weight = name.len() + value.len() + WEIGHT;
            let Some(left) = self.bytes_left.checked_sub(weight) else {
                self.commands_left = 0;
                return;
            };
            self.bytes_left = left;
            self.variables.insert(name.clone(), value.clone());
        }
    }

    /// Put the values of variables in.
    fn expand(&mut self, words: &[Word]) -> Vec<String> {
        let mut expanded = Vec::new();
        for word in words {
            let (mut text, mut is_word) = (String::new(), word.is_empty());
            for piece in word {
                let (value, whole) = match piece {
                    Piece::Text(plain) => (plain.as_str(), true),
                    Piece::Variable { name, quoted } => {
                        let value = self.variables.get(name);
                        (value.map_or("", String::as_str), *quoted)
                    }
                };
                let words = if whole {
                    1
                } else {
                    value.split_ascii_whitespace().count()
                };
                let weight = value.len() + words * WEIGHT;
                let Some(left) = self.bytes_left.checked_sub(weight) else {
                    self.commands_left = 0;
                    return Vec::new();
                };
                self.bytes_left = left;
                if whole {
                    text.push_str(value);
                    is_word = true;
                    continue;
                }
                let mut parts = value.split_ascii_whitespace().peekable();
                while let Some(part) = parts.next() {
                    text.push_str(part);
                    is_word = true;
                    if parts.peek().is_some() {
                        expanded.push(std::mem::take(&mut text));
                    }
                }
            }
            if is_word {
                expanded.push(text);
            }
        }
        expanded
    }

    fn one(&mut self, words: &[String], inside: &[Command]) -> bool {
        let Some((name, arguments)) = words.split_first() else {
            return true;
        };
        match name.as_str() {
            "set" => arguments.iter().for_each(|pair| self.set(pair)),
            "unset" => arguments.iter().for_each(|name| {
                self.variables.remove(name);
            }),
            "load_env" => self.load_env(),
            "menuentry" | "submenu" => self.item(name == "submenu", arguments, inside),
            "blscfg" => self.by_entries = true,
            "search" => self.search(arguments),
            "linux" | "linuxefi" | "linux16" => self.linux(arguments),
            "initrd" | "initrdefi" | "initrd16" => {
                self.found.initrds = arguments.iter().map(|path| in_volume(path)).collect();
            }
            "[" => {
                let end = arguments.iter().rposition(|word| word == "]");
                return self.test(arguments.get(..end.unwrap_or(0)).unwrap_or_default());
            }
            "test" => return self.test(arguments),
            "true" | "export" | "insmod" | "echo" | "save_env" => {}
            name if name.contains('=') => self.set(name),
            _ => return false,
        }
        true
    }

    fn set(&mut self, pair: &str) {
        let Some((name, value)) = pair.split_once('=') else {
            return;
        };
        let known = self.variables.contains_key(name);
        if value.len() <= LONGEST_VALUE && (known || self.variables.len() < MOST_VARIABLES) {
            self.variables.insert(name.to_owned(), value.to_owned());
        }
    }

    fn item(&mut self, is_menu: bool, arguments: &[String], inside: &[Command]) {
        if self.items.len() >= MOST_ENTRIES {
            return;
        }
        let mut item = Item {
            inside: inside.to_vec(),
            is_menu,
            ..Item::default()
        };
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--id" => item.id = words.next().cloned().unwrap_or_default(),
                "--class" | "--users" | "--hotkey" => drop(words.next()),
                word if word.starts_with("--id=") => {
                    word.trim_start_matches("--id=").clone_into(&mut item.id);
                }
                word if word.starts_with("--") => {}
                word if item.title.is_empty() => word.clone_into(&mut item.title),
                _ => {}
            }
        }
        self.items.push(item);
    }

    /// `search --fs-uuid --set=root UUID`: what is not a UUID says nothing that could be found here.
    fn search(&mut self, arguments: &[String]) {
        let by_uuid = arguments
            .iter()
            .any(|word| word == "--fs-uuid" || word == "-u");
        let last = arguments.iter().rfind(|word| !word.starts_with('-'));
        if let Some(uuid) = last.filter(|_| by_uuid) {
            self.found.volume = Some(uuid.to_ascii_lowercase());
        }
    }

    fn linux(&mut self, arguments: &[String]) {
        let Some((path, arguments)) = arguments.split_first() else {
            return;
        };
        self.found.kernel = in_volume(path);
        let quoted = arguments.iter().map(|word| {
            if word.contains(' ') && !word.contains('"') {
                format!("\"{word}\"")
            } else {
                word.clone()
            }
        });
        self.found.arguments = quoted.collect::<Vec<_>>().join(" ");
        self.found.initrds.clear();
    }

    fn test(&self, words: &[String]) -> bool {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        // `-o` binds weaker than `-a`, and `!` stronger than both.
        let holds = |words: &[&str]| {
            let negated = words.iter().take_while(|word| **word == "!").count();
            let simple = self.simple_test(words.get(negated..).unwrap_or_default());
            simple == negated.is_multiple_of(2)
        };
        let all = |words: &[&str]| words.split(|word| *word == "-a").all(holds);
        words.split(|word| *word == "-o").any(all)
    }

    fn simple_test(&self, words: &[&str]) -> bool {
        match *words {
            [one, "=" | "==", other] => one == other,
            [one, "!=", other] => one != other,
            ["-z", one] => one.is_empty(),
            ["-n", one] | [one] => !one.is_empty(),
            ["-s" | "-f" | "-e", path] => self.saved.is_some() && path.ends_with("/grubenv"),
            _ => false,
        }
    }
}

/// A path without the device in front of it.
fn in_volume(path: &str) -> String {
    let behind = path.strip_prefix('(').and_then(|rest| rest.split_once(')'));
    behind.map_or(path, |(_, behind)| behind).to_owned()
}

#[cfg(test)]
#[path = "tests.rs"]
pub(super) mod tests;
