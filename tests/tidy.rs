//! The tree checks its own tidiness: the rules of ARCHITECTURE.md that a compiler does not hold.
//!
//! Every rule is a function from a file's path and text to complaints, so that each one is also
//! tested on a snippet that breaks it. What clippy holds (function length, arguments, docs of
//! public items) is not repeated here; that clippy is told to hold it is checked.

#[path = "tidy/clauses.rs"]
mod clauses;
#[path = "tidy/floors.rs"]
mod floors;
#[path = "tidy/links.rs"]
mod links;
#[path = "tidy/names.rs"]
mod names;
#[path = "tidy/rust.rs"]
mod rust;
#[path = "tidy/shape.rs"]
mod shape;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// One file of the tree: its path from the root with `/`, and its text.
struct File {
    path: String,
    text: String,
}

/// Complaints about one file of Rust.
fn rust_rules(file: &File) -> Vec<String> {
    let code = rust::code_only(&file.text);
    let mut complaints = Vec::new();
    if !file.text.starts_with("//!") {
        complaints.push("must open with `//!` and say what it is".to_owned());
    }
    complaints.extend(shape::complaints(file, &code));
    complaints.extend(names::type_names(&code));
    let (shipped, _) = rust::split_tests(&code);
    complaints.extend(floors::complaints(file, &code, &shipped));
    complaints
}

fn rules(file: &File) -> Vec<String> {
    let mut complaints = names::text_rules(file);
    if rust::is_rust(&file.path) {
        complaints.extend(rust_rules(file));
    }
    if file.path.ends_with("Cargo.toml") {
        complaints.extend(floors::manifest_arrows(file));
    }
    complaints
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
        // Modules may have the name of cargo's folders.
        let built = ["target", "fuzz/target"].map(|folder| root.join(folder));
        let built = built.contains(&path);
        if name == ".git" || built {
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
    for complaint in shape::tree_rules(&paths) {
        let _ = writeln!(report, "tests/: {complaint}");
    }
    for complaint in links::complaints(&files)
        .into_iter()
        .chain(clauses::complaints(&files))
    {
        let _ = writeln!(report, "{complaint}");
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
        "allow-indexing-slicing-in-tests = true",
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
    let members = [
        "vdisk/",
        "blockserver/",
        "mirror/",
        "vmm/",
        "tests/link/",
        "",
    ];
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
fn there_is_one_tls_library_and_it_needs_no_other_language_build() {
    let files = tree();
    let lock = files.iter().find(|file| file.path == "Cargo.lock");
    let lock = &lock.expect("Cargo.lock is missing").text;
    assert!(lock.contains("name = \"ring\""), "rustls has no provider");
    for name in [
        "aws-lc-rs",
        "aws-lc-sys",
        "cmake",
        "native-tls",
        "openssl-sys",
    ] {
        let line = format!("name = \"{name}\"");
        assert!(!lock.contains(&line), "{name} is depended upon");
    }
}
