//! Messages whose Rust form differs from the generated one.
//!
//! In protobuf an embedded message and a byte string look the same on the wire. A batch therefore keeps its events as
//! bytes: the gateway decodes them one by one, so that one unreadable event is one error and not the end of the stream,
//! and a client encodes an event once and can send the same bytes again after a lost connection.

use bytes::Bytes;

/// `sluice.v1.EventBatch` with its events still encoded.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EventBatch {
    /// Sequence number of the first event; each following event has the next one.
    #[prost(uint64, tag = "1")]
    pub first_sequence: u64,
    /// Encoded `sluice.v1.Event` messages.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub events: Vec<Bytes>,
}
