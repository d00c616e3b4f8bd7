//! Values to bytes and back: little-endian, one after another, without gaps.
//!
//! What is written has one form only: a byte that says yes or no is 1 or 0, a count comes before what it counts.
//! So what was read is written again alike. Total, and bounded: what is read takes memory in
//! proportion to the bytes that are there, whatever a count claims. Specified in `docs/vm-snapshot.md`.

use super::error::{DecodeError, Fault};

/// Bytes that are read, and how far.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    /// Offset of `rest` in the whole.
    at: u64,
    field: &'static str,
}

impl<'a> Reader<'a> {
    /// Read `bytes`, which begin at `at` of the whole.
    pub(super) fn new(bytes: &'a [u8], at: u64) -> Self {
        Self {
            rest: bytes,
            at,
            field: "",
        }
    }

    /// An error about what was read last.
    pub(super) fn fault(&self, fault: Fault) -> DecodeError {
        DecodeError::new(self.at, self.field, fault)
    }

    /// An error about a value that cannot be.
    pub(super) fn wrong(&self, why: &'static str) -> DecodeError {
        self.fault(Fault::Value(why))
    }

    /// The next `count` bytes.
    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let Some((bytes, rest)) = self.rest.split_at_checked(count) else {
            return Err(self.fault(Fault::Cut));
        };
        self.rest = rest;
        self.at = self.at.saturating_add(count as u64);
        Ok(bytes)
    }

    /// The next value.
    pub(super) fn take<T: Encoded>(&mut self) -> Result<T, DecodeError> {
        T::take(self)
    }

    /// The next value, which is of this field.
    pub(super) fn field<T: Encoded>(&mut self, name: &'static str) -> Result<T, DecodeError> {
        self.field = name;
        let value = T::take(self)?;
        self.field = name;
        Ok(value)
    }

    /// Offset in the whole of what is read next.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// How many bytes are left.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    /// Nothing may be left.
    pub(super) fn end(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(self.fault(Fault::Trailing))
    }
}

/// A value that has bytes.
pub(super) trait Encoded: Sized {
    /// Append its bytes.
    fn put(&self, to: &mut Vec<u8>);
    /// Read it.
    fn take(from: &mut Reader<'_>) -> Result<Self, DecodeError>;
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Encoded for $number {
            fn put(&self, to: &mut Vec<u8>) {
                to.extend(self.to_le_bytes());
            }

            fn take(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
                let bytes = from.bytes(size_of::<Self>())?;
                let bytes = bytes.try_into().map_err(|_| from.fault(Fault::Cut))?;
                Ok(Self::from_le_bytes(bytes))
            }
        }
    )*};
}

numbers!(u8, u16, u32, u64, i64);

impl Encoded for bool {
    fn put(&self, to: &mut Vec<u8>) {
        to.push(u8::from(*self));
    }

    fn take(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match from.take::<u8>()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(from.wrong("neither 0 nor 1")),
        }
    }
}

impl<T: Encoded> Encoded for Option<T> {
    fn put(&self, to: &mut Vec<u8>) {
        self.is_some().put(to);
        if let Some(value) = self {
            value.put(to);
        }
    }

    fn take(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        if from.take()? {
            from.take().map(Some)
        } else {
            Ok(None)
        }
    }
}

impl<T: Encoded, const N: usize> Encoded for [T; N] {
    fn put(&self, to: &mut Vec<u8>) {
        for value in self {
            value.put(to);
        }
    }

    fn take(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let values: Result<Vec<T>, _> = (0..N).map(|_| from.take()).collect();
        values?.try_into().map_err(|_| from.fault(Fault::Cut))
    }
}

impl<T: Encoded> Encoded for Vec<T> {
    fn put(&self, to: &mut Vec<u8>) {
        (self.len() as u32).put(to);
        for value in self {
            value.put(to);
        }
    }

    fn take(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let count = from.take::<u32>()?;
        // Each value is at least a byte.
        if usize::try_from(count).map_or(true, |count| count > from.left()) {
            return Err(from.fault(Fault::Cut));
        }
        (0..count).map(|_| from.take()).collect()
    }
}

impl Encoded for String {
    fn put(&self, to: &mut Vec<u8>) {
        (self.len() as u32).put(to);
        to.extend(self.as_bytes());
    }

    fn take(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let bytes = from.take::<Vec<u8>>()?;
        Self::from_utf8(bytes).map_err(|_| from.wrong("not UTF-8"))
    }
}

/// A structure whose fields are written in the order in which they stand here.
macro_rules! layout {
    ($(
        $(#[$about:meta])*
        pub struct $name:ident {
            $($(#[$about_field:meta])* pub $field:ident: $kind:ty,)*
        }
    )*) => {$(
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            $($(#[$about_field])* pub $field: $kind,)*
        }

        impl $crate::snapshot::bytes::Encoded for $name {
            fn put(&self, to: &mut Vec<u8>) {
                $($crate::snapshot::bytes::Encoded::put(&self.$field, to);)*
            }

            fn take(
                from: &mut $crate::snapshot::bytes::Reader<'_>,
            ) -> Result<Self, $crate::snapshot::error::DecodeError> {
                Ok(Self { $($field: from.field(stringify!($field))?,)* })
            }
        }
    )*};
}

pub(super) use layout;
