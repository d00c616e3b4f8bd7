//! What a worker does without the engine: it looks up, moves the bytes, and leaves.

use vdisk::engine::{Access, Done, Generation, Lookup, Request, RequestId};
use vdisk::units::{FileOffset, GuestOffset};

use super::World;
use super::medium::Pending;

impl World {
    /// What a worker does without the engine; `false` when only the engine can.
    pub(super) fn fast_path(&mut self, id: u64) -> bool {
        let open = &self.open[&id];
        let (worker, request) = (open.worker, open.request);
        let access = match request {
            Request::Read { .. } => Access::Read,
            Request::Write { .. } => Access::Write,
            Request::Flush if !self.map.flush_needs_engine() => {
                let mark = self.storage.begin_flush();
                self.pending.push(Pending::Flush { request: id, mark });
                return true;
            }
            _ => return false,
        };
        let generation = self.workers[worker].enter();
        let Some(parts) = self.look_up(request, access) else {
            self.leave(worker, generation);
            return false;
        };
        for (start, at, len) in &parts {
            let (request, start, at, len) = (id, *start, *at, *len);
            self.pending.push(match access {
                Access::Read => Pending::Read {
                    request,
                    start,
                    at,
                    len,
                },
                Access::Write => Pending::Write {
                    request,
                    start,
                    at,
                    len,
                },
            });
        }
        let open = self.open.get_mut(&id).unwrap();
        if access == Access::Read {
            let mut zeroed = vec![true; open.buffer.len()];
            for (start, _, len) in &parts {
                zeroed[*start as usize..(*start + *len) as usize].fill(false);
            }
            for (byte, zero) in open.buffer.iter_mut().zip(zeroed) {
                if zero {
                    *byte = 0;
                }
            }
        }
        open.fast = Some((generation, parts.len()));
        self.fast_part_ended(id, 0);
        true
    }

    fn look_up(&self, request: Request, access: Access) -> Option<Vec<(u64, FileOffset, u64)>> {
        let (offset, len) = request.range()?;
        let (mut parts, mut done) = (Vec::new(), 0);
        while done < len {
            match self
                .map
                .lookup(GuestOffset(offset + done), len - done, access)
            {
                Lookup::File { at, len } => {
                    parts.push((done, at, len));
                    done += len;
                }
                Lookup::Zero { len } => done += len,
                Lookup::Engine => return None,
            }
        }
        Some(parts)
    }

    fn leave(&mut self, worker: usize, generation: Generation) {
        if self.workers[worker].leave(generation) {
            self.engine.poll();
        }
    }

    pub(super) fn fast_part_ended(&mut self, id: u64, ended: usize) {
        let open = self.open.get_mut(&id).unwrap();
        let Some((generation, left)) = &mut open.fast else {
            return;
        };
        *left -= ended;
        if *left != 0 {
            return;
        }
        let (worker, generation) = (open.worker, *generation);
        self.leave(worker, generation);
        if let Some(error) = self.open.get_mut(&id).unwrap().error.take() {
            return self.ended(id, Err(error));
        }
        if self.map.failed() && self.open[&id].request.durable() {
            return self.ended(id, Err("a flush failed".into()));
        }
        let fua = matches!(self.open[&id].request, Request::Write { fua: true, .. });
        if !fua {
            self.ended(id, Ok(Done::Done));
        } else if self.map.flush_needs_engine() {
            // The write is in place: as a worker does, let the engine flush under a name of its own.
            self.engine.submit(RequestId(id), Request::Flush);
        } else {
            let mark = self.storage.begin_flush();
            self.pending.push(Pending::Flush { request: id, mark });
        }
    }
}
