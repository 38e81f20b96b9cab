//! Owns which partition a record is taken for, before librdkafka chooses it by the same rule: records of one partition go
//! through `pump` together. A mistake here would cost time and nothing else.

use super::route::TopicId;

/// The partitions of all topics that events go to, numbered through.
pub struct Lanes {
    /// Where each topic's begin, and how many it has.
    topics: Vec<(usize, usize)>,
    count: usize,
}

impl Lanes {
    /// The lanes of topics with so many partitions each, in the order of their ids.
    pub fn new(partitions: &[usize]) -> Self {
        let mut count = 0;
        let topics = partitions.iter().map(|partitions| {
            let first = count;
            let lanes = (*partitions).max(1);
            count += lanes;
            (first, lanes)
        });
        let topics = topics.collect();
        Self { topics, count }
    }

    /// How many there are.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// The lane of a record with this key.
    pub(super) fn of(&self, topic: TopicId, key: &[u8]) -> usize {
        let (first, lanes) = self.topics[topic.index()];
        first + (murmur2(key) & 0x7fff_ffff) as usize % lanes
    }
}

/// Kafka's hash of keys: MurmurHash2 by Austin Appleby, with the seed of `org.apache.kafka.common.utils.Utils`.
fn murmur2(key: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const FACTOR: u32 = 0x5bd1_e995;
    let mut hash = SEED ^ key.len() as u32;
    let (words, rest) = key.as_chunks::<4>();
    for word in words {
        let mut word = u32::from_le_bytes(*word).wrapping_mul(FACTOR);
        word ^= word >> 24;
        hash = hash.wrapping_mul(FACTOR) ^ word.wrapping_mul(FACTOR);
    }
    if !rest.is_empty() {
        for (place, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * place);
        }
        hash = hash.wrapping_mul(FACTOR);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(FACTOR);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_hash_as_in_the_java_client() {
        // From the tests of Kafka's own Utils.
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
        }
    }

    #[test]
    fn each_partition_of_each_topic_has_a_lane() {
        let lanes = Lanes::new(&[6, 1, 3]);
        assert_eq!(lanes.count(), 10);
        let of = |topic, key: u32| lanes.of(topic, &key.to_le_bytes());
        let payments: std::collections::BTreeSet<usize> = (0..1_000).map(|key| of(TopicId::PAYMENTS, key)).collect();
        assert!(payments.into_iter().eq(0..6));
    }
}
