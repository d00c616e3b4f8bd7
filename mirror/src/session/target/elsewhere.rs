//! Blocks that need not come: those that an image of this site, a template, has at the same place.
//!
//! A probe tells the hashes of what the source has. Blocks that the disk does not have so are looked for in one template
//! after the other, and what is found is written as the chunk in whose place the probe came. Must never write a block whose
//! hash is another, over what is newer, or for an incarnation that is over.

use std::io;

use bytes::Bytes;

use super::compare::Compared;
use super::{OpId, Target, TargetAction};

/// What is looked for in the templates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Search {
    /// Blocks of the probe that were not found so far.
    pub(super) missing: u128,
    /// Of how many templates it was asked.
    asked: usize,
}

impl Target {
    /// The disk was compared with what came: what is not there may be elsewhere.
    pub(super) fn conclude(&mut self, op: OpId, compared: Compared) {
        match compared {
            Compared::Differs(missing) if missing != 0 && self.config.templates > 0 => {
                if let Some(compare) = self.apply.comparing(op) {
                    compare.search.missing = missing;
                    self.look_elsewhere(op);
                }
            }
            compared => self.apply.compared(op, compared),
        }
    }

    /// Ask the next template, if there is one and something is missing; else that was all.
    fn look_elsewhere(&mut self, op: OpId) {
        let templates = self.config.templates;
        let Some(compare) = self.apply.comparing(op) else {
            return;
        };
        let (number, (offset, len)) = (compare.search.asked, compare.place());
        let over = compare.search.missing == 0 || number >= templates;
        compare.search.asked += 1;
        // Nobody waits for what an incarnation that is over asked; the next one waits for its end.
        if over || self.apply.is_of_the_past(op) {
            return self.apply.searched(op);
        }
        self.actions.push_back(TargetAction::ReadTemplate {
            op,
            number,
            offset,
            len,
        });
    }

    #[cfg(not(test))]
    #[expect(
        clippy::unused_self,
        reason = "the form of the function that tests have"
    )]
    fn finds_anything(&self) -> (bool, bool) {
        (false, false)
    }

    /// Whether blocks are found without their hashes, and written over what is newer.
    #[cfg(test)]
    fn finds_anything(&self) -> (bool, bool) {
        let unlike = self.broken(crate::session::Sabotage::TakeUnlike);
        (
            unlike,
            self.broken(crate::session::Sabotage::FoundOverRecords),
        )
    }

    /// A template that cannot be read has nothing.
    pub(super) fn on_template(&mut self, op: OpId, result: io::Result<Bytes>) {
        let data = result.unwrap_or_default();
        let (unlike, over) = self.finds_anything();
        let found = self
            .apply
            .comparing(op)
            .map(|compare| compare.find_in(&data, unlike));
        self.apply.bring(op, &found.unwrap_or_default(), over);
        self.look_elsewhere(op);
    }
}

#[cfg(test)]
mod tests;
