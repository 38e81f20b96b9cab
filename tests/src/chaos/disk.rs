//! Disks that are small enough to be filled.
//!
//! Used by the scenarios of [`super::surroundings`] and [`super::cluster_faults`]. Only root can make them.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

/// The size of a small disk: enough for a trial.
const SIZE: &str = "size=64m";
/// What takes the room.
const FILLER: &str = "filler";

/// A disk of its own in memory, which is unmounted when it is dropped.
#[derive(Debug)]
pub struct Disk(PathBuf);

impl Disk {
    /// Mounts one there.
    ///
    /// # Errors
    /// When this is not root.
    pub fn mount(at: &Path) -> Result<Self> {
        std::fs::create_dir_all(at)?;
        let tmpfs = ["-t", "tmpfs", "-o", SIZE, "sluice"].map(AsRef::as_ref);
        run("mount", &[&tmpfs[..], &[at.as_os_str()]].concat())?;
        Ok(Self(at.to_owned()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A trial that failed may still have files open there.
        drop(run("umount", &["--lazy".as_ref(), self.0.as_os_str()]));
    }
}

/// Leaves no room on the disk that is mounted there.
///
/// # Errors
/// When nothing can be written there at all.
pub fn fill(disk: &Path) -> Result<()> {
    let mut file = File::create(disk.join(FILLER))?;
    let block = [0; 4_096];
    while file.write_all(&block).is_ok() {}
    Ok(())
}

/// Gives the room back that [`fill`] took.
///
/// # Errors
/// When it had taken none.
pub fn free(disk: &Path) -> Result<()> {
    Ok(std::fs::remove_file(disk.join(FILLER))?)
}

/// Runs a program to its end.
///
/// # Errors
/// When it fails, with what it said.
pub fn run(program: &str, arguments: &[&OsStr]) -> Result<()> {
    let output = Command::new(program).args(arguments).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?}: {said}");
    Ok(())
}
