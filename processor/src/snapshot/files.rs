//! Owns snapshots as files: how they are named, written so that no half of one is ever taken for one, and how many are kept.
//!
//! Used by [`super`]. One directory belongs to one process.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Snapshots kept of each partition: the newest, and one to fall back on.
const KEPT: usize = 2;
const ENDING: &str = "snapshot";
/// What a file is called while it is being written.
const UNFINISHED: &str = "tmp";

/// A directory of snapshots of one topic.
#[derive(Clone, Debug)]
pub(super) struct Files {
    directory: PathBuf,
    topic: String,
    /// One writes at a time: a lane that ends may write what the thread for it is about to write too.
    writing: Arc<Mutex<()>>,
}

impl Files {
    /// Makes the directory, and clears away what a process that died had not finished.
    pub(super) fn open(directory: &Path, topic: &str) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let files = Self {
            directory: directory.to_owned(),
            topic: topic.to_owned(),
            writing: Arc::default(),
        };
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == UNFINISHED) {
                fs::remove_file(path)?;
            }
        }
        Ok(files)
    }

    /// Writes a snapshot and removes the oldest ones. It is not synced to the disk: a snapshot that a power failure cuts off
    /// is found out by its checksum, and costs a longer replay, while syncing so much would hold up Postgres' own syncs.
    pub(super) fn write(&self, partition: i32, next: i64, bytes: &[u8]) -> io::Result<()> {
        let _writing = self.lock();
        let path = self.path(partition, next);
        let unfinished = path.with_extension(UNFINISHED);
        fs::write(&unfinished, bytes)?;
        fs::rename(&unfinished, &path)?;
        for (_next, old) in self.list(partition)?.into_iter().skip(KEPT) {
            fs::remove_file(old)?;
        }
        Ok(())
    }

    /// Whether a snapshot is there, once what is being written is.
    pub(super) fn hold(&self, partition: i32, next: i64) -> bool {
        let _writing = self.lock();
        self.path(partition, next).exists()
    }

    /// The snapshots of a partition, newest first, with the offsets that they go up to.
    pub(super) fn list(&self, partition: i32) -> io::Result<Vec<(i64, PathBuf)>> {
        let start = self.start(partition);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            if let Some(name) = path.file_stem().and_then(|name| name.to_str())
                && path.extension().is_some_and(|ending| ending == ENDING)
                && let Some(next) = name.strip_prefix(&start).and_then(|next| next.parse().ok())
            {
                found.push((next, path));
            }
        }
        found.sort_unstable_by(|one, other| other.cmp(one));
        Ok(found)
    }

    /// Removes snapshots that end beyond this offset. Nothing is made of what is not committed, so that they are of an
    /// earlier topic of the same name, and would be taken for this one's when it has come so far.
    pub(super) fn forget_after(&self, partition: i32, committed: i64) -> io::Result<()> {
        for (_next, path) in self.list(partition)?.into_iter().filter(|file| file.0 > committed) {
            fs::remove_file(path)?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, partition: i32, next: i64) -> PathBuf {
        self.directory.join(format!("{}{next}.{ENDING}", self.start(partition)))
    }

    /// How the names of a partition's files begin; the offset follows, which has no hyphen.
    fn start(&self, partition: i32) -> String {
        format!("{}-{partition}-", self.topic)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(files: &Files, partition: i32) -> Vec<i64> {
        let list = files.list(partition).expect("lists");
        list.into_iter().map(|(next, _path)| next).collect()
    }

    #[test]
    fn the_newest_two_of_each_partition_are_kept() {
        let directory = std::env::temp_dir().join(format!("sluice-files-{}", uuid::Uuid::new_v4()));
        let files = Files::open(&directory, "payments").expect("opens");
        for next in [9, 10, 11] {
            files.write(1, next, b"one").expect("writes");
        }
        files.write(11, 5, b"eleven").expect("writes");
        fs::write(directory.join("payments-1-12.tmp"), b"half").expect("writes");
        assert_eq!(offsets(&files, 1), [11, 10], "by number, not by name");
        assert_eq!(offsets(&files, 11), [5]);
        assert_eq!(offsets(&files, 2), [0_i64; 0]);
        assert!(files.hold(1, 11) && !files.hold(1, 9) && !files.hold(2, 11));
        files.forget_after(11, 4).expect("removes");
        assert_eq!(offsets(&files, 11), [0_i64; 0]);
        files.forget_after(1, 11).expect("removes nothing");
        let files = Files::open(&directory, "payments").expect("opens again");
        assert_eq!(offsets(&files, 1), [11, 10]);
        assert!(!directory.join("payments-1-12.tmp").exists());
        fs::remove_dir_all(directory).expect("removes");
    }
}
