//! What threads may do that no guest reaches: those of the process itself. And what nobody may.

use libc::{AF_INET, AF_INET6, AF_NETLINK, AF_UNIX, PR_GET_NAME, PR_SET_NAME, PR_SET_NO_NEW_PRIVS};

use super::{A_THREAD, Call, KVM_RUN, PR_SET_VMA, is, request, requests};

/// Files by name and what is in them.
pub(super) const FILES: &[Call] = calls![
    SYS_open,
    SYS_openat,
    SYS_openat2,
    SYS_creat,
    SYS_stat,
    SYS_fstat,
    SYS_lstat,
    SYS_newfstatat,
    SYS_statx,
    SYS_statfs,
    SYS_fstatfs,
    SYS_access,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_getcwd,
    SYS_getdents64,
    SYS_readlink,
    SYS_readlinkat,
    SYS_rename,
    SYS_renameat,
    SYS_renameat2,
    SYS_unlink,
    SYS_unlinkat,
    SYS_mkdir,
    SYS_mkdirat,
    SYS_rmdir,
    SYS_symlink,
    SYS_symlinkat,
    SYS_link,
    SYS_linkat,
    SYS_chmod,
    SYS_fchmod,
    SYS_fchmodat,
    SYS_fchown,
    SYS_utimensat,
    SYS_umask,
    SYS_lseek,
    SYS_pread64,
    SYS_pwrite64,
    SYS_preadv,
    SYS_preadv2,
    SYS_pwritev,
    SYS_pwritev2,
    SYS_truncate,
    SYS_ftruncate,
    SYS_fallocate,
    SYS_fadvise64,
    SYS_fsync,
    SYS_fdatasync,
    SYS_sync_file_range,
    SYS_syncfs,
    SYS_copy_file_range,
    SYS_sendfile,
    SYS_splice,
    SYS_flock,
    SYS_fcntl,
    SYS_dup,
    SYS_dup2,
    SYS_dup3,
    SYS_pipe2,
    SYS_memfd_create,
    SYS_fgetxattr,
    SYS_getxattr,
];

/// Sockets of the kinds that it has: local ones, TCP and UDP (names are looked up), and the kernel's.
pub(super) const SOCKETS: &[Call] = calls![
    SYS_socket if &[
        is(0, AF_UNIX.cast_unsigned()),
        is(0, AF_INET.cast_unsigned()),
        is(0, AF_INET6.cast_unsigned()),
        is(0, AF_NETLINK.cast_unsigned()),
    ],
    SYS_socketpair,
    SYS_bind,
    SYS_listen,
    SYS_accept,
    SYS_accept4,
    SYS_connect,
    SYS_getsockname,
    SYS_getpeername,
    SYS_getsockopt,
    SYS_setsockopt,
    SYS_shutdown,
    SYS_sendto,
    SYS_sendmsg,
    SYS_sendmmsg,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_recvmmsg,
    SYS_select,
    SYS_pselect6,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_wait,
    SYS_epoll_pwait,
    SYS_epoll_pwait2,
    SYS_eventfd2,
    SYS_signalfd4,
    SYS_timerfd_create,
    SYS_timerfd_settime,
];

/// Threads, memory and limits of this process, and confining it.
pub(super) const SELF: &[Call] = calls![
    SYS_clone if A_THREAD,
    SYS_mmap,
    SYS_mprotect,
    SYS_msync,
    SYS_mincore,
    SYS_mlock,
    SYS_mlock2,
    SYS_munlock,
    SYS_set_tid_address,
    SYS_rt_sigaction,
    SYS_sched_setaffinity,
    SYS_sched_getparam,
    SYS_sched_getscheduler,
    SYS_getpriority,
    SYS_getrlimit,
    SYS_prlimit64,
    SYS_getrusage,
    SYS_times,
    SYS_sysinfo,
    SYS_uname,
    SYS_getuid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getegid,
    SYS_getppid,
    SYS_capget,
    SYS_capset,
    SYS_seccomp,
    SYS_prctl if &[
        is(0, PR_SET_NAME.cast_unsigned()),
        is(0, PR_GET_NAME.cast_unsigned()),
        is(0, PR_SET_VMA),
        is(0, PR_SET_NO_NEW_PRIVS.cast_unsigned()),
    ],
    SYS_io_uring_setup,
    SYS_io_uring_enter,
    SYS_io_uring_register,
];

/// Devices of the host that it drives.
pub(super) const DEVICES: &[Call] = calls![
    SYS_ioctl if &[
        KVM_RUN,
        requests(0xAE),       // KVM
        // Of what was opened before; threads that use it are started by those that may.
        request(0xC020_AA00), // UFFDIO_REGISTER
        request(0x8010_AA01), // UFFDIO_UNREGISTER
        request(0x8010_AA02), // UFFDIO_WAKE
        request(0xC028_AA03), // UFFDIO_COPY
        request(0xC020_AA04), // UFFDIO_ZEROPAGE
        request(0x4004_54D0), // TUNSETOFFLOAD
        request(0x8004_54D2), // TUNGETIFF
        request(0x8913),      // SIOCGIFFLAGS
        request(0x5401),      // TCGETS
        request(0x5402),      // TCSETS
        request(0x5403),      // TCSETSW
        request(0x5404),      // TCSETSF
        request(0x5413),      // TIOCGWINSZ
        request(0x541B),      // FIONREAD
        request(0x5421),      // FIONBIO
        request(0x5451),      // FIOCLEX
        request(0x8008_1272), // BLKGETSIZE64
        request(0x1268),      // BLKSSZGET
        request(0x127B),      // BLKPBSZGET
        request(0x125E),      // BLKROGET
        request(0x1277),      // BLKDISCARD
        request(0x127F),      // BLKZEROOUT
        request(0x4004_9409), // FICLONE
        request(0x4020_940D), // FICLONERANGE
        request(0xC020_660B), // FS_IOC_FIEMAP
        request(0x8008_6601), // FS_IOC_GETFLAGS
        request(0x4008_6602), // FS_IOC_SETFLAGS
    ],
];

/// Calls that are in no list, so that their names are known when one is refused.
pub(super) const NOBODYS: &[Call] = calls![
    SYS_execve,
    SYS_execveat,
    SYS_fork,
    SYS_vfork,
    SYS_ptrace,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_pidfd_open,
    SYS_pidfd_getfd,
    SYS_kill,
    SYS_tkill,
    SYS_mount,
    SYS_umount2,
    SYS_open_tree,
    SYS_move_mount,
    SYS_chroot,
    SYS_pivot_root,
    SYS_unshare,
    SYS_setns,
    SYS_setuid,
    SYS_setgid,
    SYS_setresuid,
    SYS_setresgid,
    SYS_setgroups,
    SYS_bpf,
    SYS_userfaultfd,
    SYS_perf_event_open,
    SYS_keyctl,
    SYS_add_key,
    SYS_request_key,
    SYS_init_module,
    SYS_finit_module,
    SYS_kexec_load,
    SYS_reboot,
    SYS_open_by_handle_at,
    SYS_mknod,
    SYS_mknodat,
    SYS_personality,
    SYS_chown,
    SYS_wait4,
    SYS_getsid,
    SYS_setsid,
    SYS_inotify_init1,
    SYS_shmget,
];
