//! The kinds of things that an examination can find, each with a name that programs may rely on.
//!
//! A name never changes its meaning; `docs/vhdx.md` has the table with the file and the test of
//! each. What a repair does about a kind is decided here, in one place, and by the kind alone.

use std::fmt;

use serde::{Serialize, Serializer};

/// What a repair does about a kind of finding. Nothing that would need a guess is among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remedy {
    /// The log is replayed into the file, or emptied if nothing was ever written to it.
    ReplayLog,
    /// Both headers are written anew from the current one.
    RewriteHeaders,
    /// Both copies of the region table become the one that is used, through the log.
    RewriteRegionTables,
    /// The file is made as long as the disk's last block needs; what is added reads as zero.
    LengthenFile,
    /// Bits that mean nothing are cleared in entries of blocks that own no space, through the log.
    ClearBits,
    /// Entries and places in entries that mean nothing become zero, through the log.
    ClearEntries,
    /// The blocks become fully present, through the log.
    Promote,
    /// The file is cut to its last object; what nothing refers to in its middle becomes a hole.
    ReleaseSpace,
}

impl Remedy {
    /// The same, in words for a person.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::ReplayLog => "the log is replayed, or emptied if it has no entry",
            Self::RewriteHeaders => "both headers are written anew from the current one",
            Self::RewriteRegionTables => "both copies become the one that is used, through the log",
            Self::LengthenFile => "the file is made as long as its last block needs",
            Self::ClearBits => "the bits are cleared, through the log",
            Self::ClearEntries => {
                "what means nothing becomes zero, through the log, if nothing else is wrong"
            }
            Self::Promote => {
                "the blocks become fully present, through the log, if nothing else is wrong"
            }
            Self::ReleaseSpace => {
                "the file's end is cut and its middle made a hole, if nothing else is wrong"
            }
        }
    }

    /// Whether it is applied only to an image in which nothing else is wrong: else what means
    /// nothing now could be what somebody needs to save the data.
    #[must_use]
    pub fn needs_sound_image(self) -> bool {
        matches!(
            self,
            Self::ClearEntries | Self::Promote | Self::ReleaseSpace
        )
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $clause:literal, $remedy:expr;)*) => {
        /// A kind of finding. In JSON it is its [`name`](Code::name).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Code {
            $($(#[$doc])* $variant,)*
        }

        impl Code {
            /// All of them, in the order of the file.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name that programs may rely on.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The clause of MS-VHDX that it is about.
            #[must_use]
            pub const fn clause(self) -> &'static str {
                match self { $(Self::$variant => $clause,)* }
            }

            /// What a repair does about it; `None` if that would need a guess, or nothing is wrong.
            #[must_use]
            pub const fn remedy(self) -> Option<Remedy> {
                match self { $(Self::$variant => $remedy,)* }
            }
        }
    };
}

codes! {
    /// The file is shorter than the header section.
    FileTooShort = "file-too-short", "2.1", None;
    /// The file does not begin as an image does.
    NotVhdx = "not-vhdx", "2.2.1", None;

    /// Neither header is valid.
    NoValidHeader = "no-valid-header", "2.2.2", None;
    /// Both headers have one number and differ.
    HeadersAmbiguous = "headers-ambiguous", "2.2.2", None;
    /// One header is not valid; the other one is used.
    HeaderDamaged = "header-damaged", "2.2.2", Some(Remedy::RewriteHeaders);
    /// The numbers of the headers differ by more than one: updates of one did not arrive.
    HeaderStale = "header-stale", "2.2.2", Some(Remedy::RewriteHeaders);
    /// Both headers have one number and are alike (Disk2vhd).
    HeadersEqual = "headers-equal", "2.2.2", Some(Remedy::RewriteHeaders);
    /// The headers name different versions of the disk's data.
    DataWriteDiffers = "data-write-differs", "2.2.2", Some(Remedy::RewriteHeaders);
    /// The headers differ in something else: an update of both was cut off between them.
    HeadersDiffer = "headers-differ", "2.2.2", Some(Remedy::RewriteHeaders);
    /// Reserved bytes of a header are set.
    HeaderReserved = "header-reserved", "2.2.2", Some(Remedy::RewriteHeaders);
    /// The number of the current header cannot be raised any more.
    SequenceAtEnd = "sequence-at-end", "2.2.2", None;
    /// The current header is of another version of the format.
    HeaderVersion = "header-version", "2.2.2", None;
    /// The log is of another version and not empty.
    LogVersion = "log-version", "2.2.2", None;
    /// The image has no log.
    LogAbsent = "log-absent", "2.2.2", None;
    /// The log does not lie in whole mebibytes inside the file.
    LogPlace = "log-place", "2.2.2", None;

    /// The log must be replayed.
    LogToReplay = "log-to-replay", "2.3.3", Some(Remedy::ReplayLog);
    /// A log is named and has no entry of its own.
    LogNeverWritten = "log-never-written", "2.3.3", Some(Remedy::ReplayLog);
    /// Entries of the log are there, and no valid sequence of them.
    LogDamaged = "log-damaged", "2.3.3", None;
    /// The log is longer, or zeroes more, than is believed.
    LogTooLarge = "log-too-large", "2.3", None;
    /// The file is shorter than it was when the log was written.
    FileCutShort = "file-cut-short", "2.3.3", None;

    /// One copy of the region table is damaged.
    RegionCopyDamaged = "region-copy-damaged", "2.2.3", Some(Remedy::RewriteRegionTables);
    /// The copies of the region table are intact and differ.
    RegionCopiesDiffer = "region-copies-differ", "2.2.3", Some(Remedy::RewriteRegionTables);
    /// Both copies of the region table are damaged.
    RegionTablesDamaged = "region-tables-damaged", "2.2.3", None;
    /// The table, or an entry of it, breaks a rule.
    RegionInvalid = "region-invalid", "2.2.3", None;
    /// A region is named twice.
    RegionTwice = "region-twice", "2.2.3", None;
    /// The BAT or the metadata region is not named.
    RegionMissing = "region-missing", "2.2.3", None;
    /// A region that is not known is required.
    RegionUnknown = "region-unknown", "2.2.3", None;
    /// Regions overlap, or the log or the header section do.
    StructureOverlap = "structure-overlap", "2.1", None;
    /// A structure goes beyond the end of the file.
    StructureBeyondEnd = "structure-beyond-end", "2.1", None;
    /// BAT or metadata region are not flagged as required (QEMU).
    RegionNotRequired = "region-not-required", "2.2.3", None;
    /// Reserved bits or bytes of the region table are set.
    RegionReserved = "region-reserved", "2.2.3", None;
    /// What is noted of changes (a region of ours) cannot be read.
    TrackingDamaged = "tracking-damaged", "2.2.3", None;

    /// The metadata table has no signature or too many entries.
    MetadataTable = "metadata-table", "2.6.1.1", None;
    /// An entry of the metadata table breaks a rule.
    MetadataItem = "metadata-item", "2.6.1.2", None;
    /// An item is named twice.
    MetadataTwice = "metadata-twice", "2.6.1.2", None;
    /// Items overlap.
    MetadataOverlap = "metadata-overlap", "2.6.1.2", None;
    /// An item that is not known is required.
    MetadataUnknown = "metadata-unknown", "2.6.1.2", None;
    /// Reserved bytes of the metadata table are set.
    MetadataReserved = "metadata-reserved", "2.6.1", None;
    /// An item that every image has is missing.
    MetadataMissing = "metadata-missing", "2.6.2", None;
    /// A known item has a length or a value that cannot be.
    MetadataValue = "metadata-value", "2.6.2", None;
    /// The parent locator breaks a rule.
    LocatorInvalid = "locator-invalid", "2.6.2.6", None;
    /// There is a parent locator and no parent.
    LocatorStray = "locator-stray", "2.6.2.6", None;
    /// The image is marked as another's.
    Marked = "marked", "2.6.1.2", None;
    /// The image has a parent.
    HasParent = "has-parent", "2.6.2.6", None;

    /// The BAT region is too small for the disk.
    BatTooSmall = "bat-too-small", "2.5", None;
    /// An entry has a state that does not exist.
    EntryState = "entry-state", "2.5.1", None;
    /// An entry of a block that owns space has reserved bits set.
    EntryReserved = "entry-reserved", "2.5.1", None;
    /// An entry of a block that owns no space has reserved bits set.
    EntryIdleReserved = "entry-idle-reserved", "2.5.1", Some(Remedy::ClearBits);
    /// Entries of blocks that own no space name a place.
    EntryIdlePlace = "entry-idle-place", "2.5.1.1", Some(Remedy::ClearEntries);
    /// A block is present, at no place.
    EntryNoPlace = "entry-no-place", "2.5.1.1", None;
    /// A block lies beyond the end of the file.
    BlockBeyondEnd = "block-beyond-end", "2.5.1.1", None;
    /// A block overlaps another one, or a structure.
    BlockOverlap = "block-overlap", "2.5.1", None;
    /// The file ends inside the disk's last block (old QEMU).
    LastBlockCut = "last-block-cut", "2.5.1.1", Some(Remedy::LengthenFile);
    /// A block is partially present and the disk has no parent.
    PartialWithoutParent = "partial-without-parent", "2.5.1.1", None;
    /// A block is partially present and its chunk has no sector bitmap.
    PartialWithoutBitmap = "partial-without-bitmap", "2.5.1.2", None;
    /// Entries of sector bitmaps are set and the disk has no parent.
    BitmapWithoutParent = "bitmap-without-parent", "2.5.1.2", Some(Remedy::ClearEntries);
    /// Entries behind the end of the disk are not zero.
    EntriesBehindEnd = "entries-behind-end", "2.5", Some(Remedy::ClearEntries);
    /// An entry that means nothing names space that nothing else uses.
    EntryOrphan = "entry-orphan", "2.5", None;
    /// Blocks of a fixed disk have no space.
    FixedNotAllocated = "fixed-not-allocated", "2.5.1.1", None;

    /// Every bit of partially present blocks is set.
    PartialWhole = "partial-whole", "2.5.1.2", Some(Remedy::Promote);
    /// No bit of partially present blocks is set.
    PartialEmpty = "partial-empty", "2.5.1.2", None;
    /// Bits of blocks are set that are not present.
    BitsWithoutBlock = "bits-without-block", "2.5.1.2", None;

    /// Space of the file that nothing refers to.
    Leak = "leak", "2.1", Some(Remedy::ReleaseSpace);

    /// The disk that this one is built on was not found where it may be.
    ParentNotFound = "parent-not-found", "2.6.2.6", None;
    /// A parent is in use by somebody who may write it.
    ParentInUse = "parent-in-use", "2.6.2.6", None;
    /// A parent cannot be used: corrupt, marked, or of a kind that is not supported.
    ParentUnusable = "parent-unusable", "2.6.2.6", None;
    /// A parent was changed after its child was made.
    ParentChanged = "parent-changed", "2.6.2.6", None;
    /// A parent has sectors of another size.
    ParentSectors = "parent-sectors", "2.6.2.6", None;
    /// A disk is built on itself.
    ChainCycle = "chain-cycle", "2.6.2.6", None;
    /// A chain has too many disks.
    ChainTooDeep = "chain-too-deep", "2.6.2.6", None;
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_different_and_documented() {
        let names: BTreeSet<&str> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/vhdx.md");
        let document = std::fs::read_to_string(path).unwrap();
        for code in Code::ALL {
            let row = format!("| `{code}` | {} |", code.clause());
            assert!(document.contains(&row), "no row {row}");
        }
    }
}
