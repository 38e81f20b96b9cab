//! Owns where a subscription begins: from what the client asks for to an offset in every partition.
//!
//! Comes before `subscribe`'s first look into the rings.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::Consumer as _;
use rdkafka::{Offset, TopicPartitionList};
use sluice_kafka::error;
use sluice_proto::pb::ErrorCode;
use sluice_proto::pb::subscribe_open::Start;

use super::consume::Polled;
use super::{Shared, Source, cursor};
use crate::status::Failure;

/// How long asking Kafka for offsets may take.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks Kafka for offsets; shared by all subscriptions.
pub struct Lookup {
    source: Source,
    consumer: Polled,
}

impl Lookup {
    /// Connects in the background.
    ///
    /// # Errors
    /// [`error::Consumer::Create`].
    pub fn new(source: Source) -> Result<Self, error::Consumer> {
        let consumer = source.consumer(&[])?;
        Ok(Self { source, consumer })
    }

    /// First and end offset of every partition. Blocks.
    ///
    /// # Errors
    /// [`error::Consumer::Offsets`].
    pub fn watermarks(&self) -> Result<Vec<(i64, i64)>, error::Consumer> {
        self.source.watermarks(&self.consumer, LOOKUP_TIMEOUT)
    }

    /// The first decision of each partition that was written at this time (milliseconds since the Unix epoch) or later.
    fn since(&self, millis: i64) -> Result<Vec<i64>, error::Consumer> {
        let failed = |cause| error::Consumer::Offsets {
            what: "offsets of a time",
            cause,
        };
        let mut times = TopicPartitionList::with_capacity(self.source.partitions);
        for partition in 0..i32::try_from(self.source.partitions).unwrap_or(i32::MAX) {
            times
                .add_partition_offset(&self.source.topic, partition, Offset::Offset(millis))
                .map_err(failed)?;
        }
        let found = self.consumer.offsets_for_times(times, LOOKUP_TIMEOUT).map_err(failed)?;
        // Where nothing was written since, the partition's end.
        let ends = self.watermarks()?;
        let next = (0..).zip(ends).map(|(partition, (_, end))| {
            let element = found.find_partition(&self.source.topic, partition);
            match element.map(|element| element.offset()) {
                Some(Offset::Offset(offset)) => offset,
                _ => end,
            }
        });
        Ok(next.collect())
    }
}

/// Finds the offsets to begin at.
///
/// # Errors
/// `TOKEN_INVALID` for garbage (INVALID_ARGUMENT) and for positions that the log does not have (OUT_OF_RANGE),
/// `REQUEST_INVALID`, `BROKER_UNAVAILABLE`.
pub async fn resolve(shared: &Arc<Shared>, start: Option<Start>) -> Result<Vec<i64>, Failure> {
    let router = &shared.router;
    match start {
        None | Some(Start::Latest(_)) => Ok(router.ends()),
        Some(Start::Token(token)) => {
            let next = cursor::read(&token, router.partitions())?;
            let within = |(next, (start, end)): (&i64, (i64, i64))| (start..=end).contains(next);
            if next
                .iter()
                .zip(router.starts().into_iter().zip(router.ends()))
                .all(within)
            {
                return Ok(next);
            }
            let watermarks = lookup(shared, Lookup::watermarks).await?;
            in_log(&next, &watermarks)?;
            Ok(next)
        }
        Some(Start::Earliest(_)) => {
            let watermarks = lookup(shared, Lookup::watermarks).await?;
            Ok(watermarks.into_iter().map(|(first, _)| first).collect())
        }
        Some(Start::Since(since)) => {
            let millis = since
                .seconds
                .checked_mul(1_000)
                .and_then(|millis| millis.checked_add(i64::from(since.nanos) / 1_000_000))
                .filter(|millis| *millis >= 0)
                .ok_or_else(|| {
                    let remedy = "send a time after 1970";
                    Failure::new(ErrorCode::RequestInvalid, "is out of range", remedy).field("open.since")
                })?;
            lookup(shared, move |lookup| lookup.since(millis)).await
        }
    }
}

async fn lookup<T: Send + 'static>(
    shared: &Arc<Shared>,
    ask: impl FnOnce(&Lookup) -> Result<T, error::Consumer> + Send + 'static,
) -> Result<T, Failure> {
    let lookup = shared.lookup.clone();
    let answer = tokio::task::spawn_blocking(move || ask(&lookup)).await;
    match answer {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            tracing::warn!(%error, "a subscription's start cannot be found");
            Err(unavailable())
        }
        Err(error) => {
            tracing::error!(%error, "the search for a subscription's start was lost");
            Err(unavailable())
        }
    }
}

/// Kafka does not answer a subscription.
pub(super) fn unavailable() -> Failure {
    Failure::new(
        ErrorCode::BrokerUnavailable,
        "kafka does not answer",
        "subscribe again with the newest token",
    )
}

/// The log has lost a subscription's position.
pub(super) fn expired() -> Failure {
    Failure::new(
        ErrorCode::TokenInvalid,
        "lies before the oldest decision that is stored",
        "subscribe from earliest, and fetch what is missing elsewhere",
    )
    .field("open.token")
    .out_of_range()
}

/// Checks that the log has the positions.
fn in_log(next: &[i64], watermarks: &[(i64, i64)]) -> Result<(), Failure> {
    for (partition, (next, (first, end))) in next.iter().zip(watermarks).enumerate() {
        if next < first {
            return Err(expired().fact("partition", partition).fact("earliest", first));
        }
        if next > end {
            return Err(Failure::new(
                ErrorCode::TokenInvalid,
                "lies behind the newest decision",
                "send a token of this installation, or choose another start",
            )
            .field("open.token")
            .out_of_range()
            .fact("partition", partition));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_must_be_in_the_log() {
        let log = [(5, 10), (0, 0)];
        assert_eq!(in_log(&[5, 0], &log), Ok(()));
        assert_eq!(in_log(&[10, 0], &log), Ok(()));
        assert!(in_log(&[4, 0], &log).is_err());
        assert!(in_log(&[7, 1], &log).is_err());
    }
}
