//! Which requests an export can carry out, and which errno the others get.
//!
//! Machine: a request's head in, a verdict out; holds nothing but the limits of one attached export.
//! Specified in `doc/proto.md`, "Request types", "Command flags", "Error values" and "Block size
//! constraints".

use super::connection::{ExportInfo, NbdRequest};
use super::reply::ReplyStyle;
use super::wire::{Command, CommandFlags, Errno, RequestHeader, command_flag};

/// The limits that requests are checked against.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    size: u64,
    read_only: bool,
    min_block: u32,
    max_payload: u32,
}

/// What became of a request's head.
pub(super) enum Checked {
    /// The driver carries it out.
    Pass(NbdRequest),
    /// It covers nothing: done.
    Empty(Command),
    /// It is answered with an error.
    Refuse(Errno),
}

impl Limits {
    /// The limits of an export.
    pub(super) fn of(export: &ExportInfo) -> Self {
        Self {
            size: export.size,
            read_only: export.read_only,
            min_block: export.min_block.max(1),
            // A structured read's chunk counts its offset too and must fit 32 bits.
            max_payload: export.max_payload.min(u32::MAX - 8),
        }
    }

    /// The longest read or write, in bytes.
    pub(super) fn max_payload(&self) -> u32 {
        self.max_payload
    }

    /// Check a request by the rules of "Request types" and "Error values".
    pub(super) fn check(&self, header: &RequestHeader, style: ReplyStyle) -> Checked {
        let known = Command::from_wire(header.command)
            .zip(CommandFlags::from_wire(header.flags))
            .filter(|(command, _)| header.flags & !allowed_flags(*command, style) == 0);
        let Some((command, flags)) = known else {
            return Checked::Refuse(Errno::Invalid);
        };
        let mut request = NbdRequest {
            cookie: header.cookie,
            command,
            flags,
            offset: header.offset,
            len: header.len,
        };
        if command == Command::Flush {
            // Both must be zero; other servers ignore them and so do we.
            (request.offset, request.len) = (0, 0);
            return Checked::Pass(request);
        }
        if let Err(errno) = self.check_range(&request, style) {
            return Checked::Refuse(errno);
        }
        match (request.len, command) {
            // A status without an extent does not exist.
            (0, Command::BlockStatus) => Checked::Refuse(Errno::Invalid),
            (0, _) => Checked::Empty(command),
            _ => Checked::Pass(request),
        }
    }

    fn check_range(&self, request: &NbdRequest, style: ReplyStyle) -> Result<(), Errno> {
        if self.read_only && request.command.changes() {
            return Err(Errno::NotPermitted);
        }
        if request.command == Command::BlockStatus && !style.has_allocation() {
            return Err(Errno::Invalid);
        }
        let carries_data = matches!(request.command, Command::Read | Command::Write);
        if carries_data && request.len > self.max_payload {
            return Err(Errno::Invalid);
        }
        let end = request.offset.checked_add(request.len.into());
        if end.is_none_or(|end| end > self.size) {
            return Err(match request.command {
                Command::Write | Command::WriteZeroes => Errno::NoSpace,
                _ => Errno::Invalid,
            });
        }
        let unit = u64::from(self.min_block);
        if !request.offset.is_multiple_of(unit) || !u64::from(request.len).is_multiple_of(unit) {
            return Err(Errno::Invalid);
        }
        Ok(())
    }
}

/// The flags that a command may carry; FUA is legal, and without meaning, on those that do not write.
fn allowed_flags(command: Command, style: ReplyStyle) -> u16 {
    let own = match command {
        Command::Read if style.is_structured() => command_flag::DF,
        Command::WriteZeroes => command_flag::NO_HOLE,
        Command::BlockStatus => command_flag::REQ_ONE,
        Command::Read | Command::Write | Command::Flush | Command::Trim => 0,
    };
    own | command_flag::FUA
}
