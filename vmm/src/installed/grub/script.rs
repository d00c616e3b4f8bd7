//! The commands of a `grub.cfg` and what is inside of what.
//!
//! Codec: every list of tokens is a script; what is nested deeper than anybody nests it is left out. Loops and
//! functions are left out too: what `grub-mkconfig` writes needs neither.

use super::words::{Piece, Token};

/// How deep commands may be inside of commands.
const DEEPEST: usize = 24;

/// A word before its variables are put in.
pub(super) type Word = Vec<Piece>;

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Words, and what stands in braces behind them.
    Plain(Vec<Word>, Vec<Command>),
    /// Conditions with what is done where one holds, and what is done where none does.
    If(Vec<(Vec<Command>, Vec<Command>)>, Vec<Command>),
}

/// The commands of a script.
pub(super) fn commands(tokens: &[Token]) -> Vec<Command> {
    let mut script = Script { tokens, at: 0 };
    let mut commands = Vec::new();
    while script.at < tokens.len() {
        commands.extend(script.until(&[], 0));
        // An end of something that was never begun.
        script.at = script.at.saturating_add(1);
    }
    commands
}

struct Script<'a> {
    tokens: &'a [Token],
    at: usize,
}

/// A word that says how commands belong together, if it stands first in a command.
fn keyword(token: &Token) -> &str {
    match token {
        Token::Word(pieces) => match pieces.as_slice() {
            [Piece::Text(text)] => text,
            _ => "",
        },
        Token::Close => "}",
        _ => "",
    }
}

impl Script<'_> {
    fn peek(&self) -> &str {
        self.tokens.get(self.at).map_or("", keyword)
    }

    /// Commands up to one of these words, which is left, or to the end.
    fn until(&mut self, ends: &[&str], depth: usize) -> Vec<Command> {
        let mut commands = Vec::new();
        while let Some(token) = self.tokens.get(self.at) {
            let word = keyword(token);
            if ends.contains(&word) || (ends.is_empty() && word == "}") {
                break;
            }
            match (word, token) {
                (_, Token::End) => self.at += 1,
                ("if", _) => commands.extend(self.choice(depth)),
                ("for" | "while" | "until", _) => self.loop_(depth),
                ("function", _) => drop(self.plain(depth)),
                _ => commands.extend(self.plain(depth)),
            }
        }
        if depth > DEEPEST {
            Vec::new()
        } else {
            commands
        }
    }

    fn skip(&mut self, word: &str) {
        if self.peek() == word {
            self.at += 1;
        }
    }

    fn choice(&mut self, depth: usize) -> Option<Command> {
        let mut cases = Vec::new();
        let mut otherwise = Vec::new();
        self.at += 1;
        if depth > DEEPEST {
            return None;
        }
        loop {
            let condition = self.until(&["then", "fi", "}"], depth + 1);
            self.skip("then");
            let done = self.until(&["elif", "else", "fi", "}"], depth + 1);
            cases.push((condition, done));
            match self.peek() {
                "elif" => self.at += 1,
                "else" => {
                    self.at += 1;
                    otherwise = self.until(&["fi", "}"], depth + 1);
                    break;
                }
                _ => break,
            }
        }
        self.skip("fi");
        Some(Command::If(cases, otherwise))
    }

    fn loop_(&mut self, depth: usize) {
        self.at += 1;
        if depth <= DEEPEST {
            self.until(&["done", "}"], depth + 1);
            self.skip("done");
        }
    }

    fn plain(&mut self, depth: usize) -> Option<Command> {
        let mut words = Vec::new();
        while let Some(token) = self.tokens.get(self.at) {
            match token {
                Token::Word(word) => words.push(word.clone()),
                // A brace that closes nothing.
                Token::Close if words.is_empty() => {
                    self.at += 1;
                    return None;
                }
                // Another one is the caller's.
                Token::End | Token::Close => break,
                Token::Open => {
                    self.at += 1;
                    if depth > DEEPEST {
                        return None;
                    }
                    let inside = self.until(&["}"], depth + 1);
                    self.skip("}");
                    return Some(Command::Plain(words, inside));
                }
            }
            self.at += 1;
        }
        Some(Command::Plain(words, Vec::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::words::tokens;
    use super::*;

    fn of(text: &str) -> Vec<Command> {
        commands(&tokens(text))
    }

    #[test]
    fn what_is_inside_is_kept_apart_from_what_follows() {
        let found = of("if [ $a ]; then b; elif c; then d\nelse\n e { f; }\nfi\ng");
        let [Command::If(cases, otherwise), Command::Plain(words, _)] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!((cases.len(), otherwise.len(), words.len()), (2, 1, 1));
        assert!(matches!(&otherwise[0], Command::Plain(_, inside) if inside.len() == 1));
        assert_eq!(
            of("function a {\n b\n}\nfor c in d; do e; done; f").len(),
            1
        );
    }

    #[test]
    fn every_text_is_a_script() {
        for text in [
            "}",
            "fi",
            "if",
            "then",
            "} } {",
            "if if if fi",
            "a { b",
            "done; else",
        ] {
            of(text);
        }
        of(&"if ".repeat(100_000));
        of(&"a {\n".repeat(100_000));
        of(&"}\n".repeat(100_000));
    }
}
