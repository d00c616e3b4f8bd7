//! Help, usage errors, completions, manual pages: what is said before any disk is touched.

use super::run::{diskferry, folder};

/// Every verb that `--help` lists.
fn verbs() -> Vec<String> {
    let here = folder();
    let help = diskferry(here.path(), &["--help"]).ok().stdout;
    let commands = help
        .split("Commands:\n")
        .nth(1)
        .expect("a list of commands");
    let listed = commands.lines().take_while(|line| line.starts_with("  "));
    let names = listed.filter_map(|line| line.split_whitespace().next());
    names
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_verb_explains_itself_with_examples() {
    let here = folder();
    let verbs = verbs();
    assert!(verbs.len() >= 5, "{verbs:?}");
    for verb in verbs {
        let help = diskferry(here.path(), &[verb.as_str(), "--help"])
            .ok()
            .stdout;
        assert!(help.contains("Examples:\n  diskferry "), "{verb}: {help}");
    }
}

#[test]
fn every_exit_code_is_in_the_help_and_in_the_readme() {
    let here = folder();
    let help = diskferry(here.path(), &["--help"]).ok().stdout;
    let readme = include_str!("../../README.md");
    let codes = help
        .split("Exit codes:\n")
        .nth(1)
        .expect("a list of exit codes");
    let mut count = 0;
    for line in codes.lines().filter(|line| !line.trim().is_empty()) {
        let (code, meaning) = line.trim().split_once("  ").expect("code and meaning");
        let row = format!("| {code} | {} |", meaning.trim());
        assert!(readme.contains(&row), "the README lacks: {row}");
        count += 1;
    }
    assert_eq!(count, 14);
}

#[test]
fn what_makes_no_sense_is_a_usage_error() {
    let here = folder();
    for words in [
        &["fly"][..],
        &["create"],
        &["create", "a.vhdx"],
        &["create", "a.vhdx", "1T", "--speed", "9"],
        &["info", "a.vhdx", "--quiet", "--verbose"],
    ] {
        diskferry(here.path(), words).fails(2);
    }
    let ran = diskferry(here.path(), &["create", "a.vhdx", "10000"]).fails(2);
    assert!(
        ran.stderr.contains("hint: nearest: 9728 or 10K"),
        "{}",
        ran.stderr
    );
    assert_eq!(
        std::fs::read_dir(here.path()).unwrap().count(),
        0,
        "something was made"
    );
}

#[test]
fn a_failure_is_a_line_of_json_too() {
    let here = folder();
    let ran = diskferry(here.path(), &["--json", "create", "a.vhdx", "10000"]).fails(2);
    let line = ran.json();
    assert_eq!(line["type"], "error");
    assert_eq!(line["exit_code"], 2);
    assert_eq!(line["hint"], "nearest: 9728 or 10K");
}

#[test]
fn completions_and_manual_pages_know_every_verb() {
    let here = folder();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = diskferry(here.path(), &["completions", shell]).ok().stdout;
        for verb in verbs() {
            assert!(script.contains(&verb), "{shell}: {verb}");
        }
    }
    let page = diskferry(here.path(), &["man"]).ok().stdout;
    assert!(page.contains(".SH SYNOPSIS"), "{page}");
    diskferry(here.path(), &["man", "--into", "."]).ok();
    for verb in verbs() {
        assert!(
            here.path().join(format!("diskferry-{verb}.1")).exists(),
            "{verb}"
        );
    }
}

#[test]
fn colour_is_for_terminals_only_unless_asked_for() {
    let here = folder();
    let plain = diskferry(here.path(), &["info", "none.vhdx"]).fails(1);
    assert!(!plain.stderr.contains('\x1b'));
    let asked = diskferry(here.path(), &["--color", "always", "info", "none.vhdx"]);
    assert!(asked.stderr.contains("\x1b["));
}
