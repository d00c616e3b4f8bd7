//! The command line: what to do, and with which numbers.
//!
//! It is words: `do=NAME` opens a step, and `key=value` after it belongs to that step. Words before
//! the first `do=` hold for every step that has no word of its own for the key. A word that cannot be
//! understood ends the machine: a test that ran with another number than was asked for proves nothing.

/// Something to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step<'a> {
    /// Which thing.
    pub(crate) name: &'a str,
    own: &'a str,
    shared: &'a str,
}

/// The steps of a command line, in their order; `hello` when there is none.
pub(crate) fn steps(line: &str) -> impl Iterator<Item = Step<'_>> {
    let mut parts = Parts(Some(line));
    let shared = parts.next().unwrap_or_default();
    let hello = Step {
        name: "hello",
        own: "",
        shared,
    };
    let has_none = parts.0.is_none();
    let steps = parts.map(move |part| {
        let name = part.split_ascii_whitespace().next().unwrap_or_default();
        Step {
            name,
            own: part.get(name.len()..).unwrap_or_default(),
            shared,
        }
    });
    has_none.then_some(hello).into_iter().chain(steps)
}

/// What stands before and between the words `do=`.
struct Parts<'a>(Option<&'a str>);

impl<'a> Iterator for Parts<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let rest = self.0?;
        let opens = |(at, _): &(usize, &str)| {
            let before = rest
                .get(..*at)
                .and_then(|before| before.chars().next_back());
            before.is_none_or(|c| c.is_ascii_whitespace())
        };
        match rest.match_indices("do=").find(opens) {
            Some((at, word)) => {
                self.0 = rest.get(at + word.len()..);
                rest.get(..at)
            }
            None => self.0.take(),
        }
    }
}

impl<'a> Step<'a> {
    /// The value of the last word with this key.
    pub(crate) fn text(&self, key: &str) -> Option<&'a str> {
        let value = |words: &'a str| {
            words
                .split_ascii_whitespace()
                .filter_map(|word| word.split_once('='))
                .filter(|(name, _)| *name == key)
                .map(|(_, value)| value)
                .next_back()
        };
        value(self.own).or_else(|| value(self.shared))
    }

    /// The number behind a key: decimal or `0x`, with `K`, `M`, `G` or `T` for powers of 1024.
    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        let text = self.text(key)?;
        let number = parse_number(text);
        assert!(number.is_some(), "{key}={text} is not a number");
        number
    }

    /// The same, or `default` without the word.
    pub(crate) fn number_or(&self, key: &str, default: u64) -> u64 {
        self.number(key).unwrap_or(default)
    }

    /// Whether `key=1` was said.
    pub(crate) fn is_set(&self, key: &str) -> bool {
        self.number_or(key, 0) != 0
    }
}

fn parse_number(text: &str) -> Option<u64> {
    if let Some(digits) = text.strip_prefix("0x") {
        return u64::from_str_radix(digits, 16).ok();
    }
    let digits = text.trim_end_matches(|c: char| "KMGT".contains(c));
    let shift = match text.get(digits.len()..)? {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::{parse_number, steps};

    #[test]
    fn a_command_line_is_a_list_of_steps_with_their_words() {
        let line = "depth=4 seed=9 do=load depth=32 ops=1K do=undo=x do=hello";
        let mut all = steps(line);
        let load = all.next().expect("a step");
        assert_eq!(load.name, "load");
        assert_eq!(load.number_or("depth", 1), 32);
        assert_eq!(load.number_or("ops", 1), 1024);
        assert_eq!(load.number_or("seed", 1), 9);
        assert_eq!(load.number("absent"), None);
        let next = all.next().expect("a step");
        assert_eq!((next.name, next.text("depth")), ("undo=x", Some("4")));
        assert_eq!(all.next().expect("a step").name, "hello");
        assert!(all.next().is_none());
    }

    #[test]
    fn a_command_line_without_a_step_says_hello() {
        for line in ["", "seed=1", "console=ttyS0 undo=1"] {
            let mut all = steps(line);
            assert_eq!(all.next().expect("a step").name, "hello", "{line}");
            assert!(all.next().is_none(), "{line}");
        }
    }

    #[test]
    fn a_number_is_understood_or_refused() {
        assert_eq!(parse_number("0x1f"), Some(31));
        assert_eq!(parse_number("12"), Some(12));
        assert_eq!(parse_number("2T"), Some(2 << 40));
        for text in ["", "K", "1KK", "1k", "-1", "0x", "99999999999T", "1 "] {
            assert_eq!(parse_number(text), None, "{text}");
        }
    }
}
