//! Raw disks, block devices and chains of VHDX, read by the library `vdisk`.

use std::path::{Path, PathBuf};

use vdisk::chain::{Chain, ParentSearch, open_chain};
use vdisk::disk::{Disk, ImageFormat, OpenOptions};

use super::{Parts, Run, Source};
use crate::args::SourceFormat;
use crate::commands::image;
use crate::failure::Result;

/// Memory for the pages of the tables of one handle, in bytes: each is read about once.
const CACHE: usize = 8 << 20;

pub(super) fn open(
    path: &Path,
    format: SourceFormat,
    search: &ParentSearch,
    handles: usize,
) -> Result<Parts> {
    let is_vhdx = format == SourceFormat::Vhdx;
    let options = OpenOptions {
        read_only: true,
        format: Some(if is_vhdx {
            ImageFormat::Vhdx
        } else {
            ImageFormat::Raw
        }),
        cache: CACHE,
        ..OpenOptions::default()
    };
    // Held while the handles are opened, so that they are all of one version.
    let chain = image::patiently(|| open_chain(path, &options, search))?;
    let (files, versions) = layers(&chain, is_vhdx);
    let sector = if is_vhdx { sector_of(path)? } else { None };
    let open =
        || -> Result<Box<dyn Source>> { Ok(Box::new(image::open_chain(path, &options, search)?)) };
    Ok(Parts {
        handles: (0..handles).map(|_| open()).collect::<Result<_>>()?,
        sector,
        files,
        versions,
    })
}

fn layers(chain: &Chain, is_vhdx: bool) -> (Vec<PathBuf>, Vec<String>) {
    let layers = || std::iter::once(&chain.top).chain(&chain.parents);
    let files = layers().map(|layer| layer.storage.path().to_owned());
    let versions = layers()
        .filter(|_| is_vhdx)
        .map(|layer| layer.data_write.to_string());
    (files.collect(), versions.collect())
}

fn sector_of(path: &Path) -> Result<Option<u32>> {
    let mut storage = image::open_storage(path)?;
    let info = vdisk::info::info(&mut storage).map_err(|error| error.in_file(path))?;
    Ok(Some(info.logical_sector))
}

impl Source for Disk {
    fn size(&self) -> u64 {
        Self::size(self)
    }

    fn runs(&mut self, offset: u64, len: u64) -> Result<Vec<Run>> {
        let extents = self.status(offset, len)?.into_iter();
        Ok(extents
            .map(|extent| Run {
                len: extent.len,
                zero: extent.zero,
            })
            .collect())
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        Ok(Self::read_at(self, offset, buffer)?)
    }
}
