//! ELF64 files for x86-64: the header, program headers and notes (System V gABI, chapters 4 and 5).
//!
//! Codec. Total: whatever the bytes are, either checked numbers come of them or a reason. Nothing is looked
//! up by name but what is to be booted: sections are not read.

/// Bytes of the file header.
pub(super) const HEADER: usize = 64;
/// Bytes of a program header.
const PROGRAM_HEADER: u16 = 56;
/// More program headers than a kernel has.
const MOST_SEGMENTS: u16 = 64;

/// The first bytes of every ELF file.
pub(super) const MAGIC: [u8; 4] = *b"\x7FELF";

/// What the file header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Where the program begins (`e_entry`).
    pub(super) entry: u64,
    /// Where in the file the program headers are.
    pub(super) table: u64,
    /// How many bytes all of them have.
    pub(super) table_bytes: usize,
}

/// What a segment is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It is to be in memory.
    Load,
    /// It holds notes.
    Note,
}

/// A segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// What it is for.
    pub(super) kind: Kind,
    /// Where in the file it is.
    pub(super) offset: u64,
    /// Where in physical memory it belongs (`p_paddr`).
    pub(super) address: u64,
    /// Bytes in the file.
    pub(super) file_bytes: u64,
    /// Bytes in memory; those that are not in the file are zero.
    pub(super) memory_bytes: u64,
    /// Alignment, of notes too.
    pub(super) align: u64,
}

/// A note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Note<'a> {
    /// Who defines its type, without the NUL.
    pub(super) owner: &'a [u8],
    /// Its type.
    pub(super) kind: u32,
    /// What it says.
    pub(super) description: &'a [u8],
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

fn double(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn quad(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

/// Decode the file header.
pub(super) fn header(bytes: &[u8; HEADER]) -> Result<Header, &'static str> {
    if !bytes.starts_with(&MAGIC) {
        return Err("it is not an ELF file");
    }
    let class = (bytes.get(4), bytes.get(5), word(bytes, 18));
    if class != (Some(&2), Some(&1), Some(62)) {
        return Err("it is not an ELF file of 64 bits for x86-64");
    }
    let fields = (
        quad(bytes, 24),
        quad(bytes, 32),
        word(bytes, 54),
        word(bytes, 56),
    );
    let (Some(entry), Some(table), Some(size), Some(count)) = fields else {
        return Err("its header is cut off");
    };
    if size != PROGRAM_HEADER {
        return Err("its program headers have an unknown size");
    }
    if count == 0 || count > MOST_SEGMENTS {
        return Err("it has no program headers, or more than 64");
    }
    Ok(Header {
        entry,
        table,
        table_bytes: usize::from(size) * usize::from(count),
    })
}

/// Decode the program headers; those that are neither loaded nor notes are left out.
pub(super) fn segments(table: &[u8]) -> Result<Vec<Segment>, &'static str> {
    let mut segments = Vec::new();
    for bytes in table.chunks_exact(usize::from(PROGRAM_HEADER)) {
        let kind = match double(bytes, 0) {
            Some(1) => Kind::Load,
            Some(4) => Kind::Note,
            _ => continue,
        };
        let fields = (
            quad(bytes, 8),
            quad(bytes, 24),
            quad(bytes, 32),
            quad(bytes, 40),
            quad(bytes, 48),
        );
        let (Some(offset), Some(address), Some(file_bytes), Some(memory_bytes), Some(align)) =
            fields
        else {
            return Err("a program header is cut off");
        };
        if offset.checked_add(file_bytes).is_none() || address.checked_add(memory_bytes).is_none() {
            return Err("a segment wraps round");
        }
        if kind == Kind::Load && file_bytes > memory_bytes {
            return Err("a segment is larger in the file than in memory");
        }
        segments.push(Segment {
            kind,
            offset,
            address,
            file_bytes,
            memory_bytes,
            align,
        });
    }
    Ok(segments)
}

/// The notes of a segment. What follows one that is cut off is left out.
pub(super) fn notes(bytes: &[u8], align: u64) -> Vec<Note<'_>> {
    let align = if align == 8 { 8 } else { 4 };
    let mut notes = Vec::new();
    let mut at = 0;
    while let Some((note, next)) = note(bytes, at, align) {
        notes.push(note);
        at = next;
    }
    notes
}

fn note(bytes: &[u8], at: usize, align: usize) -> Option<(Note<'_>, usize)> {
    let name_bytes = double(bytes, at)? as usize;
    let bytes_of_description = double(bytes, at.checked_add(4)?)? as usize;
    let kind = double(bytes, at.checked_add(8)?)?;
    let name_at = at.checked_add(12)?;
    let name_end = name_at.checked_add(name_bytes)?;
    let owner = bytes.get(name_at..name_end)?;
    let from = name_end.checked_next_multiple_of(align)?;
    let end = from.checked_add(bytes_of_description)?;
    let description = bytes.get(from..end)?;
    let owner = owner.strip_suffix(&[0]).unwrap_or(owner);
    let note = Note {
        owner,
        kind,
        description,
    };
    Some((note, end.checked_next_multiple_of(align)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(owner: &[u8], kind: u32, description: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [owner.len() as u32, description.len() as u32, kind] {
            bytes.extend(word.to_le_bytes());
        }
        for part in [owner, description] {
            bytes.extend(part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn notes_are_found_one_behind_the_other() {
        let mut bytes = encoded(b"Xen\0", 18, &[0, 0, 0x10, 0]);
        bytes.extend(encoded(b"Diskferry\0", 1, &[1, 0, 0, 0]));
        bytes.extend([10, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0]);
        let notes = notes(&bytes, 4);
        assert_eq!(notes.len(), 2);
        assert_eq!((notes[0].owner, notes[0].kind), (&b"Xen"[..], 18));
        assert_eq!(
            (notes[1].owner, notes[1].description),
            (&b"Diskferry"[..], &[1, 0, 0, 0][..])
        );
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_are_decoding_ends(bytes in prop::collection::vec(any::<u8>(), 0..600), align: u64) {
            let mut head = [0; HEADER];
            for (to, from) in head.iter_mut().zip(&bytes) {
                *to = *from;
            }
            let _ = header(&head);
            head[..4].copy_from_slice(&MAGIC);
            let _ = header(&head);
            let _ = notes(&bytes, align);
            for segment in segments(&bytes).unwrap_or_default() {
                prop_assert!(segment.kind == Kind::Note || segment.file_bytes <= segment.memory_bytes);
            }
        }
    }
}
