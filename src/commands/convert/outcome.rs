//! What `convert` says that it did, or would do.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use super::super::image::{self, Known};
use super::Copied;
use crate::args::FormatName;
use crate::failure::Result;
use crate::plan::Convert;
use crate::progress::per_second;
use crate::size;

#[derive(Serialize)]
pub(super) struct Converted {
    path: String,
    #[serde(flatten)]
    known: Known,
    source: String,
    size_on_disk: u64,
    copied_bytes: u64,
    /// Where the copy went on that an earlier run had begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    resumed_at: Option<u64>,
    verified: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    seconds: f64,
    bytes_per_second: u64,
}

impl Converted {
    pub(super) fn new(plan: &Convert, path: &Path, copied: Copied, resumed: u64) -> Result<Self> {
        let known = image::know(path, Some(plan.shape.format))?;
        debug_assert_eq!(known.virtual_size(), copied.size);
        Ok(Self {
            path: path.display().to_string(),
            known,
            source: plan.source.name.to_string(),
            size_on_disk: image::size_on_disk(path)?,
            copied_bytes: copied.moved,
            resumed_at: Some(resumed).filter(|at| *at > 0),
            verified: copied.digest.is_some(),
            digest: copied.digest,
            seconds: copied.elapsed.as_secs_f64(),
            bytes_per_second: per_second(copied.moved, copied.elapsed),
        })
    }

    pub(super) fn sentence(&self) -> String {
        let mut text = format!(
            "{}: {}, {} copied in {:.1} s ({}/s), {} on disk",
            self.path,
            size::show(self.known.virtual_size()),
            size::show(self.copied_bytes),
            self.seconds,
            size::show(self.bytes_per_second),
            size::show(self.size_on_disk)
        );
        if let Some(at) = self.resumed_at {
            let _ = write!(text, ", gone on from {}", size::show(at));
        }
        if let Some(digest) = &self.digest {
            let _ = write!(text, "; read again and the same, BLAKE3 {digest}");
        }
        text
    }
}

#[derive(Serialize)]
pub(super) struct Planned {
    dry_run: bool,
    source: String,
    source_format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_size: Option<u64>,
    /// What has to be read: the pieces of 1 MiB in which the source may have data.
    #[serde(skip_serializing_if = "Option::is_none")]
    data_bytes: Option<u64>,
    path: String,
    format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    resume_at: Option<u64>,
}

impl Planned {
    pub(super) fn new(
        plan: &Convert,
        (source_format, source_size): (&'static str, Option<u64>),
        path: &Path,
        (data_bytes, done): (Option<u64>, u64),
    ) -> Self {
        Self {
            dry_run: true,
            source: plan.source.name.to_string(),
            source_format,
            source_size: source_size.or(plan.size),
            data_bytes,
            path: path.display().to_string(),
            format: match plan.shape.format {
                FormatName::Vhdx => "vhdx",
                FormatName::Raw => "raw",
            },
            resume_at: Some(done).filter(|at| *at > 0),
        }
    }

    pub(super) fn sentence(&self) -> String {
        let amount = |bytes: Option<u64>| bytes.map_or("an unknown size".to_owned(), size::show);
        let begun = match self.resume_at {
            Some(at) => format!("would go on from {} of", size::show(at)),
            None => "would make".to_owned(),
        };
        format!(
            "{begun} {}, {}, from {} ({}, {}); at most {} to read",
            self.path,
            self.format,
            self.source,
            self.source_format,
            amount(self.source_size),
            amount(self.data_bytes)
        )
    }
}
