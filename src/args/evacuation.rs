//! What `plan` and `evacuate` are told.

use std::path::PathBuf;

use clap::Args;

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry plan --example > evacuation.json       every field, to be changed
  diskferry plan evacuation.json
  diskferry plan evacuation.json --simulate 100    and how likely that is
  inventory | diskferry plan - --json

Says which machines can move by the deadline, in which order, when and over what, and of the others why they cannot and
what would help: a seed on drives, slower writers, a pause, more bandwidth. What the fields mean, how the order comes about
and what a plan does not know is in docs/evacuation.md. Nothing is started: `diskferry evacuate` does that.

Exit code 11 if some machine cannot move in time.")]
pub(crate) struct PlanArgs {
    /// Machines, links, targets and a deadline, in JSON; - for stdin
    #[arg(value_name = "FILE", required_unless_present = "example")]
    pub(crate) file: Option<PathBuf>,
    /// Print an example of such a file
    #[arg(long, conflicts_with = "file")]
    pub(crate) example: bool,
    /// Carry the plan out so many times in made-up worlds, and say how likely each machine is in time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) simulate: Option<u32>,
    /// Where those worlds come from
    #[arg(long, value_name = "N", default_value = "1", requires = "simulate")]
    pub(crate) seed: u64,
    /// Plan as if it were then, as in 2026-11-27T18:00:00Z [default: now]
    #[arg(long, value_name = "MOMENT")]
    pub(crate) at: Option<String>,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  diskferry evacuate evacuation.json --dry-run
  diskferry evacuate evacuation.json
  diskferry evacuate evacuation.json --json | tee evacuation.log

Moves machines as `diskferry plan` has it, over the control sockets of the `diskferry serve` processes that have their
disks. Only sockets of this host are reached. It measures as it goes and plans anew every few seconds.

It keeps nothing of its own: how far everything is, the servers say. So it may be ended or killed at any time, and started
again: moves that run go on without it, and it goes on with them. Write the deadline as a moment then
(\"2026-11-27T18:00:00Z\"), not as a time from now.

Ctrl-C begins nothing more and leaves what runs. Exit code 11 if some machine was not moved.")]
pub(crate) struct EvacuateArgs {
    /// Machines, links, targets and a deadline, as for `diskferry plan`; - for stdin
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Look how far everything is and say what would be done, but begin nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Plan anew that often
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub(crate) every: String,
    /// With Ctrl-C also end the moves that run; their disks stay where they are
    #[arg(long)]
    pub(crate) cancel_on_interrupt: bool,
}
