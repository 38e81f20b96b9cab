//! Whether a partition really ends where a fetch says so.
//!
//! Whoever has just become a partition's leader gives less away than the leader before it, until the other replicas have told
//! how much they have; asked for the end it answers with an error meanwhile (KIP-207), while a fetch only finds nothing. So
//! an end counts only when the leader is known to have more and still gives nothing: then what is left are no records, but
//! markers of transactions, or what was aborted or deleted.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::{error, fail};

/// Partitions that were said to end before what is wanted of them. Made anew for each reading.
#[derive(Debug, Default)]
pub struct Endings(BTreeMap<i32, Ending>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ending {
    /// The offset that was to be read next.
    next: i64,
    /// Whether the leader has told since that there is more.
    heard: bool,
}

/// What the leaders answered.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Partitions that end before what is wanted of them: nothing more comes.
    pub short: Vec<i32>,
    /// There may be more of others: they are to be read again from where they stand.
    pub more: bool,
}

impl Endings {
    /// Takes in that a fetch found a partition's end where `next` is to be read next. Whether nothing more comes before what is
    /// wanted; otherwise the leader has to be asked.
    pub fn said(&mut self, partition: i32, next: i64) -> bool {
        let before = self.0.insert(partition, Ending { next, heard: false });
        before == Some(Ending { next, heard: true }) || !fail::safeguard("sure-ends")
    }

    /// Asks the leaders of those that were said to end and have not moved since. To be called when nothing comes; whom nobody
    /// answers is asked at the next call. `wanted` tells what of a partition is left to be read, if anything is, and `end` the
    /// offset after the last that can be read.
    pub fn ask(
        &mut self,
        wanted: impl Fn(i32) -> Option<Range<i64>>,
        end: impl Fn(i32) -> Result<i64, error::Consumer>,
    ) -> Asked {
        let mut asked = Asked::default();
        for (partition, ending) in &mut self.0 {
            let Some(left) = wanted(*partition).filter(|left| left.start == ending.next && !ending.heard) else {
                continue;
            };
            match end(*partition) {
                Ok(end) if end < left.end => asked.short.push(*partition),
                Ok(_) => {
                    ending.heard = true;
                    asked.more = true;
                }
                Err(error) => tracing::debug!(partition, %error, "the end is asked for again"),
            }
        }
        asked
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::error::KafkaError;

    use super::*;

    fn ask(endings: &mut Endings, left: Range<i64>, end: Option<i64>) -> Asked {
        let what = "the ends of a partition";
        let cause = KafkaError::Canceled;
        endings.ask(
            |_| Some(left.clone()),
            |_| {
                end.ok_or(error::Consumer::Offsets {
                    what,
                    cause: cause.clone(),
                })
            },
        )
    }

    #[test]
    fn an_end_counts_when_its_leader_is_sure_and_still_gives_nothing() {
        let mut endings = Endings::default();
        assert!(!endings.said(0, 4));
        assert_eq!(
            ask(&mut endings, 4..10, None),
            Asked::default(),
            "the leader is not sure"
        );
        assert!(!endings.said(0, 4), "nor is anybody else");
        let more = Asked {
            short: Vec::new(),
            more: true,
        };
        assert_eq!(ask(&mut endings, 4..10, Some(10)), more);
        assert_eq!(ask(&mut endings, 4..10, Some(10)), Asked::default(), "once is enough");
        assert!(endings.said(0, 4));
    }

    #[test]
    fn an_end_further_on_is_another_one() {
        let mut endings = Endings::default();
        endings.said(0, 4);
        assert_eq!(ask(&mut endings, 6..10, Some(10)), Asked::default(), "more has come");
        assert!(!endings.said(0, 6));
        assert!(ask(&mut endings, 6..10, Some(10)).more);
        assert!(!endings.said(0, 8));
        assert!(ask(&mut endings, 8..10, Some(12)).more);
        assert!(endings.said(0, 8));
    }

    #[test]
    fn a_log_that_is_shorter_than_what_is_wanted_is_told() {
        let mut endings = Endings::default();
        endings.said(3, 4);
        let short = Asked {
            short: vec![3],
            more: false,
        };
        assert_eq!(ask(&mut endings, 4..10, Some(6)), short);
    }
}
