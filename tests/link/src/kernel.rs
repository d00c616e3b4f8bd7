//! What only the kernel can be asked for: a namespace, a TUN interface.
//!
//! Driver, and all the unsafe code of this crate. Nothing here decides.

use std::fs::{File, OpenOptions};
use std::io::{self, Error};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use rustix::thread::UnshareFlags;

/// Moves the calling thread into a network namespace of its own.
pub(crate) fn leave_network() -> io::Result<()> {
    // SAFETY: the flag leaves the table of open files shared, which is what the condition is about.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
    Ok(())
}

/// A TUN interface of this name, made in the namespace of the calling thread; it goes when the file is closed. What is
/// read and written are packets of IP without anything before them; reads do not wait.
pub(crate) fn tun(name: &str) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(flags);
    let file = options.open("/dev/net/tun")?;
    // SAFETY: a structure of numbers and bytes; all zeros are a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= libc::IFNAMSIZ {
        return Err(Error::other(format!("{name} is too long for an interface")));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    let pointer = std::ptr::from_mut(&mut request);
    // SAFETY: this request reads and writes an `ifreq`, which is ours; `file` is open.
    let answer = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, pointer) };
    if answer < 0 {
        return Err(Error::last_os_error());
    }
    Ok(file)
}
