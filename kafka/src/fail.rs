//! Owns fault injection in both servers: the named points at which a run of `./dev chaos` kills, stops, delays, panics or
//! fails them, and the switches that take one safeguard out, to show that its absence is noticed.
//!
//! Only the cargo feature `failpoints` brings it to life. In every other build a point is `Ok(())`, a safeguard is there,
//! and nothing reads the environment.

/// A fault that was asked for at a point. It is an error like any other to whoever meets it.
#[derive(Debug, thiserror::Error)]
#[error("a fault was injected at {0}")]
pub struct Injected(&'static str);

/// A place where a fault may be asked for: `SLUICE_FAIL_POINTS` holds `point=fault@hit`, separated by semicolons, where a
/// fault is kill, stop, error, panic or `delay:MS`, and is injected once, the given time that the point is passed (from 1).
///
/// # Errors
/// [`Injected`], where the fault is an error.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub const fn point(_name: &'static str) -> Result<(), Injected> {
    Ok(())
}

/// The same for a place that can return no error.
#[inline(always)]
pub fn pass(name: &'static str) {
    // An error is of no use here: the faults that end or hold up the process are.
    drop(point(name));
}

/// Whether a safeguard is in place: `SLUICE_WITHOUT` names those that are not, separated by commas.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub const fn safeguard(_name: &'static str) -> bool {
    true
}

#[cfg(feature = "failpoints")]
pub use armed::{Plan, plan, point, safeguard};

#[cfg(feature = "failpoints")]
mod armed {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};

    use super::Injected;

    static POINTS: LazyLock<Vec<Armed>> = LazyLock::new(|| {
        let text = std::env::var("SLUICE_FAIL_POINTS").unwrap_or_default();
        let armed = text.split(';').filter(|one| !one.is_empty()).map(Armed::parse);
        armed.collect()
    });
    static WITHOUT: LazyLock<Vec<String>> = LazyLock::new(|| {
        let text = std::env::var("SLUICE_WITHOUT").unwrap_or_default();
        text.split(',').map(str::to_owned).collect()
    });

    thread_local! {
        static PLAN: RefCell<Option<Rc<dyn Plan>>> = const { RefCell::new(None) };
    }

    /// What decides about the points and the safeguards of one thread, instead of the environment: a simulation runs many
    /// trials in a process.
    pub trait Plan {
        /// Whether this point fails. Other faults are up to the plan.
        fn fails(&self, point: &'static str) -> bool;
        /// Whether this safeguard is in place.
        fn safeguard(&self, name: &'static str) -> bool;
    }

    /// Has this plan decide about this thread from here on; `None` gives it back to the environment.
    pub fn plan(plan: Option<Rc<dyn Plan>>) {
        PLAN.set(plan);
    }

    fn planned() -> Option<Rc<dyn Plan>> {
        PLAN.with_borrow(Clone::clone)
    }

    /// A fault that waits for its point.
    #[derive(Debug)]
    struct Armed {
        point: String,
        fault: Fault,
        hit: u64,
        hits: AtomicU64,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Fault {
        Kill,
        Stop,
        Error,
        Panic,
        Delay(Duration),
    }

    impl Armed {
        /// Only a mistake in the harness can bring a text that is none, and then nothing it would find is worth anything.
        fn parse(text: &str) -> Self {
            let parsed = || {
                let (point, rest) = text.split_once('=')?;
                let (fault, hit) = rest.split_once('@')?;
                Some(Self {
                    point: point.to_owned(),
                    fault: Fault::parse(fault)?,
                    hit: hit.parse().ok()?,
                    hits: AtomicU64::new(0),
                })
            };
            parsed().unwrap_or_else(|| panic!("SLUICE_FAIL_POINTS: {text:?} is not point=fault@hit"))
        }
    }

    impl Fault {
        fn parse(text: &str) -> Option<Self> {
            Some(match text {
                "kill" => Self::Kill,
                "stop" => Self::Stop,
                "error" => Self::Error,
                "panic" => Self::Panic,
                delay => Self::Delay(Duration::from_millis(delay.strip_prefix("delay:")?.parse().ok()?)),
            })
        }
    }

    /// See the documentation of the build without faults.
    pub fn point(name: &'static str) -> Result<(), Injected> {
        if let Some(plan) = planned() {
            return if plan.fails(name) { Err(Injected(name)) } else { Ok(()) };
        }
        for armed in POINTS.iter().filter(|armed| armed.point == name) {
            if armed.hits.fetch_add(1, Ordering::Relaxed) + 1 == armed.hit {
                tracing::warn!(point = name, fault = ?armed.fault, "fault injected");
                inject(name, armed.fault)?;
            }
        }
        Ok(())
    }

    fn inject(name: &'static str, fault: Fault) -> Result<(), Injected> {
        match fault {
            Fault::Kill => signal(Signal::KILL),
            Fault::Stop => signal(Signal::STOP),
            Fault::Error => return Err(Injected(name)),
            Fault::Panic => panic!("a fault was injected at {name}"),
            Fault::Delay(delay) => {
                #[expect(clippy::disallowed_methods, reason = "the time that passes is the fault")]
                std::thread::sleep(delay);
            }
        }
        Ok(())
    }

    /// To this process itself, which is there.
    fn signal(signal: Signal) {
        if let Err(error) = kill_process(getpid(), signal) {
            tracing::error!(%error, "no signal to this process itself");
        }
    }

    /// See the documentation of the build without faults.
    pub fn safeguard(name: &'static str) -> bool {
        if let Some(plan) = planned() {
            return plan.safeguard(name);
        }
        !WITHOUT.iter().any(|without| without == name)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn faults_are_read_with_the_time_at_which_they_come() {
            let armed = Armed::parse("lane.sent=delay:250@3");
            assert_eq!((armed.point.as_str(), armed.hit), ("lane.sent", 3));
            assert_eq!(armed.fault, Fault::Delay(Duration::from_millis(250)));
            for (text, fault) in [
                ("kill", Fault::Kill),
                ("stop", Fault::Stop),
                ("error", Fault::Error),
                ("panic", Fault::Panic),
            ] {
                assert_eq!(Fault::parse(text), Some(fault));
            }
            assert_eq!(Fault::parse("delay:soon"), None);
        }

        #[test]
        #[should_panic(expected = "not point=fault@hit")]
        fn what_makes_no_sense_ends_the_process() {
            Armed::parse("lane.sent=kill");
        }
    }
}
