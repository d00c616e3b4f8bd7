//! What a repair does with an image: decided by what an examination found, without touching it.
//!
//! Three rules. Nothing is guessed: a kind of finding has a remedy or it has none ([`Code::remedy`]).
//! Nothing is changed where the change itself could harm: an image whose structures are broken is
//! left alone. What only tidies is done only where nothing is wrong: space that nothing refers to is
//! released only if no entry is left that could have referred to it.

use serde::Serialize;

use crate::check::CheckReport;
use crate::format::{Code, Remedy};

/// Every remedy, in the order in which they are applied.
const ORDER: [Remedy; 8] = [
    Remedy::ReplayLog,
    Remedy::RewriteHeaders,
    Remedy::RewriteRegionTables,
    Remedy::LengthenFile,
    Remedy::ClearBits,
    Remedy::ClearEntries,
    Remedy::Promote,
    Remedy::ReleaseSpace,
];

/// What is to be done, and what is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Remedy>,
    /// Remedies that are called for and not applied, each with the reason.
    pub withheld: Vec<Withheld>,
}

/// A remedy that is called for and not applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Withheld {
    /// Which.
    pub remedy: Remedy,
    /// Why not.
    pub reason: &'static str,
}

impl Plan {
    /// What to do about what `report` found.
    #[must_use]
    pub fn new(report: &CheckReport) -> Self {
        let mut plan = Self::default();
        let called = ORDER.iter().filter(|remedy| report.calls_for(**remedy));
        for remedy in called.copied() {
            match obstacle(report, remedy) {
                Some(reason) => plan.withheld.push(Withheld { remedy, reason }),
                None => plan.steps.push(remedy),
            }
        }
        plan
    }
}

/// Why this remedy may not be applied.
fn obstacle(report: &CheckReport, remedy: Remedy) -> Option<&'static str> {
    if !report.complete {
        return Some("the image could not be examined to the end; it is left as it is");
    }
    if report.has(Code::LogAbsent) {
        return Some("the image has no log, without which nothing is changed safely");
    }
    if report.has(Code::SequenceAtEnd) {
        return Some("its headers cannot be renewed any more, so nothing is changed");
    }
    if report.lasting().any(|code| code < Code::EntryState) {
        return Some("a structure other than the BAT is broken; the image is left as it is");
    }
    if writes_log(remedy) && report.has(Code::BlockOverlap) {
        return Some("blocks overlap; the log, through which it would go, may be among them");
    }
    if remedy.needs_sound_image() && report.lasting().next().is_some() {
        return Some("what means nothing now may be needed to save the data of damaged blocks");
    }
    if remedy == Remedy::ReleaseSpace && report.has(Code::EntryOrphan) {
        return Some("entries that mean nothing name some of that space; it may be data");
    }
    None
}

/// Whether it writes entries of its own to the log.
fn writes_log(remedy: Remedy) -> bool {
    matches!(
        remedy,
        Remedy::RewriteRegionTables | Remedy::ClearBits | Remedy::ClearEntries | Remedy::Promote
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Finding, Severity};

    fn report(found: &[(Code, Severity)]) -> CheckReport {
        let mut report = CheckReport::default();
        report.complete = true;
        let finding = |(code, severity): &(Code, Severity)| {
            Finding::new(*code, *severity, "test", "found", "follows")
        };
        report.add(found.iter().map(finding).collect());
        report
    }

    #[test]
    fn every_remedy_that_a_code_names_has_its_place_in_the_order() {
        let named = Code::ALL.iter().filter_map(|code| code.remedy());
        assert!(named.into_iter().all(|remedy| ORDER.contains(&remedy)));
        assert!(ORDER.is_sorted());
    }

    #[test]
    fn what_tidies_waits_until_nothing_is_wrong() {
        let tidy = [
            (Code::EntriesBehindEnd, Severity::Info),
            (Code::PartialWhole, Severity::Info),
            (Code::Leak, Severity::Leak),
        ];
        let all = [Remedy::ClearEntries, Remedy::Promote, Remedy::ReleaseSpace];
        assert_eq!(Plan::new(&report(&tidy)).steps, all);
        let mut damaged = tidy.to_vec();
        damaged.push((Code::EntryState, Severity::Error));
        damaged.push((Code::LogToReplay, Severity::Warning));
        let plan = Plan::new(&report(&damaged));
        assert_eq!(plan.steps, [Remedy::ReplayLog]);
        assert_eq!(plan.withheld.len(), 3);
        // What a repair mends stands in nobody's way.
        let mut mendable = tidy.to_vec();
        mendable.push((Code::EntryIdleReserved, Severity::Error));
        assert_eq!(Plan::new(&report(&mendable)).steps.len(), 4);
    }

    #[test]
    fn an_orphan_keeps_space_from_being_released() {
        let found = [
            (Code::EntryOrphan, Severity::Warning),
            (Code::Leak, Severity::Leak),
            (Code::EntriesBehindEnd, Severity::Info),
        ];
        let plan = Plan::new(&report(&found));
        assert_eq!(plan.steps, [Remedy::ClearEntries]);
        assert_eq!(plan.withheld[0].remedy, Remedy::ReleaseSpace);
    }

    #[test]
    fn an_image_whose_structures_are_broken_is_left_alone() {
        let mendable = [
            (Code::HeaderDamaged, Severity::Warning),
            (Code::LogToReplay, Severity::Warning),
            (Code::RegionCopyDamaged, Severity::Warning),
        ];
        for code in [Code::StructureOverlap, Code::LogDamaged, Code::MetadataItem] {
            let mut found = mendable.to_vec();
            found.push((code, Severity::Error));
            let plan = Plan::new(&report(&found));
            assert!(plan.steps.is_empty() && plan.withheld.len() == 3, "{code}");
        }
        let mut halfway = report(&mendable);
        halfway.complete = false;
        assert!(Plan::new(&halfway).steps.is_empty());
        for code in [Code::LogAbsent, Code::SequenceAtEnd] {
            let mut found = mendable.to_vec();
            found.push((code, Severity::Warning));
            assert!(Plan::new(&report(&found)).steps.is_empty(), "{code}");
        }
        // Nothing goes through a log that a block may overlap.
        let mut found = mendable.to_vec();
        found.push((Code::BlockOverlap, Severity::Error));
        let steps = Plan::new(&report(&found)).steps;
        assert_eq!(steps, [Remedy::ReplayLog, Remedy::RewriteHeaders]);
    }
}
