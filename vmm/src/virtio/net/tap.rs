//! The host's end of a network device: a tap.
//!
//! Driver. It is made if there is none of its name and we may, and then is gone with us; one that is there
//! is opened, which needs no privilege where it belongs to this user. Whether its link is up is asked when
//! the kernel says that some link has changed (rtnetlink(7)), and remembered. Must never block.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netdevice, recv, socket_with,
};

use super::header::HEADER;
use super::ioctl;
use crate::description::is_interface_name;
use crate::{Error, ErrorKind, Result};

/// The device that taps are made and opened by.
const TUN: &str = "/dev/net/tun";
/// The group of messages about links (`RTMGRP_LINK`).
const LINKS: u32 = 1;
/// Most messages about links that are taken at once.
const MOST_MESSAGES: usize = 16;
/// MTUs that a device may tell (5.1.4.1).
const MTUS: std::ops::RangeInclusive<u16> = 68..=65535;

/// A tap that is open.
#[derive(Debug)]
pub struct Tap {
    frames: OwnedFd,
    /// Hears of links of the namespace that the tap was opened in.
    route: OwnedFd,
    name: String,
    mtu: u16,
    up: AtomicBool,
    gone: AtomicBool,
}

impl Tap {
    /// Open tap `name`, or make it. `mtu` (68 to 65535) is what the machine is told, and what a tap that is
    /// made gets; without one it is the tap's own. A tap that is made is switched on; one that is
    /// there is left as it is.
    ///
    /// # Errors
    /// `InvalidArgument` for a name or an MTU that cannot be, `Unsupported` where there are no taps, `Host`
    /// where this one cannot be had: not permitted, or somebody else's.
    pub fn open(name: &str, mtu: Option<u16>) -> Result<Self> {
        check(name, mtu)?;
        let route = route().and_then(|route| {
            bind(&route, &SocketAddrNetlink::new(0, LINKS))?;
            Ok(route)
        });
        let route =
            route.map_err(|error| Error::host(format!("tap `{name}`: no socket for it"), error))?;
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let frames = open(TUN, flags, Mode::empty()).map_err(|error| no_tun(name, error))?;
        let there = netdevice::name_to_index(&route, name).is_ok();
        ioctl::attach(&frames, name).map_err(|error| refused(name, there, error))?;
        let failed =
            |what| move |error: io::Error| Error::host(format!("tap `{name}`: {what}"), error);
        ioctl::set_header_len(&frames, HEADER as u8).map_err(failed("no headers of virtio's"))?;
        if !there {
            if let Some(mtu) = mtu {
                ioctl::set_mtu(&route, name, mtu).map_err(failed("cannot have this MTU"))?;
            }
            ioctl::switch_on(&route, name).map_err(failed("cannot be switched on"))?;
        }
        let has = ioctl::mtu(&route, name).map_err(failed("its MTU cannot be asked"))?;
        let has = u16::try_from(has).unwrap_or(*MTUS.end());
        if mtu.is_some_and(|mtu| mtu > has) {
            let wanted = mtu.unwrap_or_default();
            return Err(Error::invalid(format!(
                "tap `{name}` has an MTU of {has}, less than {wanted}: `ip link set {name} mtu {wanted}`, or \
                 leave `mtu` out"
            )));
        }
        let tap = Self {
            frames,
            route,
            name: name.to_owned(),
            mtu: mtu.unwrap_or(has),
            up: AtomicBool::new(false),
            gone: AtomicBool::new(false),
        };
        tap.look();
        Ok(tap)
    }

    /// A tap whose frames come from and go to this end of a pair of sockets.
    #[cfg(test)]
    pub(super) fn of_socket(frames: OwnedFd) -> Self {
        Self {
            frames,
            route: route().unwrap(),
            name: "socket".to_owned(),
            mtu: 1500,
            up: AtomicBool::new(true),
            gone: AtomicBool::new(false),
        }
    }

    /// What it was opened as.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The MTU that the machine is told, in bytes.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Whether the link was up when it was looked at last.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// Where frames are read and written; never blocks.
    pub(super) fn frames(&self) -> BorrowedFd<'_> {
        self.frames.as_fd()
    }

    /// Readable when some link has changed.
    pub(super) fn changes(&self) -> BorrowedFd<'_> {
        self.route.as_fd()
    }

    /// What the kernel may leave to the driver from now on.
    pub(super) fn set_offloads(&self, offloads: u32) -> io::Result<()> {
        ioctl::set_offloads(&self.frames, offloads)
    }

    /// Look whether the link is up; says whether that has changed.
    pub(super) fn look(&self) -> bool {
        // One that was moved to another namespace cannot be asked. Its frames still come and go.
        let flags = ioctl::name(&self.frames).and_then(|name| ioctl::flags(&self.route, &name));
        let running = libc::IFF_UP | libc::IFF_RUNNING;
        let up = flags.map_or(true, |flags| flags & running == running);
        self.set_up(up && !self.is_gone())
    }

    /// Take what the kernel has said of links, and look.
    pub(super) fn heed_changes(&self) -> bool {
        let mut message = [0; 4096];
        for _ in 0..MOST_MESSAGES {
            match recv(&self.route, &mut message[..], RecvFlags::DONTWAIT) {
                // Messages that were lost are a reason to look as well.
                Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => {}
                Err(_) => break,
            }
        }
        self.look()
    }

    /// Whether it is known to be of no use any more.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// It is of no use any more: removed, or broken. Says whether the link was up until now.
    pub(super) fn lose(&self) -> bool {
        self.gone.store(true, Ordering::Release);
        self.set_up(false)
    }

    fn set_up(&self, up: bool) -> bool {
        self.up.swap(up, Ordering::AcqRel) != up
    }
}

/// A socket of rtnetlink, whose protocol (`NETLINK_ROUTE`) is number 0.
fn route() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)
}

fn check(name: &str, mtu: Option<u16>) -> Result<()> {
    if !is_interface_name(name) {
        let what = format!(
            "tap `{name}`: a name has 1 to {} letters, digits, `-`, `_` and `.`",
            ioctl::NAME_LEN
        );
        return Err(Error::invalid(what));
    }
    if mtu.is_some_and(|mtu| !MTUS.contains(&mtu)) {
        let (least, most) = (MTUS.start(), MTUS.end());
        let what = format!("tap `{name}`: an MTU is {least} to {most}");
        return Err(Error::invalid(what));
    }
    Ok(())
}

fn no_tun(name: &str, error: Errno) -> Error {
    match error {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => {
            let what =
                format!("tap `{name}`: {TUN} is not here: `modprobe tun`, or a kernel with it");
            Error::new(ErrorKind::Unsupported, what).because(error)
        }
        Errno::ACCESS | Errno::PERM => {
            let what =
                format!("tap `{name}`: this user may not open {TUN}: give it read and write");
            Error::host(what, error)
        }
        _ => Error::host(format!("tap `{name}`: {TUN} cannot be opened"), error),
    }
}

fn refused(name: &str, there: bool, error: io::Error) -> Error {
    let why = match error.raw_os_error() {
        Some(libc::EBUSY) => "another program has it open",
        Some(libc::EPERM) if there => {
            "it belongs to another user: `ip tuntap add NAME mode tap user USER` makes one for a user"
        }
        Some(libc::EPERM) => {
            "it is not there, and this user may not make one: as root, `ip tuntap add NAME mode tap user USER`"
        }
        Some(libc::EINVAL) if there => {
            "an interface of that name is no tap, or one with several queues"
        }
        _ => "it cannot be opened",
    };
    Error::host(
        format!("tap `{name}`: {}", why.replace("NAME", name)),
        error,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_mtus_that_cannot_be_are_refused_before_anything_is_made() {
        for name in ["", "a b", "tap%d", "../x", ".", "sixteen-letters-", "ä"] {
            let error = Tap::open(name, None).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{name}");
        }
        let error = Tap::open("tap0", Some(67)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }

    #[test]
    fn what_stands_in_the_way_of_a_tap_is_said() {
        let of = |code| io::Error::from_raw_os_error(code);
        for (there, code, says) in [
            (true, libc::EBUSY, "another program"),
            (true, libc::EPERM, "another user"),
            (false, libc::EPERM, "ip tuntap add tap7 mode tap"),
            (true, libc::EINVAL, "no tap"),
        ] {
            let text = refused("tap7", there, of(code)).to_string();
            assert!(text.contains(says) && text.contains("`tap7`"), "{text}");
        }
        assert_eq!(no_tun("t", Errno::NOENT).kind(), ErrorKind::Unsupported);
        assert!(
            no_tun("t", Errno::ACCESS)
                .to_string()
                .contains("may not open")
        );
    }
}
