//! `diskferry create`: an empty disk.

use serde::Serialize;

use super::image::{self, Known};
use super::space;
use crate::args::{CreateArgs, ProgressMode};
use crate::failure::Result;
use crate::plan::{Content, Create};
use crate::report::Report;
use crate::size;
use crate::target::Target;

#[derive(Serialize)]
struct Created {
    path: String,
    #[serde(flatten)]
    known: Known,
    size_on_disk: u64,
}

pub(crate) fn run(args: &CreateArgs, report: Report, mode: ProgressMode) -> Result<()> {
    let plan = Create::new(args)?;
    let target = Target::new(&plan.disk, plan.force)?;
    match &plan.content {
        Content::Empty(size) => {
            let mut storage = image::make_sparse(target.partial(), &plan.shape, *size)?;
            let taken = space::Taken {
                mode: plan.preallocation,
                size: *size,
                shape: &plan.shape,
            };
            taken.take(&mut storage, (report, mode))?;
        }
        Content::Parent(parent) => {
            image::make_child(target.partial(), parent, plan.shape.block_size)?;
        }
    }
    target.finish()?;
    let created = Created {
        path: plan.disk.display().to_string(),
        known: image::know(&plan.disk, Some(plan.shape.format))?,
        size_on_disk: image::size_on_disk(&plan.disk)?,
    };
    report.event("created", &created, &sentence(&created))
}

fn sentence(created: &Created) -> String {
    let kind = match &created.known {
        Known::Raw(_) => "raw".to_owned(),
        Known::Vhdx(info) => format!(
            "{} VHDX with blocks of {}",
            info.kind,
            size::show(u64::from(info.block_size))
        ),
    };
    format!(
        "{}: {}, {kind}, {} on disk",
        created.path,
        size::show(created.known.virtual_size()),
        size::show(created.size_on_disk)
    )
}
