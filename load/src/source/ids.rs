//! Event ids that carry a number: UUIDs of version 7 whose random part is a mark of the run and the event's number.

use uuid::Uuid;

const MARK_BYTES: usize = 5;
/// Where the mark begins, after 48 bits of time; the version and the variant are in it.
const MARK: usize = 6;
const NUMBER: usize = MARK + MARK_BYTES;

/// The ids of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ids {
    mark: [u8; MARK_BYTES],
}

impl Ids {
    /// A run's own mark.
    pub(crate) fn random() -> Self {
        let mut mark = [0; MARK_BYTES];
        fastrand::fill(&mut mark);
        // The bits of the version and of the variant.
        mark[0] = 0x70 | (mark[0] & 0x0f);
        mark[2] = 0x80 | (mark[2] & 0x3f);
        Self { mark }
    }

    /// The id of an event, as text.
    pub(crate) fn id(self, number: u64, wall_micros: i64) -> String {
        let mut random = [0; 10];
        random[..MARK_BYTES].copy_from_slice(&self.mark);
        random[MARK_BYTES..].copy_from_slice(&number.to_be_bytes()[3..]);
        let millis = (wall_micros / 1_000) as u64;
        uuid::Builder::from_unix_timestamp_millis(millis, &random)
            .into_uuid()
            .to_string()
    }

    /// The number in an id of this run.
    pub(crate) fn number(self, id: &str) -> Option<u64> {
        let bytes = Uuid::try_parse(id).ok()?.into_bytes();
        if bytes[MARK..NUMBER] != self.mark {
            return None;
        }
        let mut number = [0; 8];
        number[3..].copy_from_slice(&bytes[NUMBER..]);
        Some(u64::from_be_bytes(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_comes_back_from_this_runs_ids_only() {
        let (ours, others) = (Ids::random(), Ids::random());
        for number in [0, 1, 4_096, (1 << 40) - 1] {
            let id = ours.id(number, 1_700_000_000_123_000);
            assert_eq!(Uuid::parse_str(&id).unwrap().get_version_num(), 7);
            assert_eq!(ours.number(&id), Some(number));
            assert_eq!(others.number(&id), None);
        }
    }
}
