//! What is sent next, and when: the schedule and the source of events, in one place that all workers take from.
//!
//! Comes after schedule and source, before the workers. A worker takes the next arrival and keeps it until it is due;
//! what is due while every worker is busy waits here, and its latency counts from when it was due.

use super::clock::{Clock, NS_PER_US};
use super::schedule::{Cursor, Shape};
use crate::source::{Item, Source};

/// Events that belong together, due at the same moment.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// When they should be sent; for a closed loop, when they were taken.
    pub(crate) intended_ns: u64,
    pub(crate) items: Vec<Item>,
}

/// How far a run goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// So many events.
    pub(crate) events: Option<u64>,
    /// Those due before this moment.
    pub(crate) until_ns: Option<u64>,
}

/// The arrivals of a run.
pub(crate) struct Feed {
    clock: Clock,
    source: Source,
    /// `None` when events are due as soon as somebody can send them, or at the source's own pace.
    cursor: Option<Cursor>,
    extent: Extent,
    taken: u64,
    ended: bool,
    /// The source has no more.
    dry: bool,
}

impl Feed {
    pub(crate) fn new(clock: Clock, source: Source, shape: Option<Shape>, extent: Extent) -> Self {
        Self {
            clock,
            source,
            cursor: shape.map(Cursor::new),
            extent,
            taken: 0,
            ended: false,
            dry: false,
        }
    }

    /// The next arrival, of at most so many events; `None` when there are no more.
    ///
    /// # Errors
    /// When the source cannot be read.
    pub(crate) fn take(&mut self, most: usize) -> anyhow::Result<Option<Arrival>> {
        if self.ended {
            return Ok(None);
        }
        let Some(intended_ns) = self.due_ns()? else {
            self.ended = true;
            return Ok(None);
        };
        if self.extent.until_ns.is_some_and(|until_ns| intended_ns >= until_ns) {
            self.ended = true;
            return Ok(None);
        }
        let left = self.extent.events.map_or(u64::MAX, |events| events - self.taken);
        let mut items = Vec::with_capacity(most);
        while (items.len() as u64) < left.min(most as u64) {
            let wall_micros = self.clock.wall_micros(intended_ns);
            match self.source.next((intended_ns / NS_PER_US) as i64, wall_micros)? {
                Some(item) => items.push(item),
                None => {
                    (self.ended, self.dry) = (true, true);
                    break;
                }
            }
        }
        self.taken += items.len() as u64;
        if items.is_empty() {
            self.ended = true;
            return Ok(None);
        }
        Ok(Some(Arrival { intended_ns, items }))
    }

    fn due_ns(&mut self) -> anyhow::Result<Option<u64>> {
        match &mut self.cursor {
            Some(cursor) => Ok(cursor.due_ns(self.taken)),
            None => Ok(self.source.own_offset_ns()?.or(Some(self.clock.now_ns()))),
        }
    }

    /// Nothing is taken any more.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// Whether there is nothing more to take.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether the source came to its end: nothing else was ever due.
    pub(crate) fn is_dry(&self) -> bool {
        self.dry
    }

    /// Events taken so far.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }
}
