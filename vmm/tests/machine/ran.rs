//! Runs the freestanding guest on a machine of ours, and reads what it says.
//!
//! Without `/dev/kvm` the tests fail; with `DISKFERRY_NO_KVM=1` they say so and do nothing.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};

use serde_json::Value;
use vmm::virtio::VirtioDevice;
use vmm::{Devices, Machine, MachineConfig};

/// Whether this host is known not to have KVM.
pub(crate) fn without_kvm() -> bool {
    let without = std::env::var_os("DISKFERRY_NO_KVM").is_some_and(|value| value == "1");
    if without {
        eprintln!("DISKFERRY_NO_KVM=1: nothing is tested");
    }
    without
}

/// What a guest has printed so far.
#[derive(Clone, Default)]
pub(crate) struct Printed(Arc<(Mutex<Vec<u8>>, Condvar)>);

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (text, changed) = &*self.0;
        text.lock().unwrap().extend(bytes);
        changed.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Printed {
    /// Everything, as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.0.lock().unwrap()).into_owned()
    }

    /// All events of this name.
    pub(crate) fn events(&self, name: &str) -> Vec<Value> {
        let text = self.text();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let events = whole.lines().map(|line| {
            serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{line}: {error}"))
        });
        events.filter(|event| event["event"] == name).collect()
    }

    /// Wait until there are so many events of this name.
    pub(crate) fn wait_for(&self, name: &str, count: usize) {
        while self.events(name).len() < count {
            let (text, changed) = &*self.0;
            let text = text.lock().unwrap();
            let _waited = changed
                .wait_timeout(text, std::time::Duration::from_millis(100))
                .unwrap();
        }
    }
}

/// A machine with so many processors and so much memory that does what `cmdline` says.
pub(crate) fn config(vcpus: u8, memory: u64, cmdline: &str) -> MachineConfig {
    MachineConfig {
        vcpus,
        memory,
        huge_pages: false,
        kernel: PathBuf::from(vmm::guest::PATH),
        cmdline: cmdline.to_owned(),
        initrd: None,
    }
}

/// The machine, started, and what it prints.
pub(crate) fn started(
    config: &MachineConfig,
    virtio: Vec<Box<dyn VirtioDevice>>,
) -> (Machine, Printed) {
    let printed = Printed::default();
    let serial = Box::new(printed.clone());
    let devices = Devices { serial, virtio };
    let mut machine = Machine::new(config, devices).expect("a host with KVM");
    machine.start().expect("threads for processors");
    (machine, printed)
}

/// A number of each event.
pub(crate) fn numbers(events: &[Value], name: &str) -> Vec<u64> {
    let number = |event: &Value| event[name].as_u64().unwrap_or_else(|| panic!("{event}"));
    events.iter().map(number).collect()
}
