//! How a machine begins: what it goes on from, its disks, what it has of its host. Its process is confined on the way,
//! before it starts a thread that lives as long as the machine, and before it listens for one that arrives.

use vmm::memory::Faults;

use super::held::Held;
use super::{moving, open};
use crate::args::RunArgs;
use crate::commands::confinement;
use crate::failure::Result;
use crate::identity;
use crate::interrupt;
use crate::moving::standing::Arrived;
use crate::plan::Machine;
use crate::report::Report;
use crate::saved::restore::Restore;
use crate::site::disk::Opened;

/// See the file's head.
pub(super) struct Begun {
    pub(super) arrived: Arrived,
    pub(super) restore: Option<Restore>,
    pub(super) disks: Vec<Opened>,
    pub(super) held: Held,
}

/// Begin, in a process that is confined afterwards; nothing if the machine went elsewhere and runs there.
pub(super) fn begin(args: &RunArgs, plan: &Machine, report: Report) -> Result<Option<Begun>> {
    interrupt::catch();
    if let Some(address) = &args.arrives.receive {
        identity::allowed(address, args.arrives.plain)?;
        return receive(args, (plan, address), report);
    }
    let Some(arrived) = moving::begin(args, plan, None, report)? else {
        return Ok(None);
    };
    let restore = moving::restore(args, plan, &arrived, None)?;
    let disks = opened(plan)?;
    // The disks are open and locked: nobody else has the taps of this machine.
    let mut held = Held::open(args, plan)?;
    held.go_on(plan, restore.as_ref());
    confinement::begin(args, plan, (&disks, arrived.state.as_deref()))?;
    interrupt::listen();
    Ok(Some(Begun {
        arrived,
        restore,
        disks,
        held,
    }))
}

/// The same for a machine that comes from another host. What listens for it hears strangers, and stays until the
/// machine runs: the process is confined before, to where the disks will be.
fn receive(
    args: &RunArgs,
    (plan, address): (&Machine, &str),
    report: Report,
) -> Result<Option<Begun>> {
    let listening = moving::listen(plan, address)?;
    let mut held = Held::open(args, plan)?;
    let faults = Faults::open(plan.vm.huge_pages);
    confinement::begin(args, plan, (&[], None))?;
    interrupt::listen();
    let Some(arrived) = moving::begin(args, plan, Some(listening), report)? else {
        return Ok(None);
    };
    let restore = moving::restore(args, plan, &arrived, Some(faults))?;
    held.go_on(plan, restore.as_ref());
    Ok(Some(Begun {
        arrived,
        restore,
        disks: opened(plan)?,
        held,
    }))
}

fn opened(plan: &Machine) -> Result<Vec<Opened>> {
    let disks = plan.vm.disks.iter();
    disks.map(|disk| open(disk, &plan.search)).collect()
}
