//! The tables of `docs/vhdx.md` that say, clause by clause, which file keeps it and which test holds that:
//! every clause is in one, and every file and test that one names is there.

use std::collections::BTreeSet;

use crate::File;
use crate::rust::is_rust;

/// The document with the tables.
const DOCUMENT: &str = "docs/vhdx.md";
/// Where the paths of its tables begin, if not at the root.
const CRATE: &str = "vdisk/src/";
/// The sections of MS-VHDX that say what a file must be; each has a row.
const SECTIONS: [&str; 35] = [
    "2.1",
    "2.2",
    "2.2.1",
    "2.2.2",
    "2.2.2.1",
    "2.2.3",
    "2.2.3.1",
    "2.2.3.2",
    "2.3",
    "2.3.1",
    "2.3.1.1",
    "2.3.1.2",
    "2.3.1.3",
    "2.3.1.4",
    "2.3.2",
    "2.3.3",
    "2.4",
    "2.5",
    "2.5.1",
    "2.5.1.1",
    "2.5.1.2",
    "2.6",
    "2.6.1",
    "2.6.1.1",
    "2.6.1.2",
    "2.6.2",
    "2.6.2.1",
    "2.6.2.2",
    "2.6.2.3",
    "2.6.2.4",
    "2.6.2.5",
    "2.6.2.6",
    "2.6.2.6.1",
    "2.6.2.6.2",
    "2.6.2.6.3",
];

/// A row of such a table: its clauses, files, and tests.
struct Row<'a> {
    clauses: Vec<&'a str>,
    files: Vec<&'a str>,
    tests: Vec<&'a str>,
}

/// Complaints about the document, if it is among `files`.
pub(crate) fn complaints(files: &[File]) -> Vec<String> {
    let Some(document) = files.iter().find(|file| file.path == DOCUMENT) else {
        return Vec::new();
    };
    let rows = rows(&document.text);
    let tests = tests(files);
    let mut complaints = Vec::new();
    for row in &rows {
        let clause = row.clauses.join(", ");
        if row.files.is_empty() || row.tests.is_empty() {
            complaints.push(format!("{clause}: a row names its files and its tests"));
        }
        let gone = row.files.iter().filter(|path| find(files, path).is_none());
        complaints.extend(gone.map(|path| format!("{clause}: there is no {path}")));
        let untested = row
            .tests
            .iter()
            .filter(|name| !is_test(files, &tests, name));
        complaints.extend(untested.map(|name| format!("{clause}: there is no test {name}")));
    }
    let told: BTreeSet<&str> = rows.iter().flat_map(|row| row.clauses.clone()).collect();
    let untold = SECTIONS.iter().filter(|section| !told.contains(*section));
    complaints.extend(untold.map(|section| format!("no row for {section}")));
    complaints
        .into_iter()
        .map(|complaint| format!("{DOCUMENT}: {complaint}"))
        .collect()
}

/// The rows of every table that begins with clauses and ends with files and tests.
fn rows(text: &str) -> Vec<Row<'_>> {
    let mut rows = Vec::new();
    let mut within = false;
    for line in text.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, clauses, .., files, tests, _] = cells[..] else {
            within = false;
            continue;
        };
        if (clauses, files, tests) == ("clause", "where", "test") {
            within = true;
        } else if within && !clauses.starts_with('-') {
            rows.push(Row {
                clauses: clauses.split(',').map(str::trim).collect(),
                files: spans(files),
                tests: spans(tests),
            });
        }
    }
    rows
}

/// What is set as code in a cell.
fn spans(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

fn find<'a>(files: &'a [File], path: &str) -> Option<&'a File> {
    let of_crate = format!("{CRATE}{path}");
    files
        .iter()
        .find(|file| file.path == path || file.path == of_crate)
}

/// The names of all tests.
fn tests(files: &[File]) -> BTreeSet<&str> {
    let mut tests = BTreeSet::new();
    for file in files.iter().filter(|file| is_rust(&file.path)) {
        let mut marked = false;
        for line in file.text.lines().map(str::trim_start) {
            if line == "#[test]" {
                marked = true;
            } else if let Some(rest) = line.strip_prefix("fn ") {
                if marked {
                    tests.insert(rest.split('(').next().unwrap_or(rest));
                }
                marked = false;
            } else if !line.starts_with(['#', '/']) {
                marked = false;
            }
        }
    }
    tests
}

/// Whether a name is that of a test, or the beginning of one before an ellipsis, or a file that has some.
fn is_test(files: &[File], tests: &BTreeSet<&str>, name: &str) -> bool {
    if is_rust(name) {
        return find(files, name).is_some_and(|file| file.text.contains("#[test]"));
    }
    match name.strip_suffix('…') {
        Some(start) => tests.iter().any(|test| test.starts_with(start)),
        None => tests.contains(name),
    }
}

#[test]
fn a_row_that_names_nothing_is_seen() {
    let said = |row: &str| {
        let all = SECTIONS.map(|section| format!("| {section} | x | `a.rs` | `it_holds` |\n"));
        let table = format!(
            "| clause | rule | where | test |\n|---|---|---|---|\n{}",
            all.concat()
        );
        let file = |path: &str, text: &str| File {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        let code = "mod tests {\n    #[test]\n    // So.\n    fn it_holds() {}\n\n    fn holds_not() {}\n}\n";
        complaints(&[
            file(DOCUMENT, &format!("{table}{row}\n\n| a | `b` | `c.rs` |\n")),
            file("vdisk/src/a.rs", code),
            file("tests/b.rs", ""),
        ])
    };
    for row in [
        "| 2.1 | x | `c.rs` | `it_holds` |",
        "| 2.1 | x | `a.rs`, `c.rs` | `it_holds` |",
        "| 2.1 | x | all | `it_holds` |",
        "| 2.1 | x | `a.rs` | |",
        "| 2.1 | x | `a.rs` | `it_hold` |",
        "| 2.1 | x | `a.rs` | `it_holds`, `holds_not` |",
        "| 2.1 | x | `a.rs` | `holds_…` |",
        "| 2.1 | x | `a.rs` | `tests/b.rs` |",
    ] {
        assert_eq!(said(row).len(), 1, "{row}: {:?}", said(row));
    }
    for row in [
        "| 2.1, 2.2 | x | `a.rs`, `tests/b.rs` | `it_holds`, `it_…`, `a.rs` |",
        "",
    ] {
        assert!(said(row).is_empty(), "{row}: {:?}", said(row));
    }
    let none = [File {
        path: DOCUMENT.to_owned(),
        text: String::new(),
    }];
    assert_eq!(complaints(&none).len(), SECTIONS.len());
}
