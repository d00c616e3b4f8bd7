//! What happens when a thread makes a system call that it may not: it is said on stderr, and the process ends.
//!
//! Driver, in a signal handler, while anything may be half done: must not allocate or take a lock, and makes
//! only system calls that every filter allows. Unsafe is reading what the kernel says about the signal, and
//! ending at once.

use std::cell::Cell;

use vmm_sys_util::signal::register_signal_handler;

use super::{EXIT_CODE, Kind, calls};
use crate::{Error, Result};

thread_local! {
    /// What kind of thread this is; without a destructor, so that it can be read in a handler.
    static KIND: Cell<Kind> = const { Cell::new(Kind::Process) };
}

/// This thread is of this kind.
pub(super) fn remember(kind: Kind) {
    KIND.set(kind);
}

/// Have the signal that refused calls raise end the process.
pub(super) fn end_on_violation() -> Result<()> {
    register_signal_handler(libc::SIGSYS, on_violation).map_err(|error| {
        let error = std::io::Error::from_raw_os_error(error.errno());
        Error::host("the signal of refused system calls cannot be taken", error)
    })
}

/// Where the kernel puts the number of the call into `siginfo_t`, in units of 4 bytes (`signal(7)`).
const CALL_AT: usize = 6;

extern "C" fn on_violation(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler of SIGSYS a whole `siginfo_t` of 128 bytes, aligned to 8.
    let number = unsafe { info.cast::<i32>().add(CALL_AT).read() };
    say(&[
        "diskferry: a thread of kind `",
        KIND.get().name(),
        "` made the system call ",
        Digits::of(number).as_str(),
        " (",
        calls::name(number.into()).unwrap_or("unknown"),
        "), which its filter refuses: the machine ends here. `--confine log` lets such calls pass and has the \
         kernel log them.\n",
    ]);
    // SAFETY: ends the process without running anything of it, which may be half done.
    unsafe { libc::_exit(i32::from(EXIT_CODE)) }
}

fn say(words: &[&str]) {
    for word in words {
        // SAFETY: the bytes are read only, and as many as are said. Nobody is left who could be told of an error.
        unsafe { libc::write(libc::STDERR_FILENO, word.as_ptr().cast(), word.len()) };
    }
}

/// A number in decimal, without memory of the heap.
struct Digits {
    bytes: [u8; 10],
    from: usize,
}

impl Digits {
    fn of(number: i32) -> Self {
        let mut digits = Self {
            bytes: [b'0'; 10],
            from: 10,
        };
        let mut rest = number.unsigned_abs();
        for place in digits.bytes.iter_mut().rev() {
            *place = b'0' + (rest % 10) as u8;
            rest /= 10;
            digits.from -= 1;
            if rest == 0 {
                break;
            }
        }
        digits
    }

    fn as_str(&self) -> &str {
        let used = self.bytes.get(self.from..).unwrap_or_default();
        std::str::from_utf8(used).unwrap_or("?")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_decimal() {
        for number in [0, 7, 59, 435, i32::MAX] {
            assert_eq!(Digits::of(number).as_str(), number.to_string());
        }
    }
}
