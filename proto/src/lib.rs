//! The contract of Sluice: what travels on gRPC, what is stored in Kafka, and every bound that both sides keep.
//!
//! An event passes through here twice. At the edge the gateway turns `pb::Event` into a checked [`event::Payment`] (or
//! one of its siblings) and [`avro`] into the bytes of a record; the processor reads the same bytes back, checks them
//! again, because anybody may write to a topic, and answers with a [`decision::Decision`].

pub mod avro;
pub mod bounds;
pub mod decision;
pub mod error_code;
pub mod event;
pub mod features;
pub mod headers;
pub mod money;
pub mod settlement;
pub mod shape;
pub mod topics;
pub mod validate;
pub mod wire;

pub use generated::google::r#type as google_type;
pub use generated::sluice::v1 as pb;

/// The compiled contract as an encoded `FileDescriptorSet`, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("sluice");

/// The generated messages, clients and servers, nested as their packages are.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated code")]
mod generated {
    pub mod google {
        pub mod r#type {
            tonic::include_proto!("google.r#type");
        }
    }
    pub mod sluice {
        pub mod v1 {
            tonic::include_proto!("sluice.v1");
        }
    }
}
