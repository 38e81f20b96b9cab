//! Wall clocks that jump: the processors see one that can be set while they run, and the gateways another one.
//!
//! A part of [`super::scenario`]. The servers load `stepped_clock.c` before every other library.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use prost_types::Timestamp;

use super::world::{Part, World};
use crate::servers;
use crate::stack::Stack;

/// The library, as `./dev chaos` builds it.
const LIBRARY: &str = "stepped-clock.so";
const HOUR_S: i64 = 3_600;
const YEAR_S: i64 = 365 * 24 * HOUR_S;
const NANOS_PER_S: i64 = 1_000_000_000;
/// By how far the clocks are ahead in turn. A gateway whose clock is more than fifteen minutes behind refuses what clients
/// send whose clocks are right, and says why.
const STEPS_S: [(Part, i64); 8] = [
    (Part::Processor(0), HOUR_S),
    (Part::Processor(0), -HOUR_S),
    (Part::Processor(0), YEAR_S),
    (Part::Processor(0), -30),
    (Part::Gateway, HOUR_S),
    (Part::Gateway, -HOUR_S / 6),
    (Part::Gateway, 30),
    (Part::Gateway, -30),
];

/// The wall clocks of the servers.
#[derive(Debug)]
pub struct Clocks {
    gateways: File,
    processors: File,
}

impl Clocks {
    /// Clocks that are right, which the servers of this installation see that are started from now on.
    ///
    /// # Errors
    /// When the library is missing.
    pub fn install(stack: &mut Stack) -> Result<Self> {
        let library = servers::faulty_binary(LIBRARY)?.display().to_string();
        stack.set_env("LD_PRELOAD", &library);
        let [gateways, processors] = ["gateways-clock", "processors-clock"].map(|name| stack.directory().join(name));
        stack.set_gateway_env("STEPPED_CLOCK", &gateways.display().to_string());
        stack.set_processor_env("STEPPED_CLOCK", &processors.display().to_string());
        Ok(Self {
            gateways: right(&gateways)?,
            processors: right(&processors)?,
        })
    }

    fn set_ahead(&self, part: Part, seconds: i64) -> Result<()> {
        let file = match part {
            Part::Gateway => &self.gateways,
            Part::Processor(_) => &self.processors,
        };
        Ok(file.write_all_at(&(seconds * NANOS_PER_S).to_ne_bytes(), 0)?)
    }
}

fn right(path: &Path) -> Result<File> {
    std::fs::write(path, 0_i64.to_ne_bytes())?;
    Ok(File::options().write(true).open(path)?)
}

/// The clocks jump ahead and back, and the servers die with a wrong one and start with it.
///
/// # Errors
/// When something does not go on by itself.
pub async fn run(world: &mut World) -> Result<()> {
    let mut steps = STEPS_S;
    world.rng.shuffle(&mut steps);
    let right = [Part::Gateway, Part::Processor(0)].map(|part| (part, 0));
    for (part, seconds) in steps.into_iter().chain(right) {
        let clocks = world.clocks.as_ref().context("the clocks cannot be set")?;
        clocks.set_ahead(part, seconds)?;
        world.note(format!("the clock of {part:?} is {seconds} s ahead"));
        world.recovered(Instant::now()).await?;
        world.kill(part)?;
        let log = world.process(part)?.log().to_owned();
        let before = std::fs::read(&log)?.len();
        let started = shown(seconds);
        world.launch(part, &[])?;
        world.recovered(Instant::now()).await?;
        let written = std::fs::read(&log)?.split_off(before);
        let written = String::from_utf8_lossy(&written);
        // A smaller step leaves the hour as it was.
        if seconds.abs() >= HOUR_S {
            ensure!(
                [started, shown(seconds)].iter().any(|hour| written.contains(hour)),
                "{part:?} does not see that its clock is {seconds} s ahead: {written}"
            );
        }
    }
    Ok(())
}

/// The hour that such a clock shows now, as it stands in a log.
fn shown(seconds: i64) -> String {
    let away = Duration::from_secs(seconds.unsigned_abs());
    let now = SystemTime::now();
    let shown = if seconds < 0 { now - away } else { now + away };
    let mut hour = Timestamp::from(shown).to_string();
    hour.truncate("2026-11-22T08".len());
    hour
}
