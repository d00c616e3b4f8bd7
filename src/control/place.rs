//! Where the control socket of a served disk lies.
//!
//! Named after the file's device and inode, so that every path to the disk finds it; in a folder that
//! only this user can enter.

use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Result};

/// The folder of this user's control sockets.
pub(crate) fn folder() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("DISKFERRY_RUN_DIR") {
        return Ok(PathBuf::from(folder));
    }
    if let Some(folder) = std::env::var_os("XDG_RUNTIME_DIR") {
        return Ok(Path::new(&folder).join("diskferry"));
    }
    let process = std::fs::metadata("/proc/self")
        .map_err(|e| Failure::io("the user of this process is not known", &e))?;
    Ok(match process.uid() {
        0 => PathBuf::from("/run/diskferry"),
        user => std::env::temp_dir().join(format!("diskferry-{user}")),
    })
}

/// Whether `path` lies in that folder, where links lead to sockets.
pub(crate) fn is_ours(path: &Path) -> bool {
    folder().is_ok_and(|folder| path.parent() == Some(&folder))
}

/// The control socket of the server of `disk`, whether or not there is one.
pub(crate) fn socket_of(disk: &Path) -> Result<PathBuf> {
    let file = std::fs::metadata(disk)
        .map_err(|e| Failure::io(format!("{}: cannot be found", disk.display()), &e))?;
    Ok(folder()?.join(format!("{:x}-{:x}.sock", file.dev(), file.ino())))
}

/// Where one attaches to the console of the machine that `described` describes.
pub(crate) fn console_of(described: &Path) -> Result<PathBuf> {
    Ok(socket_of(described)?.with_extension("console"))
}

/// Has whoever looks for the server of `disk` find that of `served`, which has a socket. A link that is left
/// over by a server that was killed leads nowhere, and goes when the next one listens there.
pub(crate) fn also_for(served: &Path, disk: &Path) {
    let link = || -> Result<()> {
        let (socket, also) = (socket_of(served)?, socket_of(disk)?);
        if socket.exists() {
            let _ = std::fs::remove_file(&also);
            let failed = |e| Failure::io(format!("{}: cannot be made", also.display()), &e);
            std::os::unix::fs::symlink(&socket, &also).map_err(failed)?;
        }
        Ok(())
    };
    if let Err(failure) = link() {
        tracing::warn!(
            what = failure.what,
            "the server is found with --control only"
        );
    }
}

/// Makes the folder of this user's control sockets, for this user alone.
pub(crate) fn make_folder() -> Result<()> {
    let folder = folder()?;
    let failed = |e| Failure::io(format!("{}: cannot be made", folder.display()), &e);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map_err(failed)?;
    let (made, process) = std::fs::metadata(&folder)
        .and_then(|made| Ok((made, std::fs::metadata("/proc/self")?)))
        .map_err(failed)?;
    if made.uid() != process.uid() || made.mode() & 0o022 != 0 {
        let what = format!(
            "{}: belongs to another user or is open to others",
            folder.display()
        );
        return Err(Failure::usage(what).hint("set DISKFERRY_RUN_DIR to a folder of your own"));
    }
    Ok(())
}
