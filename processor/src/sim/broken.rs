//! Owns the builds that are broken on purpose: which safeguard is left out, and that trials notice.

use std::fmt::Write as _;

use super::{Options, run};

/// Safeguards that are left out, what that means, and the invariants of which one has to be violated then.
struct Broken {
    without: &'static [&'static str],
    what: &'static str,
    invariants: &'static [&'static str],
}

/// Trials within which the absence of a safeguard has to be noticed.
const NOTICED_WITHIN: u64 = 20_000;

const ALL: [Broken; 15] = [
    Broken {
        without: &["compensation"],
        what: "a takeover removes no prepared rows",
        invariants: &["0", "1", "3"],
    },
    Broken {
        without: &["fencing"],
        what: "Postgres takes rows of any epoch",
        invariants: &["0", "1", "3"],
    },
    Broken {
        without: &["epoch"],
        what: "a takeover does not count the epoch up",
        invariants: &["0", "1", "3"],
    },
    Broken {
        without: &["offsets-last"],
        what: "offsets are committed before anything is decided",
        invariants: &["1"],
    },
    Broken {
        without: &["undo"],
        what: "the state keeps what it learnt from a batch that failed",
        invariants: &["1", "4"],
    },
    Broken {
        without: &["watermark"],
        what: "the ledger is never told what has committed",
        invariants: &["0", "3"],
    },
    Broken {
        without: &["watermark-last"],
        what: "the ledger is told of a batch before it has committed",
        invariants: &["3"],
    },
    Broken {
        without: &["deduplication"],
        what: "repetitions count as payments",
        invariants: &["1", "4"],
    },
    Broken {
        without: &["stable-offsets"],
        what: "a takeover does not wait for the offsets of open transactions",
        invariants: &["1", "3"],
    },
    Broken {
        without: &["generation"],
        what: "the group takes offsets of any generation",
        invariants: &["1", "2", "3"],
    },
    Broken {
        without: &["refill"],
        what: "a takeover does not fill in what Postgres lost",
        invariants: &["3"],
    },
    Broken {
        without: &["sure-ends"],
        what: "the end that a fetch finds counts, whoever leads the partition",
        invariants: &["1", "3", "4"],
    },
    Broken {
        without: &["confirm"],
        what: "a lane without payments does not look whether Postgres lost what it wrote",
        invariants: &["0", "3"],
    },
    Broken {
        without: &["doubt"],
        what: "a producer is used on after a request to end a transaction may have been sent twice",
        invariants: &["1", "2", "3"],
    },
    Broken {
        without: &["doubt", "high-watermark"],
        what: "the same, and subscribers see decisions whose source offset is not above the highest",
        invariants: &["2"],
    },
];

/// Runs trials without each safeguard until one notices. Gives a line for each, and whether all were noticed.
pub fn show(seed: u64) -> (String, bool) {
    let (mut told, mut all) = (String::new(), true);
    for Broken {
        without,
        what,
        invariants,
    } in &ALL
    {
        let caught = (seed..seed + NOTICED_WITHIN).find_map(|seed| {
            let trial = run(Options {
                seed,
                trials: 1,
                without,
            });
            let (seed, violations) = trial.failures.into_iter().next()?;
            let by = violations
                .into_iter()
                .find(|it| invariants.iter().any(|number| it.starts_with(number)))?;
            Some((seed, by))
        });
        let name = without.join(" and ");
        // Writing to a String cannot fail.
        let _written = match caught {
            Some((seed, by)) => writeln!(told, "without {name} ({what}): seed {seed}: {by}"),
            None => {
                all = false;
                writeln!(told, "without {name} ({what}): NOT NOTICED in {NOTICED_WITHIN} trials")
            }
        };
    }
    (told, all)
}
