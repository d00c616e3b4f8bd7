//! What the process of a machine may open and do: what the machine's description comes to.
//!
//! A machine's own files are opened before it is confined; what follows from verbs that name new files later has
//! to be in the folders of its disks, or in those that `confine.paths` allows. `docs/vmm.md`, "Confinement".

use std::fs::DirEntry;
use std::path::{Path, PathBuf};

use mirror::net::tls;
use vmm::confine::{self, Kind, Limits, Mode, Paths};
use vmm::description::{Console, Kernel};

use crate::args::{Confine, RunArgs};
use crate::control::machine::Confinement;
use crate::control::place;
use crate::failure::{Exit, Failure, Result};
use crate::identity;
use crate::moving;
use crate::plan::Machine;
use crate::site::disk::Opened;

/// Is opened whenever the machine begins anew.
const KVM: &str = "/dev/kvm";
/// By what the names of other hosts are found.
const NAMES: [&str; 7] = [
    "/etc/gai.conf",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/resolv.conf",
    "/etc/services",
    "/run/systemd/resolve",
];

/// Confine this process, which must not have started a thread yet, to this machine, whose disks are open.
/// `arrived` is its state that has come from another host. A machine that is still to come has neither.
pub(super) fn begin(
    args: &RunArgs,
    plan: &Machine,
    (disks, arrived): (&[Opened], Option<&Path>),
) -> Result<()> {
    let mode = match args.confine {
        Confine::Kill => Mode::Kill,
        Confine::Log => Mode::Log,
        Confine::Off => Mode::Off,
    };
    let limits = Limits {
        mode,
        paths: paths(args, plan, disks)?,
    };
    if mode != Mode::Off {
        alone()?;
        if args.arrives.receive.is_some() || arrived.is_some() {
            beside(&args.machine, &limits.paths)?;
        }
    }
    let confined = confine::process(&limits).map_err(|error| {
        super::run::cannot(&error).hint("--confine off runs the machine all the same")
    })?;
    if mode != Mode::Off && !confined.missing.is_empty() {
        tracing::warn!(
            landlock = confined.landlock,
            "this host's kernel does not confine: {}",
            confined.missing.join("; ")
        );
    }
    Ok(())
}

/// What confines a thread confines none that is there already.
fn alone() -> Result<()> {
    // Without /proc it cannot be seen.
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else {
        return Ok(());
    };
    let name = |thread: DirEntry| std::fs::read_to_string(thread.path().join("comm")).ok();
    let names: Vec<String> = threads.flatten().filter_map(name).collect();
    if names.len() > 1 {
        let names: Vec<&str> = names.iter().map(|name| name.trim()).collect();
        let names = names.join(", ");
        let what = format!("threads were started before the process was confined: {names}");
        return Err(
            Failure::new(Exit::Failed, what).hint("--confine off runs the machine all the same")
        );
    }
    Ok(())
}

/// Refuse a machine that comes from another host where its state and record cannot be: both lie beside the file that
/// describes it.
fn beside(machine: &Path, paths: &Paths) -> Result<()> {
    let described = moving::described(machine)?;
    let within = |allowed: &PathBuf| {
        let allowed = allowed.canonicalize();
        allowed.is_ok_and(|allowed| allowed != described && described.starts_with(allowed))
    };
    if paths.write.iter().any(within) {
        return Ok(());
    }
    let what = format!(
        "{}: what comes of the machine from another host has to be beside it, and its folder is none of those that the \
         process may write",
        machine.display()
    );
    Err(Failure::usage(what)
        .hint("put it into the folder of its disks, or add its folder to confine.paths"))
}

fn paths(args: &RunArgs, plan: &Machine, disks: &[Opened]) -> Result<Paths> {
    let mut paths = Paths::default();
    paths.read.extend(NAMES.map(PathBuf::from));
    paths.read.push(args.machine.clone());
    paths.read.extend(plan.vm.boot.initrd.clone());
    if let Kernel::File(kernel) = &plan.vm.boot.kernel {
        paths.read.push(kernel.clone());
    }
    paths.read.extend(plan.search.folders.iter().cloned());
    if tls::is_introduced() {
        // Who is trusted is looked at for each connection.
        let folder = identity::folder(args.identity.identity.as_deref());
        paths.read.push(folder.join(tls::PEERS));
    }
    let parent = plan.search.parent.as_deref();
    paths.read.extend(parent.map(folder_of));
    paths.write.push(KVM.into());
    for allowed in &plan.vm.allowed {
        allowed.metadata().map_err(|e| {
            let what = format!("confine.paths: {}: cannot be found", allowed.display());
            Failure::io(what, &e).hint("a folder has to be there when the machine starts")
        })?;
        paths.write.push(allowed.clone());
    }
    place::make_folder()?;
    paths.sockets.push(place::folder()?);
    let sockets = plan.control.iter().map(|path| folder_of(path));
    paths.sockets.extend(sockets);
    if let Console::Socket(path) = &plan.vm.console {
        paths.sockets.push(folder_of(path));
    }
    for disk in disks {
        let place = of_disk(&disk.path);
        if disk.read_only {
            paths.read.push(place);
        } else {
            paths.write.push(place);
        }
    }
    if args.arrives.receive.is_some() {
        for disk in &plan.vm.disks {
            let place = of_coming(&disk.path);
            if disk.read_only {
                paths.read.push(place);
            } else {
                paths.write.push(place);
            }
        }
    }
    Ok(paths)
}

/// The folder that a disk's file is in, where its record, its snapshots and its parents are too; a device has
/// none of its own, and the root of all files is nobody's.
fn of_disk(disk: &Path) -> PathBuf {
    let folder = folder_of(disk);
    if disk.is_file() && folder.parent().is_some() {
        return folder;
    }
    disk.to_owned()
}

/// The same for a disk that is not there yet.
fn of_coming(disk: &Path) -> PathBuf {
    if let Ok(found) = disk.canonicalize() {
        return of_disk(&found);
    }
    let folder = folder_of(disk).canonicalize();
    match folder {
        Ok(folder) if folder.parent().is_some() => folder,
        _ => disk.to_owned(),
    }
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => PathBuf::from("."),
        Some(folder) => folder.to_owned(),
        None => path.to_owned(),
    }
}

/// Confine a worker of the disks, which has its ring.
pub(crate) fn worker(by_ring: bool) {
    confine::thread(if by_ring {
        Kind::Worker
    } else {
        Kind::BlockingWorker
    });
}

/// How this process is confined, for whoever asks.
pub(super) fn state() -> Confinement {
    let state = confine::state();
    let system_calls = match state.mode {
        Mode::Kill => "kill",
        Mode::Log => "log",
        Mode::Off => "off",
    };
    Confinement {
        system_calls: system_calls.to_owned(),
        landlock: state.landlock,
        missing: state.missing.into_iter().map(str::to_owned).collect(),
    }
}

/// What to do about a failure that may come from being confined.
pub(crate) fn hint(what: &str) -> Option<String> {
    let confined = confine::state().mode != Mode::Off;
    (confined && what.contains("Permission denied")).then(|| {
        "the machine may open the folders of its disks only: add what it needs to confine.paths in its file, \
         and run it anew"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_allows_its_folder_unless_that_is_everything() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("a.vhdx");
        std::fs::write(&disk, "").unwrap();
        assert_eq!(of_disk(&disk), folder.path());
        for device in ["/dev/null", "/none.vhdx"] {
            assert_eq!(of_disk(Path::new(device)), Path::new(device));
        }
        assert_eq!(folder_of(Path::new("a.sock")), Path::new("."));
    }
}
