//! What a process has mapped of its program's text, let go of once it has started.
//!
//! Driver. Starting runs much that is never run again, and the kernel maps the neighbours of every page that is touched: most
//! of a program ends up resident. A machine lives long after that. Only ranges that hold nothing but what is in
//! their file are let go of; what is needed again comes from the page cache. Must never touch data.

use std::ffi::c_void;
use std::fs::File;
use std::io::Read as _;
use std::ops::Range;

use rustix::mm::{Advice, madvise};

/// The text of the program and its libraries, as this process has it mapped.
#[derive(Debug)]
pub struct Text {
    /// `None` where the kernel does not show it.
    mappings: Option<File>,
}

impl Text {
    /// That of this process. Opens what it needs later, when the process may not open it any more.
    #[must_use]
    pub fn of_this_process() -> Self {
        let mappings = File::open("/proc/self/smaps").ok();
        Self { mappings }
    }

    /// Let go of it. Where that cannot be, all stays as it is.
    ///
    /// For the time before a guest has touched much of its memory: the kernel looks through all that is mapped for it.
    pub fn let_go(self) {
        let mut mappings = String::new();
        let read = self
            .mappings
            .map(|mut file| file.read_to_string(&mut mappings));
        if !matches!(read, Some(Ok(_))) {
            return;
        }
        for range in text(&mappings) {
            let start: *mut c_void = std::ptr::with_exposed_provenance_mut(range.start);
            // SAFETY: the range is text that cannot be written to, mapped from a file, without a page that differs
            // from the file: after this the same bytes are there, read from the file when they are touched.
            let _ = unsafe { madvise(start, range.len(), Advice::LinuxDontNeed) };
        }
    }
}

/// Ranges of text in the mappings of a process, as `proc_pid_smaps(5)` has them: those of files, executable and
/// not writable, in which no page is the process's own copy.
fn text(mappings: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut current = None;
    for line in mappings.lines() {
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next()) {
            (Some("Anonymous:"), Some("0")) => found.extend(current.take()),
            (Some(word), _) if word.ends_with(':') => {}
            (Some(range), Some("r-xp")) if line.contains(" /") => current = addresses(range),
            _ => current = None,
        }
    }
    found
}

fn addresses(range: &str) -> Option<Range<usize>> {
    let (start, end) = range.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    Some(number(start)?..number(end)?)
}

#[cfg(test)]
mod tests {
    use super::{Text, text};

    #[test]
    fn only_text_that_is_as_in_its_file_is_let_go_of() {
        let mapping = |range: &str, access: &str, name: &str, own: u32| {
            format!(
                "{range} {access} 0001d000 fe:00 42 {name}\nSize: 8 kB\nRss: 8 kB\nAnonymous: {own} kB\nVmFlags: rd ex mr mw me\n"
            )
        };
        let all = [
            mapping("1000-3000", "r-xp", "/usr/bin/program", 0),
            mapping("3000-4000", "r--p", "/usr/bin/program", 0),
            mapping("4000-5000", "rw-p", "/usr/bin/program", 0),
            mapping("5000-6000", "r-xp", "/usr/lib/with a breakpoint.so", 4),
            mapping("6000-7000", "r-xp", "[vdso]", 0),
            mapping("7000-9000", "r-xs", "/dev/shm/shared", 0),
            mapping("a000-b000", "r-xp", "/usr/lib/libc.so.6", 0),
            "not a mapping".to_owned(),
        ];
        assert_eq!(text(&all.concat()), [0x1000..0x3000, 0xa000..0xb000]);
        assert!(text("").is_empty());
    }

    #[test]
    fn a_program_goes_on_without_what_was_let_go_of() {
        Text::of_this_process().let_go();
        let own = std::fs::read_to_string("/proc/self/smaps").expect("this process has mappings");
        assert!(!text(&own).is_empty());
    }
}
