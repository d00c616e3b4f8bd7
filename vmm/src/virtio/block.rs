//! virtio-blk: a disk of the block server as a device of the guest (VIRTIO 1.2, 5.2).
//!
//! What is offered and how a request is read is the block server's; so is carrying it out. This hands it the
//! queues when the driver is ready, and takes them back.

use std::fmt;
use std::io;
use std::sync::Arc;

use blockserver::export::ExportHandle;
use blockserver::virtio::block::{BlockDevice, CONFIG_LEN, SERIAL_LEN, serial};
use blockserver::virtio::{QueueOptions, QueueState};

use super::{Activation, Alarm, VirtioDevice};
use crate::snapshot::{DeviceState, Disk};

/// Its number (5).
const KIND: u16 = 2;
/// Bytes of what its size is counted in (5.2.4).
const SECTOR: u32 = 512;
/// Most descriptors of a queue.
const QUEUE_SIZE: u16 = 256;

/// A disk as the guest sees it.
pub struct Block {
    export: ExportHandle,
    queues: u16,
    serial: [u8; SERIAL_LEN],
    serving: Vec<(u16, blockserver::export::QueueHandle)>,
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block")
            .field("export", &self.export)
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

impl Block {
    /// The disk of `export`, with so many queues, at least one. Its serial number is the export's name.
    #[must_use]
    pub fn new(export: ExportHandle, queues: u8) -> Self {
        Self {
            serial: serial(export.name()),
            export,
            queues: u16::from(queues.max(1)),
            serving: Vec::new(),
        }
    }

    fn offered(&self) -> BlockDevice {
        self.export.block_device(self.queues, QUEUE_SIZE)
    }

    /// What a guest has seen of it.
    fn remembered(&self) -> Disk {
        let offered = self.offered();
        Disk {
            sectors: offered.size / u64::from(SECTOR),
            logical_sector: offered.logical_sector,
            serial: self.serial,
        }
    }

    fn options(&self, number: u16, features: u64, alarm: &Alarm) -> QueueOptions {
        let (alarm, name) = (alarm.clone(), self.export.name().to_owned());
        QueueOptions {
            features,
            serial: self.serial,
            number,
            broken: Some(Arc::new(move |fault| {
                tracing::warn!(
                    disk = name,
                    queue = number,
                    ?fault,
                    "the driver broke a queue"
                );
                alarm.raise();
            })),
        }
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> u16 {
        KIND
    }

    fn features(&self) -> u64 {
        self.offered().features()
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; usize::from(self.queues)]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.offered().config();
        for (at, byte) in (offset..).zip(data) {
            let at = usize::try_from(at).unwrap_or(CONFIG_LEN);
            *byte = config.get(at).copied().unwrap_or(0);
        }
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        for (number, setup) in activation.queues {
            let options = self.options(number, activation.features, &activation.alarm);
            let memory = activation.memory.clone();
            let queue = self.export.attach_queue(memory, setup, options)?;
            self.serving.push((number, queue));
        }
        Ok(())
    }

    fn state(&self) -> DeviceState {
        DeviceState::Disk(self.remembered())
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), String> {
        let DeviceState::Disk(saved) = state else {
            return Err("it is a disk, and was none".to_owned());
        };
        let here = self.remembered();
        if here == *saved {
            return Ok(());
        }
        let words = |disk: &Disk| {
            let name = String::from_utf8_lossy(&disk.serial);
            format!(
                "the disk `{}` of {} sectors, each of {} bytes",
                name.trim_end_matches('\0').escape_debug(),
                disk.sectors / u64::from(disk.logical_sector / SECTOR).max(1),
                disk.logical_sector
            )
        };
        Err(format!("it is {}, and was {}", words(&here), words(saved)))
    }

    fn reset(&mut self) -> Vec<(u16, QueueState)> {
        let serving = std::mem::take(&mut self.serving);
        serving
            .into_iter()
            .map(|(number, queue)| (number, queue.stop()))
            .collect()
    }

    fn hurry(&mut self) {
        for (_, queue) in &self.serving {
            queue.hurry();
        }
    }

    /// Requests of an export that is held wait for as long as it is, and with them whoever waits for a reset.
    fn try_reset(&mut self) -> Option<Vec<(u16, QueueState)>> {
        // All are asked before the first is waited for.
        let serving = self.serving.iter();
        let states: Vec<_> = serving
            .map(|(number, queue)| (*number, queue.try_stop()))
            .collect();
        let states = states.into_iter();
        let states = states
            .map(|(number, state)| Some((number, state?)))
            .collect::<Option<_>>()?;
        self.serving.clear();
        Some(states)
    }
}
