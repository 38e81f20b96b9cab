//! Owns snapshots of the state: when the lanes have one made, the thread that writes them to disk and to Kafka, and which
//! one a takeover restores.
//!
//! [`crate::lane`] offers an image between two batches; [`crate::takeover`] asks for the newest one that is not ahead of
//! the committed offset. A snapshot saves replay and nothing else: whatever is wrong with one, the next older is tried, and
//! at last the records are read again. So writing them is never waited for, and a failure is logged and no more.

mod files;
mod log;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use sluice_kafka::{Config, Topics, error};

use crate::metrics::Metrics;
use crate::replay::Replayed;
use crate::rule_archive;
use crate::rules::RuleSet;
use crate::state::State;
use crate::state::image::{self, Image, Origin};

use files::Files;
use log::{Reader, Writer};

/// Images that wait to be written; a lane whose image finds no room keeps its state to itself for now.
const WAITING_IMAGES: usize = 1;
/// Slots that take turns in the topic.
const SLOTS: u8 = 2;

/// Why a snapshot could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory.
    #[error("a file of a snapshot: {0}")]
    File(#[from] io::Error),
    /// Writing to Kafka.
    #[error(transparent)]
    Producer(#[from] error::Producer),
    /// Reading from Kafka.
    #[error(transparent)]
    Consumer(#[from] error::Consumer),
    /// What was read is of no use.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// It ends elsewhere than its name says.
    #[error("it ends at offset {0}, which is not between the log's beginning and the committed offset")]
    Offset(i64),
}

/// How snapshots are kept.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Where they are kept besides the topic.
    pub(crate) directory: Option<PathBuf>,
    /// How often one is made of each partition.
    pub(crate) interval: Duration,
    /// The allowed lateness that all states have.
    pub(crate) lateness_us: i64,
}

/// Snapshots of all partitions of a topic, for all lanes of the process.
pub(crate) struct Snapshots {
    interval: Duration,
    lateness_us: i64,
    cluster: String,
    topics: Topics,
    files: Option<Files>,
    kafka: Config,
    writer: SyncSender<Image>,
    metrics: Metrics,
}

/// When the next snapshot of a partition is due, and the last one that was handed over: nothing at offset 0, where there is
/// no state.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Due {
    at: Instant,
    next: i64,
    bytes: usize,
}

impl Due {
    /// The first one of a partition, at this time.
    pub(crate) const fn first(at: Instant) -> Self {
        Self { at, next: 0, bytes: 0 }
    }
}

impl Snapshots {
    /// Makes the directory, and starts the thread that writes. It ends when this is dropped.
    pub(crate) fn start(
        options: &Options,
        kafka: &Config,
        topics: &Topics,
        cluster: String,
        metrics: &Metrics,
    ) -> Result<Self, Error> {
        let open = |directory: &PathBuf| Files::open(directory, &topics.payments);
        let files = options.directory.as_ref().map(open).transpose()?;
        let producer = Writer::new(kafka, &topics.snapshots)?;
        let (writer, images) = sync_channel(WAITING_IMAGES);
        let (to_write, thread_metrics) = (files.clone(), metrics.clone());
        thread::Builder::new()
            .name("snapshots".to_owned())
            .spawn(move || write_all(&images, to_write.as_ref(), &producer, &thread_metrics))?;
        Ok(Self {
            interval: options.interval,
            lateness_us: options.lateness_us,
            cluster,
            topics: topics.clone(),
            files,
            kafka: kafka.clone(),
            writer,
            metrics: metrics.clone(),
        })
    }

    /// The first snapshot of a partition that was just taken over: also where no record follows, because a replay is worth
    /// keeping. Partitions take turns, so that no two are due at once.
    pub(crate) fn due(&self, partition: i32, partitions: usize) -> Due {
        let turn = f64::from(partition).rem_euclid(partitions.max(1) as f64) / partitions.max(1) as f64;
        Due::first(Instant::now() + self.interval.mul_f64(0.5 + turn / 2.0))
    }

    /// Makes an image of the state and hands it over, if it is time. `next` is the offset after the last merged record. The
    /// lane waits while the state is copied, and for nothing else.
    pub(crate) fn offer(&self, due: &mut Due, partition: i32, next: i64, state: &State) {
        let now = Instant::now();
        if now < due.at || next == due.next {
            return;
        }
        due.at = now + self.interval;
        match state.image(self.origin(partition), next, due.bytes) {
            Ok(image) => {
                due.bytes = image.len() + image.len() / 8;
                if self.writer.try_send(image).is_ok() {
                    due.next = next;
                } else {
                    tracing::debug!(partition, next, "no snapshot: the one before is still being written");
                }
            }
            Err(error) => tracing::warn!(partition, next, %error, "no snapshot"),
        }
        self.metrics.snapshot_pause(now.elapsed());
    }

    /// Leaves a last snapshot in the directory, for the process that comes next. One of the same state that was handed over
    /// counts only when it is there: the process ends without waiting for it.
    pub(crate) fn leave(&self, due: &Due, partition: i32, next: i64, state: &State) {
        let Some(files) = &self.files else { return };
        if next == due.next && (next == 0 || files.hold(partition, next)) {
            return;
        }
        let left = state
            .image(self.origin(partition), next, due.bytes)
            .map_err(Error::from)
            .and_then(|image| Ok(files.write(partition, next, &image.seal())?));
        match left {
            Ok(()) => self.metrics.snapshot_written("directory"),
            Err(error) => tracing::warn!(partition, next, %error, "no last snapshot"),
        }
    }

    /// A way to the snapshots for one takeover.
    pub(crate) fn restorer(&self) -> Restorer<'_> {
        Restorer {
            snapshots: self,
            consumer: None,
        }
    }

    fn found_files(&self, partition: i32, committed: i64) -> Vec<(i64, Place)> {
        let Some(files) = &self.files else {
            return Vec::new();
        };
        let found = files
            .forget_after(partition, committed)
            .and_then(|()| files.list(partition));
        match found {
            Ok(list) => list.into_iter().map(|(next, path)| (next, Place::File(path))).collect(),
            Err(error) => {
                tracing::warn!(partition, %error, "the directory of snapshots cannot be read");
                Vec::new()
            }
        }
    }

    fn origin(&self, partition: i32) -> Origin {
        Origin {
            cluster: self.cluster.clone(),
            topic: self.topics.payments.clone(),
            partition,
        }
    }
}

/// Restores states. It connects to Kafka once, and only when it is asked for something.
pub(crate) struct Restorer<'s> {
    snapshots: &'s Snapshots,
    consumer: Option<log::Consumer>,
}

impl Restorer<'_> {
    /// The newest usable state that ends within these offsets, if there is any.
    pub(crate) fn restore(
        &mut self,
        partition: i32,
        low: i64,
        committed: i64,
        rules_at: impl Fn(i64) -> Result<Arc<RuleSet>, rule_archive::Error>,
    ) -> Option<Replayed> {
        let started = Instant::now();
        let snapshots = self.snapshots;
        let mut found = snapshots.found_files(partition, committed);
        let reader = self.reader(partition);
        let reader = match reader.and_then(|mut reader| Ok((older(&mut reader, committed)?, reader))) {
            Ok((log, reader)) => {
                found.extend(log);
                Some(reader)
            }
            Err(error) => {
                tracing::warn!(partition, %error, "the topic of snapshots cannot be read");
                None
            }
        };
        // The newest first, and of equal ones the file.
        found.sort_by_key(|(next, place)| (Reverse(*next), matches!(place, Place::Log(_))));
        let origin = snapshots.origin(partition);
        let within = low..=committed;
        for (next, place) in found.into_iter().filter(|(next, _place)| *next >= low) {
            let image = place.read(reader.as_ref());
            let told = |next| {
                rules_at(next)
                    .inspect_err(|error| tracing::warn!(partition, %error, "the topic of rule sets cannot be read"))
                    .ok()
            };
            match image.and_then(|image| restored(&image, &origin, snapshots.lateness_us, &within, told)) {
                Ok(replayed) => {
                    let (next, from) = (replayed.next, place.name());
                    let took_ms = started.elapsed().as_millis() as u64;
                    tracing::info!(partition, next, from, took_ms, "restored a snapshot");
                    snapshots.metrics.restored(from);
                    return Some(replayed);
                }
                Err(error) => {
                    tracing::warn!(partition, next, from = place.name(), %error, "a snapshot cannot be used");
                    snapshots.metrics.snapshot_rejected();
                }
            }
        }
        None
    }

    fn reader(&mut self, partition: i32) -> Result<Reader<'_>, error::Consumer> {
        let consumer = match &mut self.consumer {
            Some(consumer) => consumer,
            none => none.insert(log::consumer(&self.snapshots.kafka)?),
        };
        Reader::open(consumer, &self.snapshots.topics.snapshots, partition)
    }
}

/// The state of an image that ends within these offsets, whatever the name says that it was found under.
fn restored(
    image: &[u8],
    origin: &Origin,
    lateness_us: i64,
    within: &RangeInclusive<i64>,
    rules_at: impl FnOnce(i64) -> Option<Arc<RuleSet>>,
) -> Result<Replayed, Error> {
    let (state, next) = State::from_image(image, origin, lateness_us, rules_at)?;
    if within.contains(&next) {
        Ok(Replayed { state, next })
    } else {
        Err(Error::Offset(next))
    }
}

/// The snapshots in the topic that end at or before the committed offset. One that ends later than another that was
/// written after it is of an earlier topic of the same name.
fn older(reader: &mut Reader<'_>, committed: i64) -> Result<Vec<(i64, Place)>, error::Consumer> {
    let mut all: Vec<(i64, Place)> = Vec::new();
    let mut latest = i64::MAX;
    while let Some(found) = reader.step_back()? {
        if found.next > latest {
            break;
        }
        latest = found.next;
        if found.next <= committed {
            all.push((found.next, Place::Log(found)));
        }
    }
    Ok(all)
}

/// Where a snapshot was found.
enum Place {
    File(PathBuf),
    Log(log::Found),
}

impl Place {
    fn name(&self) -> &'static str {
        match self {
            Self::File(_) => "directory",
            Self::Log(_) => "topic",
        }
    }

    fn read(&self, reader: Option<&Reader<'_>>) -> Result<Vec<u8>, Error> {
        match (self, reader) {
            (Self::File(path), _) => Ok(fs::read(path)?),
            (Self::Log(found), Some(reader)) => Ok(reader.read(found)?),
            (Self::Log(_), None) => Ok(Vec::new()),
        }
    }
}

/// The thread that writes: each image to the directory, and then to Kafka.
fn write_all(images: &Receiver<Image>, files: Option<&Files>, writer: &Writer, metrics: &Metrics) {
    let mut slots = BTreeMap::new();
    for image in images {
        let (partition, next) = (image.partition, image.next);
        let started = Instant::now();
        let bytes = image.seal();
        if let Some(files) = files {
            match files.write(partition, next, &bytes) {
                Ok(()) => metrics.snapshot_written("directory"),
                Err(error) => tracing::warn!(partition, next, %error, "no snapshot in the directory"),
            }
        }
        let slot = slots.entry(partition).or_insert(0_u8);
        match writer.write(partition, next, *slot, &bytes) {
            Ok(()) => {
                // A failed one is written over, so that the whole one before it stays.
                *slot = (*slot + 1) % SLOTS;
                metrics.snapshot_written("topic");
            }
            Err(error) => tracing::warn!(partition, next, %error, "no snapshot in the topic"),
        }
        let took_ms = started.elapsed().as_millis() as u64;
        tracing::debug!(partition, next, bytes = bytes.len(), took_ms, "snapshot");
    }
}

#[cfg(test)]
mod tests;
