//! The two headers compared (MS-VHDX 2.2.2): what an update that was cut off may leave, and more.

use crate::error::{Error, Result};
use crate::format::header::{Header, Slot, reserved_set};
use crate::format::{Code, Finding, PAGE};
use crate::open::Judge;
use crate::storage::Storage;

/// A number from which there is no long way to the end of all numbers.
pub(crate) const LAST_SEQUENCE: u64 = u64::MAX - (1 << 20);

/// Compares the current header, which lies in `slot`, with the other one. One that is damaged has been
/// told about.
pub(super) fn compare(
    storage: &mut dyn Storage,
    (header, slot): (&Header, Slot),
    judge: &mut dyn Judge,
) -> Result<()> {
    let mut page = |slot: Slot| -> Result<Vec<u8>> {
        let mut page = vec![0; PAGE];
        let read = storage.read_at(slot.at().0, &mut page);
        read.map_err(|source| Error::io("cannot read the header", source).at(slot.at().0))?;
        Ok(page)
    };
    if header.sequence > LAST_SEQUENCE {
        let what = format!("SequenceNumber is {}, at its end", header.sequence);
        let follows = "the image can be read; it cannot be changed many more times, or at all";
        let finding = Finding::warning(Code::SequenceAtEnd, "header", what, follows);
        judge.found(finding.at(slot.at().0))?;
    }
    let (current, other_page) = (page(slot)?, page(slot.other())?);
    let Ok(other) = Header::decode(&other_page) else {
        return Ok(());
    };
    for (slot, page) in [(slot, &current), (slot.other(), &other_page)] {
        if reserved_set(page) {
            let what = "reserved bytes are set";
            let finding = Finding::info(Code::HeaderReserved, "header", what, "they are ignored");
            judge.found(finding.at(slot.at().0))?;
        }
    }
    let at = slot.other().at().0;
    if let Some(finding) = numbers(header.sequence, other.sequence) {
        judge.found(finding.at(at))?;
    }
    match content(header, &other) {
        Some(finding) => judge.found(finding.at(at)),
        None => Ok(()),
    }
}

/// Each update raises the number by one and goes to the other slot.
fn numbers(current: u64, other: u64) -> Option<Finding> {
    match current - other {
        0 => Some(Finding::info(
            Code::HeadersEqual,
            "header",
            format!("both headers have SequenceNumber {current}, and are alike"),
            "none; Disk2vhd writes them so",
        )),
        1 => None,
        behind => Some(Finding::warning(
            Code::HeaderStale,
            "header",
            format!("SequenceNumber is {other}, {behind} behind the current header's"),
            "were the current header lost, the image would be read as it was some changes ago",
        )),
    }
}

/// A writer writes each content to both, so they differ only while an update is under way.
fn content(current: &Header, other: &Header) -> Option<Finding> {
    if current.data_write != other.data_write {
        return Some(Finding::warning(
            Code::DataWriteDiffers,
            "header",
            format!(
                "DataWriteGuid is {} here and {} in the current header",
                other.data_write, current.data_write
            ),
            "were the current header lost, disks built on this one would refuse it; an update \
             that was cut off leaves that, and QEMU's replay of a log",
        ));
    }
    let same = Header {
        sequence: other.sequence,
        ..current.clone()
    };
    (same != *other).then(|| {
        Finding::info(
            Code::HeadersDiffer,
            "header",
            "the older header says something else than the current one",
            "none; an update of both was cut off between them",
        )
    })
}
