//! Rust as text: what of it is code, and what of the code ships.

use std::path::Path;

/// Test code that does not stand where tests stand.
const TEST_FOLDERS: [&str; 1] = ["mirror/src/sim/"];

/// A file's text with comments and the insides of literals blanked, line breaks kept.
pub(crate) fn code_only(text: &str) -> String {
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

pub(crate) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether `word` stands in `line` with no word character, nor a path before it, on its sides.
pub(crate) fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(i, _)| {
        let before = line[..i].chars().next_back();
        let after = line[i + word.len()..].chars().next();
        !before.is_some_and(|c| is_word(c) || c == ':') && !after.is_some_and(is_word)
    })
}

/// Splits `code` into what ships and what stands in `#[cfg(test)] mod … { }` at column 0.
pub(crate) fn split_tests(code: &str) -> (String, usize) {
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

pub(crate) fn is_rust(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|ext| ext == "rs")
}

pub(crate) fn is_test_file(path: &str) -> bool {
    path.starts_with("tests/")
        || path.contains("/tests/")
        || path.ends_with("tests.rs")
        || TEST_FOLDERS.iter().any(|folder| path.starts_with(folder))
}

#[test]
fn comments_and_literals_are_not_code() {
    let text = "a \"b\\\"//c\" 'd' '\\'' r#\"e\"f\"# /* g */ h // i\n'static j";
    let code = code_only(text);
    let words: Vec<&str> = code.split_whitespace().collect();
    assert_eq!(words, ["a", "h", "'static", "j"]);
}
