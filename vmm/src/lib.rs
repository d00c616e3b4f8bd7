//! A KVM machine monitor that runs from Diskferry's disks.
//!
//! Only its place in the workspace exists so far. What will stand here: guest memory, vCPUs, boot
//! protocols, the bus and the devices; virtio-blk on the engine of [`vdisk`](../vdisk/index.html)
//! with one io_uring worker for each queue, and a machine that can be paused, saved and restored
//! while its disk moves to another host. Nothing in this crate may decide what a disk holds: that
//! is the engine's, and a device is a machine over guest memory that hands ranges to it.
//!
//! The kernel's side of it is reached through `kvm-ioctls`, re-exported so that there is one
//! version of it in the tree.

pub mod guest;

pub use kvm_ioctls;
