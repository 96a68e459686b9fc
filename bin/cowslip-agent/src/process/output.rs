//! The output of one process: the last [`OUTPUT_HELD_BYTES`], and those who follow it.
//!
//! ```text
//!   start                    end
//!     │■■■■■■■■■■■■■■■■■■■■■■■│      held, at most OUTPUT_HELD_BYTES and MAX_PIECES
//!          ▲            ▲
//!       follower     follower        a follower that falls behind makes the process wait,
//!                                    no follower at all makes the oldest output go
//! ```
//!
//! So a process whose client went away never blocks, and one whose client is slow loses nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use cowslip_proto::limits::{CHUNK_BYTES, MAX_FOLLOWERS, OUTPUT_HELD_BYTES};
use cowslip_proto::pb::{self, exec_event::Event};
use tokio::sync::Notify;

/// Most that is read from a process at once.
pub(crate) const READ_BYTES: usize = 8 * 1024;
/// Output is held in pieces; each costs memory beyond its bytes.
const MAX_PIECES: usize = 4096;

#[derive(Debug)]
struct Piece {
    stream: pb::Stream,
    offset: u64,
    data: Vec<u8>,
}

impl Piece {
    fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }
}

#[derive(Debug, Default)]
struct Held {
    pieces: VecDeque<Piece>,
    end: u64,
    exited: Option<pb::Exited>,
    /// What each follower wants next.
    cursors: HashMap<u64, u64>,
    next_follower: u64,
}

impl Held {
    fn start(&self) -> u64 {
        self.pieces.front().map_or(self.end, |p| p.offset)
    }

    fn has_room(&self) -> bool {
        let Some(slowest) = self.cursors.values().min() else {
            return true;
        };
        let behind = self.end.saturating_sub(*slowest);
        let fits = behind + READ_BYTES as u64 <= OUTPUT_HELD_BYTES as u64;
        let first_is_read = self.pieces.front().is_none_or(|p| p.end() <= *slowest);
        fits && (self.pieces.len() < MAX_PIECES || first_is_read)
    }

    fn evict(&mut self) {
        // One read by each of two pumps may be ahead of the check for room.
        let keep = (OUTPUT_HELD_BYTES + 2 * READ_BYTES) as u64;
        while let Some(first) = self.pieces.front() {
            if self.pieces.len() <= MAX_PIECES && first.end() + keep > self.end {
                break;
            }
            self.pieces.pop_front();
        }
    }
}

/// The output of one process.
#[derive(Debug, Default)]
pub(crate) struct Output {
    held: Mutex<Held>,
    more: Notify,
    room: Notify,
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until [`READ_BYTES`] more can be taken in without taking them from a follower.
    pub(crate) async fn room(&self) {
        loop {
            let room = self.room.notified();
            if self.lock().has_room() {
                return;
            }
            room.await;
        }
    }

    /// Takes in output.
    pub(crate) fn append(&self, stream: pb::Stream, data: &[u8]) {
        let mut held = self.lock();
        let offset = held.end;
        held.end += data.len() as u64;
        match held.pieces.back_mut() {
            Some(last) if last.stream == stream && last.data.len() + data.len() <= READ_BYTES => {
                last.data.extend_from_slice(data);
            }
            _ => held.pieces.push_back(Piece {
                stream,
                offset,
                data: data.to_vec(),
            }),
        }
        held.evict();
        drop(held);
        self.more.notify_waiters();
    }

    /// The process has ended and all of its output was taken in.
    pub(crate) fn finish(&self, exited: pb::Exited) {
        self.lock().exited = Some(exited);
        self.more.notify_waiters();
    }

    /// How the process ended, if it has.
    pub(crate) fn exited(&self) -> Option<pb::Exited> {
        self.lock().exited
    }

    /// First and last offset that are held, and the number of followers.
    pub(crate) fn extent(&self) -> (u64, u64, usize) {
        let held = self.lock();
        (held.start(), held.end, held.cursors.len())
    }

    /// Follows from `offset`; `None` when there are too many followers.
    pub(crate) fn follow(self: &Arc<Self>, offset: u64) -> Option<Follower> {
        let mut held = self.lock();
        if held.cursors.len() >= MAX_FOLLOWERS {
            return None;
        }
        let id = held.next_follower;
        held.next_follower += 1;
        // Never beyond the end: nothing is there yet.
        let cursor = offset.min(held.end);
        // What is gone already is reported by the first event, and holds nobody back.
        let wanted = cursor.max(held.start());
        held.cursors.insert(id, wanted);
        drop(held);
        Some(Follower {
            output: self.clone(),
            id,
            cursor,
            done: false,
        })
    }
}

/// One reader of a process's output.
#[derive(Debug)]
pub(crate) struct Follower {
    output: Arc<Output>,
    id: u64,
    cursor: u64,
    done: bool,
}

impl Follower {
    /// The next event; `None` after the exit.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        if self.done {
            return None;
        }
        loop {
            let output = self.output.clone();
            let more = output.more.notified();
            if let Some(event) = self.take() {
                return Some(event);
            }
            more.await;
        }
    }

    fn take(&mut self) -> Option<Event> {
        let mut held = self.output.lock();
        let start = held.start();
        if self.cursor < start {
            let bytes = start - self.cursor;
            self.cursor = start;
            return Some(Event::Skipped(pb::Skipped { bytes }));
        }
        let at = held.pieces.partition_point(|p| p.end() <= self.cursor);
        if let Some(piece) = held.pieces.get(at) {
            let from = usize::try_from(self.cursor - piece.offset).unwrap_or(usize::MAX);
            let mut data = piece.data.get(from..).unwrap_or_default().to_vec();
            let (stream, offset) = (piece.stream, self.cursor);
            // Small pieces of one stream travel together.
            for next in held.pieces.range(at + 1..) {
                if next.stream != stream || data.len() + next.data.len() > CHUNK_BYTES {
                    break;
                }
                data.extend_from_slice(&next.data);
            }
            self.cursor += data.len() as u64;
            held.cursors.insert(self.id, self.cursor);
            drop(held);
            self.output.room.notify_waiters();
            let data = Bytes::from(data);
            return Some(Event::Output(pb::Output {
                stream: stream.into(),
                data,
                offset,
            }));
        }
        let exited = held.exited?;
        self.done = true;
        Some(Event::Exited(exited))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.output.lock().cursors.remove(&self.id);
        self.output.room.notify_waiters();
    }
}
