//! Which system calls each kind of thread may make.
//!
//! Lists only: no system call is made here. What a guest reaches (a processor, a device, a worker of its
//! disks) may do the few things that its work is; what it does not reach may do what the process does, which
//! excludes other programs, other processes, and changing who it is. A call is named once for each kind that
//! may make it; with conditions, one of them must hold.

use libc::{
    CLONE_THREAD, F_DUPFD_CLOEXEC, F_GETFD, F_GETFL, F_SETFD, F_SETFL, PR_GET_NAME, PR_SET_NAME,
    PROT_EXEC,
};

use super::Kind;

/// A condition: an argument, masked, has this value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct If {
    /// Which argument, from 0 on.
    pub(super) argument: u8,
    /// Which bits of it count.
    pub(super) mask: u64,
    /// What they must be.
    pub(super) value: u64,
}

/// A system call by number and name, and under which conditions; without any, always.
pub(super) type Call = (libc::c_long, &'static str, &'static [If]);

/// The lower half of an argument, which is all of most.
const HALF: u64 = u32::MAX as u64;
/// `PR_SET_VMA`: allocators name their memory.
const PR_SET_VMA: u32 = 0x5356_4D41;

const fn is(argument: u8, value: u32) -> If {
    If {
        argument,
        mask: HALF,
        value: value as u64,
    }
}

/// A request of `ioctl`, which is the second argument.
const fn request(value: u32) -> If {
    is(1, value)
}

/// All requests of a kind of device: the second byte says which (`asm-generic/ioctl.h`).
const fn requests(kind: u8) -> If {
    If {
        argument: 1,
        mask: 0xFF00,
        value: (kind as u64) << 8,
    }
}

macro_rules! calls {
    ($($name:ident $(if $conditions:expr)?),* $(,)?) => {
        &[$((libc::$name, stringify!($name), calls!(@ $($conditions)?))),*]
    };
    (@) => { &[] };
    (@ $conditions:expr) => { $conditions };
}

mod process;

use self::process::{DEVICES, FILES, NOBODYS, SELF, SOCKETS};

/// Memory that cannot be executed.
const NOT_EXECUTABLE: &[If] = &[If {
    argument: 2,
    mask: PROT_EXEC as u64,
    value: 0,
}];
/// A thread, and not a process. `clone3` is answered with "no such call", since what it is asked for cannot
/// be seen by a filter; then this one is used.
const A_THREAD: &[If] = &[If {
    argument: 0,
    mask: CLONE_THREAD as u64,
    value: CLONE_THREAD as u64,
}];
const NAMES: &[If] = &[
    is(0, PR_SET_NAME.cast_unsigned()),
    is(0, PR_GET_NAME.cast_unsigned()),
    is(0, PR_SET_VMA),
];
/// The same open file again, and its flags.
const DESCRIPTORS: &[If] = &[
    is(1, F_DUPFD_CLOEXEC.cast_unsigned()),
    is(1, F_GETFD.cast_unsigned()),
    is(1, F_SETFD.cast_unsigned()),
    is(1, F_GETFL.cast_unsigned()),
    is(1, F_SETFL.cast_unsigned()),
];

/// What every thread does: memory, waiting, reading and writing what is open, its end.
const EVERY: &[Call] = calls![
    SYS_futex,
    SYS_read,
    SYS_write,
    SYS_readv,
    SYS_writev,
    SYS_close,
    SYS_poll,
    SYS_ppoll,
    SYS_brk,
    SYS_munmap,
    SYS_mremap,
    SYS_madvise,
    SYS_rt_sigreturn,
    SYS_rt_sigprocmask,
    SYS_sigaltstack,
    SYS_restart_syscall,
    SYS_sched_yield,
    SYS_sched_getaffinity,
    SYS_gettid,
    SYS_getpid,
    SYS_tgkill,
    SYS_rseq,
    SYS_set_robust_list,
    SYS_membarrier,
    SYS_clock_gettime,
    SYS_clock_getres,
    SYS_gettimeofday,
    SYS_clock_nanosleep,
    SYS_nanosleep,
    SYS_getrandom,
    SYS_exit,
    SYS_exit_group,
];

/// What a thread that a guest reaches does besides: a narrower form of what others may.
const NARROW: &[Call] = calls![
    SYS_mmap if NOT_EXECUTABLE,
    SYS_mprotect if NOT_EXECUTABLE,
    SYS_prctl if NAMES,
    SYS_eventfd2,
    SYS_fcntl if DESCRIPTORS,
];

/// To a socket that is connected: the fifth argument, an address, is null.
const CONNECTED: &[If] = &[If {
    argument: 4,
    mask: u64::MAX,
    value: 0,
}];

/// What answers a guest's access to registers: doorbells, interrupts, the files behind devices.
const REGISTERS: &[Call] = calls![
    SYS_ioctl if &[
        KVM_RUN,
        request(0x4020_AE76), // KVM_IRQFD
        request(0x4040_AE79), // KVM_IOEVENTFD
        request(0x4008_AE6A), // KVM_SET_GSI_ROUTING
        request(0xC008_AE67), // KVM_IRQ_LINE_STATUS
        request(0x4008_AE61), // KVM_IRQ_LINE
        request(0x4020_AEA5), // KVM_SIGNAL_MSI
        request(0x8090_AE81), // KVM_GET_REGS
        request(0x8138_AE83), // KVM_GET_SREGS
        request(0xAEAD),      // KVM_KVMCLOCK_CTRL
    ],
    SYS_sendto if CONNECTED,
];

/// First, since it is by far the most frequent and conditions are tried in their order.
const KVM_RUN: If = request(0xAE80);

/// A network device: what its tap can leave to the guest, and whether its link is up. The tap was opened before.
const NETWORK: &[Call] = calls![
    SYS_ioctl if &[
        request(0x4004_54D0), // TUNSETOFFLOAD
        request(0x8004_54D2), // TUNGETIFF
        request(0x8913),      // SIOCGIFFLAGS
    ],
    SYS_recvfrom,
];

/// Brings memory in from a snapshot that is open.
const MEMORY: &[Call] = calls![
    SYS_ioctl if &[
        request(0x8010_AA01), // UFFDIO_UNREGISTER
        request(0x8010_AA02), // UFFDIO_WAKE
        request(0xC028_AA03), // UFFDIO_COPY
        request(0xC020_AA04), // UFFDIO_ZEROPAGE
        request(0x5401),      // TCGETS: whether the last words go to a terminal, where memory is lost
    ],
    SYS_pread64,
];

/// Writes memory to a snapshot that is open.
const SAVER: &[Call] = calls![SYS_pread64, SYS_pwritev, SYS_pwritev2];

/// A worker of the block server: its ring, of which `IORING_REGISTER_RESTRICTIONS` says what it may do, and
/// what cannot be done by a ring.
const WORKER: &[Call] = calls![
    SYS_io_uring_enter,
    SYS_io_uring_register if &[is(1, 24)], // IORING_REGISTER_SYNC_CANCEL
    SYS_lseek,
    SYS_fcntl,
    SYS_flock,
    SYS_fstat,
    SYS_fstatfs,
    SYS_newfstatat,
    SYS_statx,
    SYS_pread64,
    // As its ring does, where the file lies in memory.
    SYS_pwrite64,
    SYS_preadv,
    SYS_pwritev,
    SYS_ftruncate,
    SYS_sendto if CONNECTED,
];

/// A worker where `io_uring` is refused, and the threads that it starts: the ring's operations as calls.
const BLOCKING: &[Call] = calls![
    SYS_clone if A_THREAD,
    SYS_fdatasync,
    SYS_fallocate,
    SYS_recvfrom,
    SYS_sendmsg,
    SYS_accept4,
];

/// A console: a terminal, a socket, and ending the machine by what is typed.
const CONSOLE: &[Call] = calls![
    SYS_ioctl if &[
        request(0x5401), // TCGETS
        request(0x5402), // TCSETS
        request(0x5403), // TCSETSW
        request(0x5404), // TCSETSF
        request(0x5413), // TIOCGWINSZ
        request(0x541B), // FIONREAD
        request(0x5421), // FIONBIO
    ],
    SYS_accept4,
    SYS_recvfrom,
    SYS_shutdown,
    SYS_getsockopt,
    SYS_setsockopt,
    SYS_epoll_wait,
    SYS_epoll_pwait,
    SYS_epoll_ctl,
    SYS_pselect6,
];

/// What libraries try and go on without: refused with "permission denied" where a guest reaches, so that an
/// old C library that counts processors, or a panic that looks for its source, does not end the machine.
const TRIED: &[Call] = calls![
    SYS_open,
    SYS_openat,
    SYS_access,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_stat,
    SYS_lstat,
    SYS_newfstatat,
    SYS_statx,
    SYS_readlink,
    SYS_readlinkat,
    SYS_getcwd,
];

/// The same for workers, which ask what is open how it is, and let go of its locks.
const TRIED_BY_WORKERS: &[Call] = calls![
    SYS_open,
    SYS_openat,
    SYS_access,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_readlink,
    SYS_readlinkat,
    SYS_getcwd,
];

/// Answered with "no such call" everywhere.
const UNSEEN: &[Call] = calls![SYS_clone3];

/// The lists of a kind of thread: what it may, what fails with "permission denied", and what fails with "no
/// such call".
#[derive(Clone, Debug)]
pub(super) struct Lists {
    /// Allowed.
    pub(super) allowed: Vec<&'static [Call]>,
    /// Refused softly.
    pub(super) tried: &'static [Call],
    /// Not there.
    pub(super) unseen: &'static [Call],
}

/// What threads of this kind may do.
pub(super) fn of(kind: Kind) -> Lists {
    let narrow = |own: &[&'static [Call]]| Lists {
        allowed: [&[EVERY, NARROW], own].concat(),
        tried: TRIED,
        unseen: UNSEEN,
    };
    match kind {
        Kind::Process => Lists {
            allowed: vec![EVERY, FILES, SOCKETS, SELF, DEVICES],
            tried: &[],
            unseen: UNSEEN,
        },
        Kind::Vcpu => narrow(&[REGISTERS]),
        Kind::Device | Kind::Reader => narrow(&[]),
        Kind::Network => narrow(&[NETWORK]),
        Kind::Memory => narrow(&[MEMORY]),
        Kind::Saver => narrow(&[SAVER]),
        Kind::Worker => Lists {
            tried: TRIED_BY_WORKERS,
            ..narrow(&[WORKER])
        },
        Kind::BlockingWorker => Lists {
            tried: TRIED_BY_WORKERS,
            ..narrow(&[WORKER, BLOCKING])
        },
        Kind::Console => narrow(&[REGISTERS, CONSOLE]),
    }
}

/// The name of a system call, if it is one that is known here.
pub(super) fn name(number: libc::c_long) -> Option<&'static str> {
    let lists: [&[Call]; 16] = [
        EVERY, NARROW, REGISTERS, NETWORK, MEMORY, SAVER, WORKER, BLOCKING, CONSOLE, FILES,
        SOCKETS, SELF, DEVICES, TRIED, UNSEEN, NOBODYS,
    ];
    let mut all = lists.into_iter().flatten();
    let (_, name, _) = all.find(|(known, _, _)| *known == number)?;
    name.strip_prefix("SYS_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(kind: Kind, number: libc::c_long) -> bool {
        let lists = of(kind).allowed;
        lists
            .into_iter()
            .flatten()
            .any(|(call, _, _)| *call == number)
    }

    #[test]
    fn nobody_may_run_another_program_or_look_into_another_process() {
        for kind in Kind::ALL {
            for (number, name, _) in NOBODYS {
                assert!(!allowed(kind, *number), "{kind:?}: {name}");
            }
        }
    }

    #[test]
    fn what_a_guest_reaches_opens_nothing_and_starts_nothing() {
        for kind in Kind::ALL {
            if [Kind::Process, Kind::BlockingWorker].contains(&kind) {
                continue;
            }
            for number in [
                libc::SYS_openat,
                libc::SYS_socket,
                libc::SYS_connect,
                libc::SYS_bind,
                libc::SYS_clone,
                libc::SYS_io_uring_setup,
                libc::SYS_unlink,
                libc::SYS_rt_sigaction,
                libc::SYS_memfd_create,
            ] {
                assert!(!allowed(kind, number), "{kind:?}: {:?}", name(number));
            }
        }
    }

    /// A thread keeps what the one that started it may not: whatever a kind may, the process has to.
    #[test]
    fn no_kind_is_given_what_those_who_start_it_may_not() {
        let process = of(Kind::Process).allowed.concat();
        let holds = |condition: &If, call: &Call| {
            let wider = |known: &If| {
                known.argument == condition.argument
                    && known.mask & condition.mask == known.mask
                    && condition.value & known.mask == known.value
            };
            call.2.is_empty() || call.2.iter().any(wider)
        };
        for kind in Kind::ALL {
            for (number, name, conditions) in of(kind).allowed.concat() {
                let known: Vec<_> = process.iter().filter(|call| call.0 == number).collect();
                let all = conditions
                    .iter()
                    .all(|one| known.iter().any(|call| holds(one, call)));
                let any = known.iter().any(|call| call.2.is_empty());
                assert!(any || (!conditions.is_empty() && all), "{kind:?}: {name}");
            }
        }
    }

    #[test]
    fn a_call_has_its_name() {
        assert_eq!(name(libc::SYS_execve), Some("execve"));
        assert_eq!(name(libc::SYS_futex), Some("futex"));
        assert_eq!(name(9999), None);
    }
}
