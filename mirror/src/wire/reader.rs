//! Fields off the front of a frame: no byte is read that is not there.

use bytes::{Buf, Bytes};
use uuid::Uuid;

use super::decode::{DecodeError, Fault};

/// Reads fields off the front, counting where it is.
pub(super) struct Reader {
    rest: Bytes,
    at: usize,
}

impl Reader {
    /// Over the fields in `rest`, the first of which is at `at` in the frame.
    pub(super) fn new(rest: Bytes, at: usize) -> Self {
        Self { rest, at }
    }

    /// Where the next field is in the frame.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The field of `len` bytes just read has a value it cannot have.
    pub(super) fn bad(&self, field: &'static str, len: usize) -> DecodeError {
        DecodeError {
            field,
            offset: self.at.saturating_sub(len),
            fault: Fault::BadValue,
        }
    }

    fn take(&mut self, field: &'static str, len: usize) -> Result<Bytes, DecodeError> {
        if self.rest.remaining() < len {
            return Err(DecodeError {
                field,
                offset: self.at,
                fault: Fault::Truncated,
            });
        }
        self.at += len;
        Ok(self.rest.split_to(len))
    }

    pub(super) fn array<const N: usize>(
        &mut self,
        field: &'static str,
    ) -> Result<[u8; N], DecodeError> {
        let bytes = self.take(field, N)?;
        Ok(bytes.first_chunk::<N>().copied().unwrap_or([0; N]))
    }

    /// A count, at most `most`, and so many names.
    pub(super) fn names(
        &mut self,
        field: &'static str,
        most: u16,
    ) -> Result<Vec<Uuid>, DecodeError> {
        let count = self.u16(field)?;
        if count > most {
            return Err(self.bad(field, 2));
        }
        let names = (0..count).map(|_| self.array::<16>(field).map(Uuid::from_bytes));
        names.collect()
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(field).map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array::<2>(field).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array::<4>(field).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        self.array::<8>(field).map(u64::from_le_bytes)
    }

    pub(super) fn u128(&mut self, field: &'static str) -> Result<u128, DecodeError> {
        self.array::<16>(field).map(u128::from_le_bytes)
    }

    pub(super) fn nonzero(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        match self.u64(field)? {
            0 => Err(self.bad(field, 8)),
            value => Ok(value),
        }
    }

    /// A set of blocks, not empty.
    pub(super) fn blocks(&mut self, field: &'static str) -> Result<u128, DecodeError> {
        match self.u128(field)? {
            0 => Err(self.bad(field, 16)),
            blocks => Ok(blocks),
        }
    }

    pub(super) fn flag(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.bad(field, 1)),
        }
    }

    /// One that names something.
    pub(super) fn name(&mut self, field: &'static str) -> Result<Uuid, DecodeError> {
        let name = self.uuid(field)?;
        if name.is_nil() {
            return Err(self.bad(field, 16));
        }
        Ok(name)
    }

    /// One that names something, or nothing.
    pub(super) fn maybe_name(&mut self, field: &'static str) -> Result<Option<Uuid>, DecodeError> {
        Ok(Some(self.uuid(field)?).filter(|name| !name.is_nil()))
    }

    pub(super) fn uuid(&mut self, field: &'static str) -> Result<Uuid, DecodeError> {
        self.array::<16>(field).map(Uuid::from_bytes)
    }

    pub(super) fn text(
        &mut self,
        field: &'static str,
        bound: usize,
    ) -> Result<String, DecodeError> {
        let len = usize::from(self.u16(field)?);
        if len > bound {
            return Err(DecodeError {
                fault: Fault::TooLong,
                ..self.bad(field, 2)
            });
        }
        let at = self.at;
        let bytes = self.take(field, len)?;
        match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(DecodeError {
                field,
                offset: at,
                fault: Fault::BadValue,
            }),
        }
    }

    pub(super) fn end(&self) -> Result<(), DecodeError> {
        if self.rest.has_remaining() {
            return Err(DecodeError {
                field: "message",
                offset: self.at,
                fault: Fault::Excess,
            });
        }
        Ok(())
    }
}
