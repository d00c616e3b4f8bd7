//! Documents that point to files of the tree: what they point to is there.

use std::collections::BTreeSet;
use std::path::Path;

use crate::File;

/// Folders whose files documents name by their path from the root.
const FOLDERS: [&str; 12] = [
    "vdisk/",
    "blockserver/",
    "mirror/",
    "package/",
    "vmm/",
    "src/",
    "tests/",
    "benches/",
    "fuzz/",
    "docs/",
    "scripts/",
    ".ci/",
];

/// Complaints about the documents among `files`.
pub(crate) fn complaints(files: &[File]) -> Vec<String> {
    let mut there = BTreeSet::new();
    for file in files {
        there.insert(file.path.as_str());
        let folders = file.path.match_indices('/');
        there.extend(folders.map(|(end, _)| &file.path[..end]));
    }
    let documents = files.iter().filter(|file| {
        let extension = Path::new(&file.path).extension();
        extension.is_some_and(|extension| extension == "md")
    });
    documents
        .flat_map(|document| {
            pointers(document)
                .into_iter()
                .filter(|path| !there.contains(path.trim_end_matches('/')))
                .map(|path| format!("{}: there is no {path}", document.path))
        })
        .collect()
}

/// What a document points to, from the root: targets of links, and paths set as code.
fn pointers(document: &File) -> Vec<String> {
    let text = &document.text;
    let folder = document
        .path
        .rsplit_once('/')
        .map_or("", |(folder, _)| folder);
    let links = text.split("](").skip(1).filter_map(|rest| {
        let target = rest.split([')', '#', ' ']).next()?;
        let elsewhere = target.is_empty() || target.contains(':');
        (!elsewhere).then(|| resolved(folder, target))
    });
    let spans = text
        .lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2));
    let paths = spans.filter(|span| {
        let is_path = |c: char| c.is_alphanumeric() || "/._-".contains(c);
        FOLDERS.iter().any(|folder| span.starts_with(folder)) && span.chars().all(is_path)
    });
    links.chain(paths.map(str::to_owned)).collect()
}

/// A path as it is written in a file of `folder`, from the root.
fn resolved(folder: &str, target: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[test]
fn a_pointer_to_nothing_is_seen() {
    let dead = |text: &str| {
        let file = |path: &str, text: &str| File {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        let files = [
            file("docs/a.md", text),
            file("docs/b.md", ""),
            file("vdisk/src/lib.rs", ""),
        ];
        complaints(&files)
    };
    for text in [
        "see [it](c.md)",
        "see [it](../b.md#part)",
        "| `vdisk/src/gone.rs` |",
        "`x` and `docs/c.md`",
        "`vdisk/tests/`",
    ] {
        assert_eq!(dead(text).len(), 1, "{text}");
    }
    let alive = "[b](b.md), [b](./b.md#part), [here](#part), [web](https://a.b/c), [l](../vdisk/), \
        `vdisk/src/lib.rs`, `vdisk/src/`, `src/*.rs`, `src/a b`, `c.md`, `other/c.md`";
    assert!(dead(alive).is_empty(), "{:?}", dead(alive));
}
