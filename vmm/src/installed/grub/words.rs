//! The words of a `grub.cfg`: quotes, variables, comments and ends of commands (GRUB manual, "Writing full
//! configuration files directly").
//!
//! Codec: every text has words; what is left open at its end is closed there.

/// A piece of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// As it stands.
    Text(String),
    /// The value of a variable. One that is not quoted falls apart at its spaces.
    Variable { name: String, quoted: bool },
}

/// What a configuration consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// A word.
    Word(Vec<Piece>),
    /// The end of a command.
    End,
    /// `{`
    Open,
    /// `}`
    Close,
}

/// The tokens of a text.
pub(super) fn tokens(text: &str) -> Vec<Token> {
    let mut words = Words {
        rest: text.chars().collect(),
        at: 0,
        tokens: Vec::new(),
        word: None,
    };
    words.run();
    words.tokens
}

struct Words {
    rest: Vec<char>,
    at: usize,
    tokens: Vec<Token>,
    word: Option<Vec<Piece>>,
}

impl Words {
    fn next(&mut self) -> Option<char> {
        let next = self.peek();
        self.at = self.at.saturating_add(usize::from(next.is_some()));
        next
    }

    fn peek(&self) -> Option<char> {
        self.rest.get(self.at).copied()
    }

    fn push(&mut self, c: char) {
        let word = self.word.get_or_insert_default();
        if let Some(Piece::Text(text)) = word.last_mut() {
            text.push(c);
        } else {
            word.push(Piece::Text(c.into()));
        }
    }

    fn end_word(&mut self) {
        let Some(word) = self.word.take() else { return };
        let plain = match word.as_slice() {
            [Piece::Text(text)] => text.as_str(),
            _ => "",
        };
        self.tokens.push(match plain {
            "{" => Token::Open,
            "}" => Token::Close,
            _ => Token::Word(word),
        });
    }

    fn run(&mut self) {
        while let Some(c) = self.next() {
            match c {
                ' ' | '\t' | '\r' => self.end_word(),
                '\n' | ';' => {
                    self.end_word();
                    self.tokens.push(Token::End);
                }
                '#' if self.word.is_none() => {
                    while self.peek().is_some_and(|c| c != '\n') {
                        self.next();
                    }
                }
                '\'' => self.single(),
                '"' => self.double(),
                '\\' => match self.next() {
                    None | Some('\n') => {}
                    Some(c) => self.push(c),
                },
                '$' => self.variable(false),
                c => self.push(c),
            }
        }
        self.end_word();
        self.tokens.push(Token::End);
    }

    fn single(&mut self) {
        // A quoted nothing is a word too.
        self.word.get_or_insert_default();
        while let Some(c) = self.next() {
            if c == '\'' {
                return;
            }
            self.push(c);
        }
    }

    fn double(&mut self) {
        self.word.get_or_insert_default();
        while let Some(c) = self.next() {
            match c {
                '"' => return,
                '\\' if matches!(self.peek(), Some('"' | '\\' | '$')) => {
                    if let Some(c) = self.next() {
                        self.push(c);
                    }
                }
                '$' => self.variable(true),
                c => self.push(c),
            }
        }
    }

    fn variable(&mut self, quoted: bool) {
        let braces = self.peek() == Some('{');
        if braces {
            self.next();
        }
        let mut name = String::new();
        while let Some(c) = self.peek() {
            if !(c.is_ascii_alphanumeric() || c == '_' || (name.is_empty() && c == '?')) {
                break;
            }
            name.push(c);
            self.next();
        }
        if braces && self.peek() == Some('}') {
            self.next();
        }
        if name.is_empty() {
            self.push('$');
        } else {
            let word = self.word.get_or_insert_default();
            word.push(Piece::Variable { name, quoted });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(of: &str) -> Piece {
        Piece::Text(of.into())
    }

    #[test]
    fn quotes_comments_and_variables_are_what_they_are_in_grub() {
        let found = tokens("set a='b c'\"$d e\"# f\n# g\necho '' \\\n h#i; }");
        let variable = Piece::Variable {
            name: "d".into(),
            quoted: true,
        };
        assert_eq!(
            found,
            [
                Token::Word(vec![text("set")]),
                Token::Word(vec![text("a=b c"), variable, text(" e#")]),
                Token::Word(vec![text("f")]),
                Token::End,
                Token::End,
                Token::Word(vec![text("echo")]),
                Token::Word(vec![]),
                Token::Word(vec![text("h#i")]),
                Token::End,
                Token::Close,
                Token::End,
            ]
        );
    }

    #[test]
    fn what_is_left_open_ends_with_the_text() {
        for text in ["'", "\"", "${", "$", "\\", "\"\\", "a \"${b", "{"] {
            assert!(matches!(tokens(text).last(), Some(Token::End)), "{text}");
        }
    }
}
