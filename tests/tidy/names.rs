//! Names that say nothing, and what must not be left behind in a text.

use crate::rust::is_word;
use crate::{File, accepted, refused};

/// Words that say nothing about what a thing is.
const BANNED_NAMES: [&str; 6] = ["util", "utils", "common", "helpers", "misc", "manager"];
/// Traces of the machine a file was written on. In pieces, so that this file passes its own rule.
const TRACES: [&str; 8] = [
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("/tmp/", "wt/"),
    concat!("/tmp/", "target/"),
    concat!("../", "shared"),
    concat!("spar", "se+http"),
    concat!("regis", "try+http"),
    concat!("index-", "url"),
];
/// Promises that belong in the tracker, and tests that are switched off.
const LEFTOVERS: [&str; 6] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("to", "do!("),
    concat!("unimplement", "ed!("),
    concat!("#[ig", "nore"),
    concat!("db", "g!("),
];

/// Module and type names that say nothing.
pub(crate) fn type_names(code: &str) -> Vec<String> {
    const NAMING: [&str; 5] = ["mod", "struct", "enum", "trait", "type"];
    let mut complaints = Vec::new();
    for line in code.lines() {
        let mut words = line.split(|c: char| !is_word(c)).filter(|w| !w.is_empty());
        while let Some(word) = words.next() {
            if NAMING.contains(&word) {
                let name = words.next().unwrap_or_default();
                if says_nothing(name) {
                    complaints.push(format!("`{name}` does not say what it is"));
                }
            }
        }
    }
    complaints
}

/// Whether one of the words a name is made of is on the list, in `snake_case` or `CamelCase`.
fn says_nothing(name: &str) -> bool {
    let mut snake = String::new();
    for c in name.chars() {
        if c.is_uppercase() {
            snake.push('_');
        }
        snake.extend(c.to_lowercase());
    }
    snake
        .split(|c: char| !c.is_alphanumeric())
        .any(|word| BANNED_NAMES.contains(&word))
}

/// Complaints about any file of text, whatever its language.
pub(crate) fn text_rules(file: &File) -> Vec<String> {
    let mut complaints = Vec::new();
    for (number, line) in file.text.lines().enumerate() {
        for leftover in LEFTOVERS {
            if line.contains(leftover) {
                complaints.push(format!("line {}: `{leftover}`", number + 1));
            }
        }
        for trace in TRACES {
            if line.contains(trace) && !file.path.ends_with("Cargo.lock") {
                complaints.push(format!("line {}: `{trace}` is this machine's", number + 1));
            }
        }
    }
    if says_nothing(&file.path) {
        complaints.push("the file's name does not say what it is".to_owned());
    }
    complaints
}

#[test]
fn each_rule_about_names_can_fail() {
    refused("vdisk/src/string_utils.rs", "//! x\n", "file's name");
    refused("vdisk/common/x.rs", "//! x\n", "file's name");
    refused(
        "vdisk/src/a.rs",
        "//! x\npub struct PageManager;\n",
        "PageManager",
    );
    refused("vdisk/src/a.rs", "//! x\nmod misc {}\n", "misc");
    accepted(
        "vdisk/src/a.rs",
        "//! x\nstruct Commonplace; // a manager\n",
    );
}

#[test]
fn each_rule_about_leftovers_can_fail() {
    for leftover in LEFTOVERS {
        refused("docs/a.md", &format!("a {leftover} b"), leftover);
    }
    for trace in TRACES {
        refused("README.md", &format!("see {trace}x"), trace);
        accepted("Cargo.lock", trace);
        accepted("fuzz/Cargo.lock", trace);
    }
}
