//! Owns where a subscription begins: from what the client asks for to an offset in every partition.
//!
//! Comes before `subscribe`'s first look into the rings.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rdkafka::consumer::Consumer as _;
use rdkafka::{Offset, TopicPartitionList};
use sluice_kafka::error;
use sluice_proto::pb::subscribe_open::Start;
use sluice_proto::pb::{ErrorCode, ExpiredPosition};

use super::consume::Polled;
use super::cursor::Cursor;
use super::{Shared, Source};
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

/// What a subscription asks for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Where to begin.
    pub start: Option<Start>,
    /// What to do where the log has lost that position.
    pub on_expired: ExpiredPosition,
}

/// Where a subscription begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begin {
    /// The position.
    pub cursor: Cursor,
    /// The log had lost the position that was asked for.
    pub fell_back: bool,
}

/// Finds the position to begin at: the cursor's stored one, unless a token is given; else what was asked for.
///
/// # Errors
/// `TOKEN_INVALID` for garbage (INVALID_ARGUMENT) and for positions that the log does not have (OUT_OF_RANGE),
/// `REQUEST_INVALID`, `BROKER_UNAVAILABLE`.
pub async fn resolve(shared: &Arc<Shared>, asked: Asked, stored: Option<Cursor>) -> Result<Begin, Failure> {
    let router = &shared.router;
    let fresh = |cursor| Begin {
        cursor,
        fell_back: false,
    };
    let cursor = match (asked.start, stored) {
        (Some(Start::Token(token)), _) => Cursor::read(&token, router.partitions(), "open.token")?,
        (_, Some(stored)) => stored,
        (None | Some(Start::Latest(_)), None) => return Ok(fresh(router.latest())),
        (Some(Start::Earliest(_)), None) => {
            let watermarks = lookup(shared, Lookup::watermarks).await?;
            return Ok(fresh(earliest(&watermarks)));
        }
        (Some(Start::Since(since)), None) => {
            let millis = millis(&since)?;
            let next = lookup(shared, move |lookup| lookup.since(millis)).await?;
            return Ok(fresh(Cursor::new(next)));
        }
    };
    let within = |(next, (start, end)): (&i64, (i64, i64))| (start..=end).contains(next);
    let rings = router.starts().into_iter().zip(router.ends());
    if cursor.next.iter().zip(rings).all(within) {
        return Ok(fresh(cursor));
    }
    let watermarks = lookup(shared, Lookup::watermarks).await?;
    in_log(cursor, &watermarks, asked.on_expired)
}

/// Checks that a position is not behind the newest decision.
///
/// # Errors
/// `TOKEN_INVALID` (OUT_OF_RANGE), `BROKER_UNAVAILABLE`.
pub async fn exists(shared: &Arc<Shared>, cursor: &Cursor) -> Result<(), Failure> {
    if cursor
        .next
        .iter()
        .zip(shared.router.ends())
        .all(|(next, end)| *next <= end)
    {
        return Ok(());
    }
    // Another gateway may be ahead of this one.
    let watermarks = lookup(shared, Lookup::watermarks).await?;
    let beyond = cursor
        .next
        .iter()
        .zip(&watermarks)
        .position(|(next, (_, end))| next > end);
    beyond.map_or(Ok(()), |partition| Err(beyond_end(partition).field("commit.token")))
}

fn millis(since: &prost_types::Timestamp) -> Result<i64, Failure> {
    since
        .seconds
        .checked_mul(1_000)
        .and_then(|millis| millis.checked_add(i64::from(since.nanos) / 1_000_000))
        .filter(|millis| *millis >= 0)
        .ok_or_else(|| {
            let remedy = "send a time after 1970";
            Failure::new(ErrorCode::RequestInvalid, "is out of range", remedy).field("open.since")
        })
}

fn earliest(watermarks: &[(i64, i64)]) -> Cursor {
    Cursor::new(watermarks.iter().map(|(first, _)| *first).collect())
}

/// Asks Kafka, on a thread that may block.
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

/// The log has lost a subscription's position; `watermarks` tell what it has.
pub(super) fn expired(watermarks: &[(i64, i64)]) -> Failure {
    Failure::new(
        ErrorCode::TokenInvalid,
        "lies before the oldest decision that is stored",
        "subscribe from earliest_token or choose on_expired, and fetch what is missing elsewhere",
    )
    .field("open.token")
    .out_of_range()
    .fact("earliest_token", BASE64.encode(earliest(watermarks).token()))
}

fn beyond_end(partition: usize) -> Failure {
    Failure::new(
        ErrorCode::TokenInvalid,
        "lies behind the newest decision",
        "send a token of this installation, or choose another start",
    )
    .field("open.token")
    .out_of_range()
    .fact("partition", partition)
}

/// Moves a position to where the log has it, as the subscription chose.
pub(super) fn in_log(
    mut cursor: Cursor,
    watermarks: &[(i64, i64)],
    on_expired: ExpiredPosition,
) -> Result<Begin, Failure> {
    let mut fell_back = false;
    for (partition, (next, (first, end))) in cursor.next.iter_mut().zip(watermarks).enumerate() {
        if *next > *end {
            return Err(beyond_end(partition));
        }
        if *next >= *first {
            continue;
        }
        fell_back = true;
        *next = match on_expired {
            ExpiredPosition::Unspecified | ExpiredPosition::Refuse => return Err(expired(watermarks)),
            ExpiredPosition::Earliest => *first,
            ExpiredPosition::Latest => *end,
        };
    }
    Ok(Begin { cursor, fell_back })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_must_be_in_the_log() {
        let log = [(5, 10), (0, 0)];
        let at = |next: [i64; 2], choice| in_log(Cursor::new(next.to_vec()), &log, choice);
        let refuse = ExpiredPosition::Unspecified;
        for next in [[5, 0], [10, 0]] {
            let begin = at(next, refuse).expect("in the log");
            assert_eq!((begin.cursor.next, begin.fell_back), (next.to_vec(), false));
        }
        assert!(at([7, 1], ExpiredPosition::Earliest).is_err());
        let refused = at([4, 0], refuse).expect_err("expired");
        let status = tonic::Status::from(refused);
        assert_eq!(status.code(), tonic::Code::OutOfRange);
        let info = tonic_types::StatusExt::get_details_error_info(&status).expect("info");
        let token = BASE64.decode(&info.metadata["earliest_token"]).expect("base64");
        assert_eq!(Cursor::read(&token, 2, "token"), Ok(Cursor::new(vec![5, 0])));
        for (choice, next) in [(ExpiredPosition::Earliest, 5), (ExpiredPosition::Latest, 10)] {
            let begin = at([4, 0], choice).expect("fell back");
            assert_eq!((begin.cursor.next[0], begin.fell_back), (next, true));
        }
    }
}
