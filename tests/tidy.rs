//! The tree checks its own tidiness: the rules of ARCHITECTURE.md that a compiler does not hold.
//!
//! Every rule is a function from a file's path and text to complaints, so that each one is also
//! tested on a snippet that breaks it. What clippy holds (function length, arguments, docs of
//! public items) is not repeated here; that clippy is told to hold it is checked.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Longest file in lines, its test module not counted.
const MAX_FILE_LINES: usize = 600;
/// Longest test module that may stay inside the file it tests.
const MAX_INLINE_TEST_LINES: usize = 150;
/// More test programs than this and linking them takes longer than running them.
const MAX_TEST_BINARIES: usize = 10;
/// Words that say nothing about what a thing is.
const BANNED_NAMES: [&str; 6] = ["util", "utils", "common", "helpers", "misc", "manager"];
/// Codecs and machines: they decide or translate, and touch nothing.
const PURE: [&str; 9] = [
    "vdisk/src/format",
    "vdisk/src/engine",
    "blockserver/src/nbd",
    "mirror/src/wire",
    "mirror/src/session",
    "mirror/src/switchover",
    "mirror/src/pacing",
    "mirror/src/tracker",
    "mirror/src/ownership",
];
/// Parts of the pure folders that are drivers, named so.
const PURE_EXCEPT: [&str; 1] = ["blocking_client"];
/// What a machine or codec may not name.
const IMPURE: [&str; 4] = ["std::fs", "std::net", "std::time", "std::thread"];
/// Codecs: they parse what another wrote, so nothing in them may panic on it.
const CODECS: [&str; 3] = [
    "vdisk/src/format",
    "blockserver/src/nbd/wire",
    "mirror/src/wire",
];
/// Where unsafe code may stand.
const UNSAFE_PLACES: [&str; 3] = ["blockserver/src/uring", "vmm/src/memory.rs", "vmm/src/kvm/"];
/// Crate roots that must forbid unsafe code.
const FORBID_UNSAFE: [&str; 3] = ["vdisk/src/lib.rs", "mirror/src/lib.rs", "src/main.rs"];
/// What each crate may not import: the arrows of the architecture point down only.
const UPWARDS: [(&str, &[&str]); 4] = [
    ("vdisk/", &["blockserver", "mirror", "vmm", "diskferry"]),
    ("blockserver/", &["mirror", "vmm", "diskferry"]),
    ("mirror/", &["blockserver", "vmm", "diskferry"]),
    ("vmm/", &["diskferry"]),
];
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

/// One file of the tree: its path from the root with `/`, and its text.
struct File {
    path: String,
    text: String,
}

/// A file's text with comments and the insides of literals blanked, line breaks kept.
fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let len = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else {
            literal_len(text, at)
        };
        if len == 0 {
            let c = rest.chars().next().unwrap_or(' ');
            out.push(c);
            at += c.len_utf8();
        } else {
            out.extend(
                rest[..len]
                    .chars()
                    .map(|c| if c == '\n' { '\n' } else { ' ' }),
            );
            at += len;
        }
    }
    out
}

/// How many bytes the string or character literal at `at` takes; 0 when none begins there.
fn literal_len(text: &str, at: usize) -> usize {
    let rest = &text[at..];
    let after_word = text[..at].chars().next_back().is_some_and(is_word);
    if rest.starts_with('r') && !after_word {
        let hashes = rest[1..].bytes().take_while(|b| *b == b'#').count();
        if rest[1 + hashes..].starts_with('"') {
            let close = format!("\"{}", "#".repeat(hashes));
            let body = 2 + hashes;
            return rest[body..]
                .find(&close)
                .map_or(rest.len(), |end| body + end + close.len());
        }
    }
    if rest.starts_with('"') {
        return escaped_len(rest, '"').unwrap_or(rest.len());
    }
    if rest.starts_with('\'') {
        // A lifetime has no closing quote next to its first character.
        let mut chars = rest.chars().skip(1);
        let (first, second) = (chars.next(), chars.next());
        if first == Some('\\') || second == Some('\'') {
            return escaped_len(rest, '\'').unwrap_or(0);
        }
    }
    0
}

/// Length of a literal that opens `rest` and ends with an unescaped `quote`.
fn escaped_len(rest: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (i, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(i + c.len_utf8()),
            _ => {}
        }
    }
    None
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether `word` stands in `line` with no word character, nor a path before it, on its sides.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(i, _)| {
        let before = line[..i].chars().next_back();
        let after = line[i + word.len()..].chars().next();
        !before.is_some_and(|c| is_word(c) || c == ':') && !after.is_some_and(is_word)
    })
}

/// Splits `code` into what ships and what stands in `#[cfg(test)] mod … { }` at column 0.
fn split_tests(code: &str) -> (String, usize) {
    let (mut shipped, mut tests, mut inside) = (String::new(), 0, false);
    let mut lines = code.lines().peekable();
    while let Some(line) = lines.next() {
        let opens = line.starts_with("#[cfg(test)]")
            || line.starts_with("#[cfg(all(test") && !line.contains("not(");
        let block = lines
            .peek()
            .is_some_and(|next| next.contains("mod ") && next.trim_end().ends_with('{'));
        inside |= opens && block;
        if inside {
            tests += 1;
            inside = line != "}";
        } else {
            shipped.push_str(line);
            shipped.push('\n');
        }
    }
    (shipped, tests)
}

fn is_rust(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|ext| ext == "rs")
}

fn is_test_file(path: &str) -> bool {
    path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("tests.rs")
}

fn is_pure(path: &str) -> bool {
    PURE.iter().any(|p| path.starts_with(p)) && !PURE_EXCEPT.iter().any(|p| path.contains(p))
}

/// Complaints about one file of Rust.
fn rust_rules(file: &File) -> Vec<String> {
    let code = code_only(&file.text);
    let mut complaints = Vec::new();
    if !file.text.starts_with("//!") {
        complaints.push("must open with `//!` and say what it is".to_owned());
    }
    complaints.extend(length(file, &code));
    complaints.extend(type_names(&code));
    let (shipped, _) = split_tests(&code);
    if !is_test_file(&file.path) {
        complaints.extend(purity(&file.path, &shipped));
    }
    complaints.extend(arrows(&file.path, &code));
    let place = UNSAFE_PLACES.iter().any(|p| file.path.starts_with(p));
    if !place && code.lines().any(|line| has_word(line, "unsafe")) {
        complaints.push("unsafe code may stand only in the places ARCHITECTURE.md names".into());
    }
    let must_forbid = FORBID_UNSAFE.contains(&file.path.as_str()) && !code.trim().is_empty();
    if must_forbid && !code.contains("#![forbid(unsafe_code)]") {
        complaints.push("must have #![forbid(unsafe_code)]".to_owned());
    }
    complaints
}

fn length(file: &File, code: &str) -> Vec<String> {
    let (shipped, tests) = split_tests(code);
    let mut complaints = Vec::new();
    let lines = shipped.lines().count();
    if !is_test_file(&file.path) && lines > MAX_FILE_LINES {
        complaints.push(format!("{lines} lines; at most {MAX_FILE_LINES}"));
    }
    if tests > MAX_INLINE_TEST_LINES {
        complaints.push(format!(
            "{tests} lines of tests inside; above {MAX_INLINE_TEST_LINES} they go to a file beside"
        ));
    }
    complaints
}

/// Module and type names that say nothing.
fn type_names(code: &str) -> Vec<String> {
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

/// Machines and codecs do nothing but decide and translate.
fn purity(path: &str, shipped: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    if is_pure(path) {
        for name in IMPURE {
            if shipped.contains(name) {
                complaints.push(format!("a machine or codec names {name}"));
            }
        }
        for part in ["fs", "net", "time", "thread"] {
            if shipped.contains(&format!("use std::{{{part}")) {
                complaints.push(format!("a machine or codec imports std's {part}"));
            }
        }
    }
    if CODECS.iter().any(|p| path.starts_with(p)) {
        for call in [".unwrap()", ".expect(", "panic!(", "unreachable!("] {
            if shipped.contains(call) {
                complaints.push(format!("a codec must not panic, and has `{call}`"));
            }
        }
    }
    complaints
}

/// Imports against the arrows.
fn arrows(path: &str, code: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    for (place, above) in UPWARDS {
        if !path.starts_with(place) {
            continue;
        }
        for name in above {
            let uses = |line: &str| {
                let line = line.trim_start();
                let imported = line
                    .strip_prefix("use ")
                    .is_some_and(|rest| has_word(rest, name) && rest.starts_with(name));
                imported
                    || line.contains(&format!(" {name}::"))
                    || line.starts_with(&format!("{name}::"))
            };
            if code.lines().any(uses) {
                complaints.push(format!("imports {name}, which stands above it"));
            }
        }
    }
    complaints
}

/// The same arrows, as a crate's manifest draws them.
fn manifest_arrows(file: &File) -> Vec<String> {
    UPWARDS
        .iter()
        .filter(|(place, _)| file.path.starts_with(place))
        .flat_map(|(_, above)| above.iter())
        .filter(|name| {
            file.text
                .lines()
                .any(|line| line.starts_with(**name) && has_word(line, name))
        })
        .map(|name| format!("depends on {name}, which stands above it"))
        .collect()
}

/// Complaints about any file of text, whatever its language.
fn text_rules(file: &File) -> Vec<String> {
    let mut complaints = Vec::new();
    for (number, line) in file.text.lines().enumerate() {
        for leftover in LEFTOVERS {
            if line.contains(leftover) {
                complaints.push(format!("line {}: `{leftover}`", number + 1));
            }
        }
        for trace in TRACES {
            if line.contains(trace) && file.path != "Cargo.lock" {
                complaints.push(format!("line {}: `{trace}` is this machine's", number + 1));
            }
        }
    }
    if says_nothing(&file.path) {
        complaints.push("the file's name does not say what it is".to_owned());
    }
    complaints
}

fn rules(file: &File) -> Vec<String> {
    let mut complaints = text_rules(file);
    if is_rust(&file.path) {
        complaints.extend(rust_rules(file));
    }
    if file.path.ends_with("Cargo.toml") {
        complaints.extend(manifest_arrows(file));
    }
    complaints
}

/// Complaints about the tree as a whole.
fn tree_rules(paths: &[&str]) -> Vec<String> {
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

fn walk(root: &Path, folder: &Path, files: &mut Vec<File>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder)
        .expect("the folder can be read")
        .map(|entry| entry.expect("an entry can be read").path())
        .collect();
    entries.sort();
    for path in entries {
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        if name == ".git" || name == "target" {
            continue;
        }
        if path.is_dir() {
            walk(root, &path, files);
        } else if let Ok(text) = fs::read_to_string(&path) {
            let path = path.strip_prefix(root).expect("below the root");
            files.push(File {
                path: path.to_string_lossy().into_owned(),
                text,
            });
        }
    }
}

fn tree() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    walk(root, root, &mut files);
    files
}

#[test]
fn the_tree_keeps_its_own_rules() {
    let files = tree();
    assert!(files.len() > 10, "only {} files seen", files.len());
    let mut report = String::new();
    for file in &files {
        for complaint in rules(file) {
            let _ = writeln!(report, "{}: {complaint}", file.path);
        }
    }
    let paths: Vec<&str> = files.iter().map(|f| f.path.as_str()).collect();
    for complaint in tree_rules(&paths) {
        let _ = writeln!(report, "tests/: {complaint}");
    }
    assert!(report.is_empty(), "\n{report}");
}

#[test]
fn clippy_is_told_to_hold_the_numbers() {
    let files = tree();
    let text = |path: &str| {
        let file = files.iter().find(|f| f.path == path);
        &file.unwrap_or_else(|| panic!("{path} is missing")).text
    };
    for line in [
        "too-many-lines-threshold = 70",
        "too-many-arguments-threshold = 5",
    ] {
        assert!(text("clippy.toml").contains(line), "clippy.toml: {line}");
    }
    for lint in [
        "missing_docs",
        "unreachable_pub",
        "pedantic",
        "too_many_lines",
        "undocumented_unsafe_blocks",
        "allow_attributes_without_reason",
    ] {
        assert!(
            text("Cargo.toml").contains(&format!("\n{lint} =")),
            "lint {lint}"
        );
    }
    let members = ["vdisk/", "blockserver/", "mirror/", "vmm/", ""];
    for member in members {
        let manifest = text(&format!("{member}Cargo.toml"));
        assert!(
            manifest.contains("[lints]\nworkspace = true"),
            "{member} opts out of the lints"
        );
    }
}

/// What [`rules`] says of a file with this path and text.
fn complaints(path: &str, text: &str) -> String {
    let (path, text) = (path.to_owned(), text.to_owned());
    rules(&File { path, text }).join("\n")
}

#[track_caller]
fn refused(path: &str, text: &str, because: &str) {
    let said = complaints(path, text);
    assert!(
        said.contains(because),
        "{path}: expected `{because}`, got `{said}`"
    );
}

#[track_caller]
fn accepted(path: &str, text: &str) {
    assert_eq!(complaints(path, text), "", "{path}");
}

#[test]
fn each_rule_about_shape_can_fail() {
    refused("vdisk/src/raw.rs", "fn f() {}\n", "open with `//!`");
    let long = format!("//! x\n{}", "fn f() {}\n".repeat(600));
    refused("vdisk/src/raw.rs", &long, "601 lines");
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
    }
}

#[test]
fn each_rule_about_floors_can_fail() {
    for name in IMPURE {
        let text = format!("//! x\nuse {name}::X;\n");
        refused("vdisk/src/engine/map.rs", &text, name);
        refused("blockserver/src/nbd/handshake.rs", &text, name);
        refused("mirror/src/switchover.rs", &text, name);
        accepted("blockserver/src/nbd/blocking_client.rs", &text);
        accepted("vdisk/src/storage/file.rs", &text);
        let comment = format!("//! x\n// {name}\nconst A: &str = \"{name}\";\n");
        accepted("vdisk/src/engine/map.rs", &comment);
        let tested = format!("//! x\n#[cfg(test)]\nmod tests {{\n    use {name};\n}}\n");
        accepted("vdisk/src/engine/map.rs", &tested);
    }
    refused(
        "vdisk/src/engine/a.rs",
        "//! x\nuse std::{fs, io};\n",
        "imports std's fs",
    );
    refused(
        "vdisk/src/format/a.rs",
        "//! x\nfn f() { g().unwrap() }\n",
        "must not panic",
    );
    refused(
        "mirror/src/wire.rs",
        "//! x\nfn f() { g().expect(\"a\") }\n",
        "must not panic",
    );
    refused(
        "vdisk/src/units.rs",
        "//! x\nuse mirror::Session;\n",
        "imports mirror",
    );
    refused(
        "mirror/src/lib.rs",
        "//! x\n#![forbid(unsafe_code)]\nfn f() { blockserver::f() }\n",
        "imports blockserver",
    );
    accepted(
        "blockserver/src/a.rs",
        "//! x\nuse vdisk::Error;\nuse crate::mirror::X;\n",
    );
    refused(
        "vdisk/Cargo.toml",
        "[dependencies]\nmirror.workspace = true\n",
        "depends on mirror",
    );
    accepted(
        "mirror/Cargo.toml",
        "[package]\nname = \"mirror\"\n[dependencies]\nvdisk = {}\n",
    );
}

#[test]
fn each_rule_about_unsafe_can_fail() {
    let text = "//! x\nfn f() { unsafe { g() } }\n";
    refused("vdisk/src/raw.rs", text, "unsafe code may stand only");
    refused("src/plan.rs", text, "unsafe code may stand only");
    accepted("blockserver/src/uring/ring.rs", text);
    accepted(
        "vdisk/src/raw.rs",
        "//! x\n// unsafe\nconst A: &str = \"unsafe\";\n",
    );
    refused("vdisk/src/lib.rs", "//! x\nmod a;\n", "forbid(unsafe_code)");
    accepted("vdisk/src/lib.rs", "//! x\n#![forbid(unsafe_code)]\n");
}

#[test]
fn comments_and_literals_are_not_code() {
    let text = "a \"b\\\"//c\" 'd' '\\'' r#\"e\"f\"# /* g */ h // i\n'static j";
    let code = code_only(text);
    let words: Vec<&str> = code.split_whitespace().collect();
    assert_eq!(words, ["a", "h", "'static", "j"]);
}
