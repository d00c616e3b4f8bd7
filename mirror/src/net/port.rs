//! What a driver needs of the disk and of the site it runs in, as traits.
//!
//! Nothing in here does anything: the program that composes the crates implements these over its
//! block server. Must never name that server.
//!
//! Callbacks may come on any thread, also on the calling one before the call returns, and never
//! block. Each is called exactly once, unless the disk goes away.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use vdisk::engine::{Extent, Mark};
use vdisk::tap::WriteTap;

use crate::session::Admission;
use crate::wire::{DiskDescription, WayHome};

/// Told how something ended.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;
/// Told that something is so now.
pub type Signal = Box<dyn FnOnce() + Send>;
/// Told the name of a moment since which changes are known, if they can be.
pub type CheckpointDone = Box<dyn FnOnce(Option<String>) + Send>;
/// Told what was read.
pub type ReadDone = Box<dyn FnOnce(io::Result<Bytes>) + Send>;
/// Told what is allocated.
pub type StatusDone = Box<dyn FnOnce(io::Result<Vec<Extent>>) + Send>;

/// An open disk. Offsets and lengths are bytes of the disk.
pub trait DiskPort: Send + Sync + 'static {
    /// Size of the disk.
    fn size(&self) -> u64;

    /// Bytes of a logical sector, where the image says so.
    fn logical_sector(&self) -> Option<u32> {
        None
    }

    /// Read `len` bytes at `offset`; the answer has exactly that many.
    fn read(&self, offset: u64, len: u32, done: ReadDone);

    /// Write; the change need not be durable when it is done.
    fn write(&self, offset: u64, data: Bytes, done: Done);

    /// Make a range read as zero; space may be given back.
    fn zero(&self, offset: u64, len: u64, done: Done);

    /// Make every change durable that was done before this call.
    fn flush(&self, done: Done);

    /// What is allocated from `offset` on: at least one extent, together at most `len` bytes.
    fn status(&self, offset: u64, len: u64, done: StatusDone);

    /// Flush, close the image cleanly and leave `mark` in it, durably; `None` removes one.
    ///
    /// Called only while no change is in flight.
    fn park(&self, mark: Option<Mark>, done: Done);

    /// The disk may be granted to this host from now on, or for `limit`: whoever sends its clients' requests elsewhere
    /// must not do again there what was answered ([`DiskPort::stays_away`] ends that, and a disk that is served). `false`
    /// if that cannot be now; the attempt is put off then.
    fn may_return(&self, _limit: Option<Duration>) -> bool {
        true
    }

    /// It is not granted now after all.
    fn stays_away(&self) {}
}

/// A disk that clients use while it is mirrored.
pub trait ServedDisk: DiskPort {
    /// Show `tap` every change from now on, by the rules of [`WriteTap`]; `attached` is called when
    /// every change that began before has completed.
    fn attach_tap(&self, tap: Arc<dyn WriteTap>, attached: Signal);

    /// Take the tap off again.
    fn detach_tap(&self, detached: Signal);

    /// Hold new requests of clients; `held` is called when none is in flight any more. The calls of
    /// [`DiskPort`] go on working. A [`ServedDisk::release`] before that makes it void.
    fn hold(&self, held: Signal);

    /// Let held requests go on here.
    fn release(&self);

    /// Let clients write at most so many bytes a second, `None` for as many as they like. What they read does not wait for
    /// that. Nothing is held back unless this is implemented.
    fn brake(&self, _bytes: Option<u64>) {}

    /// Make what was acknowledged durable, and note what changes from then on in a way that outlives a crash, under a name
    /// that the disk's change tracking has not had yet. Clients wait meanwhile. Nothing is noted unless this is
    /// implemented.
    fn checkpoint(&self, done: CheckpointDone) {
        done(None);
    }

    /// The disk is about to be handed over, and its clients' requests will go to the NBD server at `address`: connect.
    /// Void when [`ServedDisk::release`] is called.
    fn expect(&self, _address: &str) {}

    /// Whether the connection that was begun by [`ServedDisk::expect`] is there; so it is where none is expected.
    fn is_expected_up(&self) -> bool {
        true
    }

    /// The disk is handed over, for ever, and the target is told so: send held and later requests there already, where they
    /// wait for it to take over. [`ServedDisk::forward`] follows, of the same address or another.
    fn forward_ahead(&self, _address: &str) {}

    /// Send held and all later requests of clients to the NBD server at `address`, which is what the
    /// target's [`TargetHost::serve`] returned. Never undone.
    fn forward(&self, address: &str);
}

/// An image in which blocks of disks that are received may be. It may be in use, and change: what it has is compared.
pub trait Template: Send + Sync + 'static {
    /// Read `len` bytes at `offset`; the answer has fewer, or none, where the image ends before.
    fn read(&self, offset: u64, len: u32, done: ReadDone);
}

/// A site that receives disks: makes, opens and serves them by name.
///
/// Names were checked by the codec: 1 to 255 bytes, no `/`, no NUL, not starting with a dot; the
/// driver refuses those that end like an ownership record. Calls may block; they come on threads
/// meant for that, for one disk one after the other.
pub trait TargetHost: Send + Sync + 'static {
    /// Whether it would take the machine that a source offers; if not, why. Nothing has begun yet.
    fn offered(&self, _offer: &[u8]) -> Result<(), String> {
        Err("only disks are received here, no machine".to_owned())
    }

    /// Whether a session may begin with the disk of that name.
    fn admission(&self, _name: &str) -> Admission {
        Admission::default()
    }

    /// So many bytes of a disk are about to be written down here. Fails with [`io::ErrorKind::StorageFull`] if there is no
    /// room for them, which ends the disk's session. Called on a thread that others wait for.
    fn make_room(&self, _bytes: u64) -> io::Result<()> {
        Ok(())
    }

    /// Where to find the [arbiter](super::arbiter::at) that decides about disks which are offered to this host.
    fn arbiter(&self) -> Option<String> {
        None
    }

    /// Images in which blocks of disks may be, at the same place: those are not sent.
    fn templates(&self) -> &[Arc<dyn Template>] {
        &[]
    }

    /// Whether a disk of that name may come here at all.
    fn takes(&self, _name: &str) -> bool {
        true
    }

    /// Whether disks may come here later that do not come now. Who brings one then is sent away without a word, and tries
    /// again.
    fn takes_more_later(&self) -> bool {
        false
    }

    /// Whether the disk's image is open for other reasons here, so that it is never made anew.
    fn in_use(&self, _name: &str) -> bool {
        false
    }

    /// The source of the disk will wait for it to come back, at that address for so many seconds once this host owns it;
    /// or will not. Keep that, if it is of use; nothing depends on it.
    fn way_back(&self, _name: &str, _way_back: Option<WayHome>) {}

    /// The disks whose record has to be looked at when the driver starts: those that were being
    /// received, are prepared, or came here and are to be served again. One whose record says that
    /// it is owned here is opened, its mark removed, and served, unless it is
    /// [served](TargetHost::served) already.
    fn disks(&self) -> io::Result<Vec<String>>;

    /// Where the disk's ownership record lies; see [`crate::files::sidecar_path`].
    fn record_path(&self, name: &str) -> PathBuf;

    /// Whether there is an image of that name, whatever its state.
    fn image_exists(&self, name: &str) -> bool;

    /// Make the disk anew, empty, marked [`Mark::Incomplete`], durably, in place of an image that
    /// may be there. Ports to that image given out before are not used any more.
    fn create(&self, description: &DiskDescription) -> io::Result<Arc<dyn DiskPort>>;

    /// Open the disk as it is, marked [`Mark::Incomplete`] or not.
    ///
    /// Fails with [`io::ErrorKind::InvalidData`] when there is no sound image, and never will be: it may be made anew then.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskPort>>;

    /// Serve the disk to clients from now on and say at which NBD address they reach it. Called when
    /// this host durably owns it and no mark is in the image.
    fn serve(&self, name: &str) -> io::Result<String>;

    /// Close what [`TargetHost::create`] or [`TargetHost::open`] opened under that name, unless it is served: somebody else
    /// may want it.
    fn let_go(&self, name: &str);

    /// The NBD address at which the disk will be served, if that is known. Who connects there before it is has to wait.
    fn address(&self, _name: &str) -> Option<String> {
        None
    }

    /// The NBD address at which the disk is served now, if it is.
    fn served(&self, name: &str) -> Option<String>;
}
