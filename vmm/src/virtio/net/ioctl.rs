//! What a tap is asked for by `ioctl` (`linux/if_tun.h`, netdevice(7)).
//!
//! Driver, and all of it is unsafe code: each request gets the structure that it is for. Nothing here
//! decides.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use libc::{c_int, c_short, c_uint, c_ulong, ifreq};

/// Most bytes of an interface's name, without the NUL.
pub(super) const NAME_LEN: usize = libc::IFNAMSIZ - 1;

/// A request for the interface of this name, at most [`NAME_LEN`] bytes.
fn request(name: &str) -> ifreq {
    // SAFETY: a structure of numbers and bytes; all zeros are a value of it.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(NAME_LEN)) {
        *to = from.cast_signed();
    }
    request
}

fn call<T>(fd: impl AsFd, code: c_ulong, argument: *mut T) -> io::Result<()> {
    // SAFETY: the callers below pair a code with a pointer to what the kernel reads and writes by it, which
    // they own; `fd` is open as long as it is borrowed.
    let answer = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), code as _, argument) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn of_interface(fd: impl AsFd, code: c_ulong, request: &mut ifreq) -> io::Result<()> {
    call(fd, code, std::ptr::from_mut(request))
}

/// Make an open `/dev/net/tun` the other end of tap `name`: Ethernet frames, each behind a header of virtio's.
pub(super) fn attach(tun: impl AsFd, name: &str) -> io::Result<()> {
    let mut request = request(name);
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as c_short;
    of_interface(tun, libc::TUNSETIFF as c_ulong, &mut request)
}

/// The name that the tap has now.
pub(super) fn name(tap: impl AsFd) -> io::Result<String> {
    let mut request = request("");
    of_interface(tap, libc::TUNGETIFF as c_ulong, &mut request)?;
    let bytes = request.ifr_name.iter().take_while(|byte| **byte != 0);
    let bytes = bytes.map(|byte| byte.cast_unsigned()).collect();
    String::from_utf8(bytes).map_err(io::Error::other)
}

/// Headers before frames are of so many bytes.
pub(super) fn set_header_len(tap: impl AsFd, bytes: u8) -> io::Result<()> {
    let mut bytes = c_int::from(bytes);
    call(tap, libc::TUNSETVNETHDRSZ as c_ulong, &raw mut bytes)
}

/// What the kernel may leave to whoever reads frames: bits of `TUN_F_`.
pub(super) fn set_offloads(tap: impl AsFd, offloads: u32) -> io::Result<()> {
    // The argument is the number itself.
    let number = std::ptr::without_provenance_mut::<c_uint>(offloads as usize);
    call(tap, libc::TUNSETOFFLOAD as c_ulong, number)
}

/// The flags of an interface (`IFF_UP` and so on), asked by any socket of its network namespace.
pub(super) fn flags(socket: impl AsFd, name: &str) -> io::Result<c_int> {
    let mut request = request(name);
    of_interface(socket, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: the kernel has filled this member.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(c_int::from(flags))
}

/// Switch an interface on.
pub(super) fn switch_on(socket: impl AsFd, name: &str) -> io::Result<()> {
    let flags = flags(&socket, name)? | libc::IFF_UP;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = flags as c_short;
    of_interface(socket, libc::SIOCSIFFLAGS, &mut request)
}

/// The MTU of an interface.
pub(super) fn mtu(socket: impl AsFd, name: &str) -> io::Result<c_int> {
    let mut request = request(name);
    of_interface(socket, libc::SIOCGIFMTU, &mut request)?;
    // SAFETY: the kernel has filled this member.
    Ok(unsafe { request.ifr_ifru.ifru_mtu })
}

/// Give an interface an MTU.
pub(super) fn set_mtu(socket: impl AsFd, name: &str, mtu: u16) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_mtu = c_int::from(mtu);
    of_interface(socket, libc::SIOCSIFMTU, &mut request)
}
