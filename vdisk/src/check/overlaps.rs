//! The other party of an overlap. The map of space has one bit for each mebibyte and does not say
//! whose it is, so the table is read once more, only if something overlaps.

use crate::error::Result;
use crate::format::bat::{ENTRY_BYTES, Slot};
use crate::format::{BatEntry, Code, Header};
use crate::open::{Structures, View, each_entry, name as name_of, structures_of};
use crate::units::MIB;

use super::CheckReport;

/// The words that the name takes the place of.
const UNNAMED: &str = "what is at";

/// An overlap whose other party is looked for.
struct Wanted {
    /// A byte of the file that both claim.
    byte: u64,
    /// Number of the finding.
    finding: usize,
}

/// Names the other party in every overlap that is listed, and where its claim stands.
pub(super) fn name(
    view: &mut View<'_>,
    header: &Header,
    structures: &Structures,
    report: &mut CheckReport,
) -> Result<()> {
    let overlaps = report.findings.iter().enumerate();
    let mut wanted: Vec<Wanted> = overlaps
        .filter(|(_, found)| found.code == Code::BlockOverlap)
        .filter_map(|(finding, found)| {
            let byte = found.other_offset?;
            Some(Wanted { byte, finding })
        })
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let mut tell = |wanted: &Wanted, party: &str, claim: u64| {
        let Some(found) = report.findings.get_mut(wanted.finding) else {
            return true;
        };
        if found.offset == Some(claim) {
            return false;
        }
        found.message = found.message.replacen(UNNAMED, &format!("{party} at"), 1);
        found.other_offset = Some(claim);
        true
    };
    let parties = structures_of(header, &structures.regions);
    wanted.retain(|wanted| {
        let holds = parties
            .iter()
            .find(|(_, place)| (place.at.0..place.end()).contains(&wanted.byte));
        holds.is_none_or(|(party, place)| !tell(wanted, party, place.at.0))
    });
    wanted.sort_by_key(|wanted| wanted.byte);
    let (geometry, bat) = (structures.geometry, structures.regions.bat());
    each_entry(view, bat, 0..geometry.bat_entries(), |index, entry| {
        let slot = geometry.classify(index);
        let size = match slot {
            Slot::Payload(_) => u64::from(geometry.block_size()),
            Slot::Bitmap(_) if geometry.differencing() => MIB,
            Slot::Bitmap(_) | Slot::Unused => return Ok(()),
        };
        let place = BatEntry::decode(entry).ok().and_then(BatEntry::space);
        let Some(at) = place else { return Ok(()) };
        let claim = bat.at.0 + index.0 * ENTRY_BYTES;
        let from = wanted.partition_point(|wanted| wanted.byte < at.0);
        let mut number = from;
        while let Some(next) = wanted.get(number) {
            if next.byte >= at.0.saturating_add(size) {
                break;
            }
            if tell(next, &name_of(slot), claim) {
                wanted.remove(number);
            } else {
                number += 1;
            }
        }
        Ok(())
    })
}
