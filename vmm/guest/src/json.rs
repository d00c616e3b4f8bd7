//! Lines of JSON, built without memory of their own beyond a fixed buffer.

use core::fmt;

/// Longest line in bytes; what does not fit is cut off, and the line ends all the same.
const LONGEST: usize = 480;
/// Kept free for what closes a line.
const CLOSING: usize = 4;

/// One line about one event: `{"event":"…","vcpu":n,…}`.
pub(crate) struct Line {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Line {
    /// Opens the line of an event that happened on a vCPU.
    pub(crate) fn new(event: &str, vcpu: u32) -> Self {
        let mut line = Self {
            bytes: [0; LONGEST],
            len: 0,
        };
        line.push(b"{\"event\":\"");
        line.push(event.as_bytes());
        line.push(b"\"");
        line.number("vcpu", u64::from(vcpu))
    }

    /// Adds a number.
    pub(crate) fn number(mut self, key: &str, mut value: u64) -> Self {
        let mut digits = [0; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (value % 10) as u8;
            value /= 10;
            if value == 0 {
                break;
            }
        }
        self.key(key);
        self.push(&digits[at..]);
        self
    }

    /// Adds a text.
    pub(crate) fn text(mut self, key: &str, value: impl fmt::Display) -> Self {
        self.key(key);
        self.push(b"\"");
        // Never fails: what does not fit is cut.
        let _ = fmt::write(&mut Escaped(&mut self), format_args!("{value}"));
        self.push(b"\"");
        self
    }

    /// Adds bytes as hexadecimal digits.
    pub(crate) fn hex(mut self, key: &str, value: &[u8]) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        self.key(key);
        self.push(b"\"");
        for byte in value {
            let pair = [
                DIGITS[usize::from(byte >> 4)],
                DIGITS[usize::from(byte & 15)],
            ];
            self.push(&pair);
        }
        self.push(b"\"");
        self
    }

    /// The whole line, with its end.
    pub(crate) fn finish(&mut self) -> &[u8] {
        let closing = b"}\n";
        self.bytes[self.len..self.len + closing.len()].copy_from_slice(closing);
        self.len += closing.len();
        &self.bytes[..self.len]
    }

    fn key(&mut self, key: &str) {
        self.push(b",\"");
        self.push(key.as_bytes());
        self.push(b"\":");
    }

    fn push(&mut self, bytes: &[u8]) {
        let room = LONGEST - CLOSING - self.len;
        // A closing quote finds its place even behind a text that was cut.
        let room = if bytes == b"\"" { room + 1 } else { room };
        let bytes = &bytes[..bytes.len().min(room)];
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
}

/// Text on its way into a string of JSON.
struct Escaped<'a>(&'a mut Line);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            match byte {
                b'"' | b'\\' => self.0.push(&[b'\\', byte]),
                b' '..=b'~' => self.0.push(&[byte]),
                _ => self.0.push(b"?"),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{LONGEST, Line};

    #[test]
    fn a_line_is_json() {
        let mut line = Line::new("hello", 3)
            .number("none", 0)
            .number("most", u64::MAX)
            .text("said", "a \"b\" \\ \n é")
            .hex("bytes", &[0, 0xaf]);
        let expected = "{\"event\":\"hello\",\"vcpu\":3,\"none\":0,\"most\":18446744073709551615,\
            \"said\":\"a \\\"b\\\" \\\\ ? ??\",\"bytes\":\"00af\"}\n";
        assert_eq!(line.finish(), expected.as_bytes());
    }

    #[test]
    fn a_line_that_is_too_long_is_cut_and_closed() {
        let mut line = Line::new("panic", 0).text("said", "x".repeat(LONGEST));
        let bytes = line.finish();
        assert!(bytes.len() <= LONGEST);
        assert!(bytes.ends_with(b"x\"}\n"));
    }
}
