//! The verbs, one file each. Here two crates may meet, and nowhere else.

mod alone;
mod arbiter;
mod bench;
mod booting;
mod check;
pub(crate) mod commit;
mod compact;
mod compare;
mod completions;
pub(crate) mod confinement;
mod convert;
mod create;
mod evacuation;
mod export;
mod flatten;
pub(crate) mod image;
mod import;
mod info;
mod limit;
mod load;
mod machine;
mod man;
mod map;
mod metadata;
mod mirror;
mod pair;
mod promote;
mod rebase;
mod receive;
mod remote;
mod repair;
mod resize;
pub(crate) mod run;
mod seed;
mod serve;
mod snapshot;
mod space;
mod track;
mod verify;

use crate::args::{CommandLine, LoadVerb, Verb};
use crate::failure::Result;
use crate::report::Report;

/// Does what was typed.
pub(crate) fn run(typed: &CommandLine, report: Report) -> Result<()> {
    match &typed.verb {
        Verb::Create(args) => create::run(args, report, typed.global.progress),
        Verb::Snapshot(args) => snapshot::run(args, report),
        Verb::Commit(args) => commit::run(args, report, typed.global.progress),
        Verb::Rebase(args) => rebase::run(args, report, typed.global.progress),
        Verb::Flatten(args) => flatten::run(args, report, typed.global.progress),
        Verb::Info(args) => info::run(args, report),
        Verb::Metadata(verb) => metadata::run(verb, report),
        Verb::Check(args) => check::run(args, report),
        Verb::Map(args) => map::run(args, report),
        Verb::Convert(args) => convert::run(args, &typed.global, report),
        Verb::Compare(args) => compare::run(args, report, typed.global.progress),
        Verb::Resize(args) => resize::run(args, report),
        Verb::Limit(args) => limit::run(args, report),
        Verb::Compact(args) => compact::run(args, report, typed.global.progress),
        Verb::Track(verb) => track::run(verb, report),
        Verb::Checkpoint(verb) => track::checkpoint(verb, report),
        Verb::Changed(args) => track::changed(args, report),
        Verb::Run(args) => run::run(args, report),
        Verb::Machine(verb) => machine::run(verb, report),
        Verb::Serve(args) => serve::run(args, report),
        Verb::Receive(args) => receive::run(args, report),
        Verb::Arbiter(verb) => arbiter::run(verb, report),
        Verb::Pair(verb) => pair::run(verb, report),
        Verb::Mirror(verb) => mirror::run(verb, report),
        Verb::Plan(args) => evacuation::plan(args, report),
        Verb::Evacuate(args) => evacuation::evacuate(args, report),
        Verb::Export(args) => export::run(args, &typed.global, report),
        Verb::Import(args) => import::run(args, &typed.global, report),
        Verb::Bench(args) => bench::run(args, report),
        Verb::Load(LoadVerb::Run(args)) => load::run(args, report),
        Verb::Load(LoadVerb::Verify(args)) => load::verify(args, report),
        Verb::Completions(args) => completions::run(args),
        Verb::Man(args) => man::run(args),
    }
}
