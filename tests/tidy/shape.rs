//! How long files are, how many fields a structure has, how many test programs there are.

use crate::rust::{is_rust, is_test_file, is_word, split_tests};
use crate::{File, accepted, refused};

/// Longest file in lines, its test module not counted; and longest file of tests.
const MAX_FILE_LINES: usize = 600;
/// Longest test module that may stay inside the file it tests.
const MAX_INLINE_TEST_LINES: usize = 150;
/// More test programs than this and linking them takes longer than running them.
const MAX_TEST_BINARIES: usize = 10;
/// Most fields of a structure.
const MAX_FIELDS: usize = 12;
/// Who derives this is a form that people or programs fill in or read, as long as what it says.
const FORMS: [&str; 3] = ["Serialize", "Args", "Parser"];

/// Complaints about the shape of a file of Rust.
pub(crate) fn complaints(file: &File, code: &str) -> Vec<String> {
    let (shipped, tests) = split_tests(code);
    let mut complaints = Vec::new();
    let is_test = is_test_file(&file.path);
    let lines = if is_test { code } else { &shipped }.lines().count();
    if lines > MAX_FILE_LINES {
        complaints.push(format!("{lines} lines; at most {MAX_FILE_LINES}"));
    }
    if tests > MAX_INLINE_TEST_LINES {
        complaints.push(format!(
            "{tests} lines of tests inside; above {MAX_INLINE_TEST_LINES} they go to a file beside"
        ));
    }
    if !is_test {
        complaints.extend(wide_structs(&shipped));
    }
    complaints
}

/// Structures of too many fields, in code that rustfmt laid out.
fn wide_structs(code: &str) -> Vec<String> {
    let (mut complaints, mut is_form) = (Vec::new(), false);
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        let (margin, words) = (line.len() - line.trim_start().len(), line.trim());
        if words.starts_with("#[derive(") {
            let mut derived = words.split(|c: char| !is_word(c));
            is_form = derived.any(|word| FORMS.contains(&word));
        }
        let Some((before, after)) = words.split_once("struct ") else {
            continue;
        };
        if !(before.is_empty() || before.starts_with("pub")) {
            continue;
        }
        let form = std::mem::take(&mut is_form);
        if form || !words.ends_with('{') {
            continue;
        }
        let end = format!("{}}}", &line[..margin]);
        let body = lines.by_ref().take_while(|line| *line != end);
        let fields = body.filter(|line| is_field(line, margin + 4)).count();
        if fields > MAX_FIELDS {
            let name = after.split(|c| !is_word(c)).next().unwrap_or_default();
            complaints.push(format!("{name} has {fields} fields; at most {MAX_FIELDS}"));
        }
    }
    complaints
}

/// Whether a line of a structure's body opens one of its own fields.
fn is_field(line: &str, margin: usize) -> bool {
    let words = line.trim_start();
    let words = match words.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(") ").map_or("", |(_, rest)| rest),
        Some(rest) if rest.starts_with(' ') => rest.trim_start(),
        _ => words,
    };
    let name = words.find(|c| !is_word(c)).unwrap_or(words.len());
    let indented = line.len() - line.trim_start().len() == margin;
    indented && name > 0 && words[name..].starts_with(": ")
}

/// Complaints about the tree as a whole.
pub(crate) fn tree_rules(paths: &[&str]) -> Vec<String> {
    let binaries = paths
        .iter()
        .filter(|path| {
            path.strip_prefix("tests/")
                .is_some_and(|name| is_rust(name) && !name.contains('/'))
        })
        .count();
    if binaries > MAX_TEST_BINARIES {
        return vec![format!(
            "{binaries} test programs; at most {MAX_TEST_BINARIES}"
        )];
    }
    Vec::new()
}

#[test]
fn each_rule_about_shape_can_fail() {
    refused("vdisk/src/raw.rs", "fn f() {}\n", "open with `//!`");
    let long = format!("//! x\n{}", "fn f() {}\n".repeat(600));
    refused("vdisk/src/raw.rs", &long, "601 lines");
    for path in [
        "tests/a/b.rs",
        "vdisk/src/open/tests.rs",
        "mirror/src/sim/a.rs",
    ] {
        refused(path, &long, "601 lines");
    }
    let tests = format!(
        "//! x\n#[cfg(test)]\nmod tests {{\n{}}}\n",
        "  a\n".repeat(150)
    );
    refused("vdisk/src/raw.rs", &tests, "lines of tests inside");
    let both = format!(
        "//! x\n{}#[cfg(test)]\nmod tests {{\n a\n}}\n",
        "fn f() {}\n".repeat(599)
    );
    accepted("vdisk/src/raw.rs", &both);
    let cases: Vec<String> = (0..11).map(|i| format!("tests/t{i}.rs")).collect();
    let cases: Vec<&str> = cases.iter().map(String::as_str).collect();
    assert_eq!(tree_rules(&cases).len(), 1);
    assert!(tree_rules(&cases[1..]).is_empty());
}

#[test]
fn a_structure_of_too_many_fields_is_seen() {
    let structure = |head: &str, fields: usize| {
        let fields = "    /// a: b\n    pub(crate) a: [B; 2],\n".repeat(fields);
        format!("//! x\n{head} {{\n{fields}}}\n")
    };
    let wide = "A has 13 fields";
    for head in [
        "struct A",
        "pub struct A<T>",
        "#[derive(Debug)]\npub(super) struct A",
    ] {
        refused("vdisk/src/a.rs", &structure(head, 13), wide);
        accepted("vdisk/src/a.rs", &structure(head, 12));
        accepted("vdisk/tests/a.rs", &structure(head, 13));
    }
    let form = structure("#[derive(Debug, Serialize)]\nstruct A", 13);
    accepted("src/a.rs", &form);
    refused("src/a.rs", &(form + &structure("\nstruct A", 13)), wide);
    let nested = "//! x\nmod b {\n    struct A {\n".to_owned()
        + &"        a: B,\n".repeat(13)
        + "    }\n}\n";
    refused("src/a.rs", &nested, wide);
}
