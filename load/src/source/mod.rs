//! Where events come from: generated, from a file, or from the caller's own data; and what is done to them on request.
//!
//! Comes before the feed, which asks for one event after the other. Every event of a run has an id that carries its
//! number, by which answers and decisions are matched.

mod data;
mod ids;
mod recorded;
mod template;

use std::collections::VecDeque;
use std::path::PathBuf;

use bytes::Bytes;
use fastrand::Rng;
use prost::Message;
use sluice_proto::pb;

use crate::generate::{Fraud, Generator, Options, Population, timestamp};
pub(crate) use ids::Ids;

/// Copies are made of one of so many events before.
const COPIED_EVENTS: usize = 1_024;
/// What no event decodes from.
const UNREADABLE: &[u8] = b"\xff\xff\xff\xff not an event";
/// A currency that there is not.
const NO_CURRENCY: &str = "XXQ";

/// An event to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    /// The encoded `sluice.v1.Event`.
    pub(crate) bytes: Bytes,
    /// Its number in this run, the one that its id carries.
    pub(crate) number: u64,
    pub(crate) kind: Kind,
}

/// What is to become of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Stored, and decided once.
    Fresh(Option<Fraud>),
    /// Stored, and not decided, because it is the same as one before.
    Copy,
    /// Refused.
    Poison,
}

/// What to publish.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) input: Input,
    pub(crate) seed: u64,
    pub(crate) population: Population,
    /// Payments a second at most.
    pub(crate) peak_rate_per_s: f64,
    pub(crate) copy_share: f64,
    pub(crate) poison_share: f64,
    /// Ids of the caller's data are kept where there are any.
    pub(crate) keep_ids: bool,
    /// Events of a file follow each other as they did then, so many times faster.
    pub(crate) own_pace: Option<f64>,
}

/// Which events.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// Made up.
    Generated,
    /// Card transactions as CSV.
    Cards(PathBuf),
    /// Events as lines of JSON.
    Recorded(PathBuf),
    /// JSON, perhaps with templates.
    Data(String),
}

/// An event as it comes from its input.
struct Raw {
    event: pb::Event,
    injected: Option<Fraud>,
    /// After the first event of the file, by the file's own times.
    offset_micros: Option<i64>,
}

enum Reader {
    Generated(Box<Generator>),
    File(recorded::Recorded),
    Data(data::Data),
}

/// The events of a run.
pub(crate) struct Source {
    reader: Reader,
    ids: Ids,
    random: Rng,
    number: u64,
    recent: VecDeque<Item>,
    ahead: Option<Raw>,
    plan: Plan,
}

impl Source {
    /// Opens the input.
    ///
    /// # Errors
    /// When a file cannot be read or data makes no event.
    pub(crate) fn open(plan: Plan) -> anyhow::Result<Self> {
        let reader = match &plan.input {
            Input::Generated => {
                let options = Options {
                    seed: plan.seed,
                    salt: 0,
                    start_micros: 0,
                    rate_per_s: plan.peak_rate_per_s,
                };
                Reader::Generated(Box::new(Generator::with_population(options, plan.population)))
            }
            Input::Cards(path) => Reader::File(recorded::Recorded::cards(path)?),
            Input::Recorded(path) => Reader::File(recorded::Recorded::lines(path)?),
            Input::Data(text) => Reader::Data(data::Data::parse(text)?),
        };
        Ok(Self {
            reader,
            ids: Ids::random(),
            random: Rng::with_seed(plan.seed.wrapping_add(1)),
            number: 0,
            recent: VecDeque::with_capacity(COPIED_EVENTS),
            ahead: None,
            plan,
        })
    }

    /// How ids of this run are told from others.
    pub(crate) fn ids(&self) -> Ids {
        self.ids
    }

    /// When the next event is due after the first one, by the file's own pace. `None` when there is no such pace, or no
    /// event any more.
    ///
    /// # Errors
    /// When the next event cannot be read.
    pub(crate) fn own_offset_ns(&mut self) -> anyhow::Result<Option<u64>> {
        let Some(speed) = self.plan.own_pace else {
            return Ok(None);
        };
        if self.ahead.is_none() {
            self.ahead = self.read(0)?;
        }
        let offset = self.ahead.as_ref().and_then(|raw| raw.offset_micros);
        Ok(offset.map(|micros| (micros.max(0) as f64 * 1e3 / speed) as u64))
    }

    /// The next event, to be sent at a moment so long after the start; `None` when there is none any more.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn next(&mut self, at_micros: i64, wall_micros: i64) -> anyhow::Result<Option<Item>> {
        let dice = self.random.f64();
        if dice < self.plan.copy_share && !self.recent.is_empty() {
            let mut copy = self.recent[self.random.usize(..self.recent.len())].clone();
            copy.kind = Kind::Copy;
            return Ok(Some(copy));
        }
        let raw = match self.ahead.take() {
            Some(raw) => Some(raw),
            None => self.read(at_micros)?,
        };
        let Some(raw) = raw else { return Ok(None) };
        let poison = dice >= 1.0 - self.plan.poison_share;
        let item = self.item(raw, wall_micros, poison);
        if item.kind != Kind::Poison && self.plan.copy_share > 0.0 {
            if self.recent.len() == COPIED_EVENTS {
                self.recent.pop_front();
            }
            self.recent.push_back(item.clone());
        }
        Ok(Some(item))
    }

    fn read(&mut self, at_micros: i64) -> anyhow::Result<Option<Raw>> {
        match &mut self.reader {
            Reader::Generated(generator) => {
                let generated = generator.generate_at(at_micros);
                Ok(Some(Raw {
                    event: generated.event,
                    injected: generated.injected,
                    offset_micros: None,
                }))
            }
            Reader::File(file) => file.next(),
            Reader::Data(data) => data.next(self.number).map(Some),
        }
    }

    /// Gives an event its id and time, and spoils it where it is to be poison.
    fn item(&mut self, mut raw: Raw, wall_micros: i64, poison: bool) -> Item {
        let number = self.number;
        self.number += 1;
        let keeps = matches!(self.reader, Reader::Data(_)) && self.plan.keep_ids;
        if !keeps || raw.event.event_id.is_empty() {
            raw.event.event_id = self.ids.id(number, wall_micros);
        }
        let lives_now = match self.reader {
            Reader::Generated(_) => true,
            Reader::File(_) => self.plan.own_pace.is_some_and(|speed| speed <= 1.0),
            Reader::Data(_) => raw.event.occurred_at.is_none(),
        };
        if lives_now {
            raw.event.occurred_at = Some(timestamp(wall_micros));
        }
        let mut kind = Kind::Fresh(raw.injected);
        let mut bytes = None;
        if poison {
            kind = Kind::Poison;
            match &mut raw.event.payload {
                Some(pb::event::Payload::Payment(payment)) if self.random.bool() => {
                    payment.amount.get_or_insert_default().currency_code = NO_CURRENCY.to_owned();
                }
                _ => bytes = Some(Bytes::from_static(UNREADABLE)),
            }
        }
        Item {
            bytes: bytes.unwrap_or_else(|| raw.event.encode_to_vec().into()),
            number,
            kind,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(input: Input) -> Plan {
        Plan {
            input,
            seed: 7,
            population: Population::default(),
            peak_rate_per_s: 1_000.0,
            copy_share: 0.0,
            poison_share: 0.0,
            keep_ids: true,
            own_pace: None,
        }
    }

    fn events(plan: Plan, count: usize) -> (Ids, Vec<Item>) {
        let mut source = Source::open(plan).unwrap();
        let mut next = |micros| source.next(micros, 1_700_000_000_000_000 + micros).unwrap();
        let items = (0..count as i64).map_while(|index| next(index * 1_000)).collect();
        (source.ids(), items)
    }

    #[test]
    fn ids_carry_numbers_and_times_are_those_of_sending() {
        let (ids, items) = events(plan(Input::Generated), 100);
        for (number, item) in items.iter().enumerate() {
            let event = pb::Event::decode(item.bytes.clone()).unwrap();
            assert_eq!(ids.number(&event.event_id), Some(number as u64));
            assert_eq!(event.occurred_at.unwrap().seconds, 1_700_000_000);
        }
    }

    #[test]
    fn copies_are_the_same_bytes_and_poison_is_refused_by_the_contract() {
        let plan = Plan {
            copy_share: 0.2,
            poison_share: 0.2,
            ..plan(Input::Generated)
        };
        let (_ids, items) = events(plan, 1_000);
        let count = |kind: fn(&Kind) -> bool| items.iter().filter(|item| kind(&item.kind)).count();
        assert!((150..250).contains(&count(|kind| *kind == Kind::Copy)));
        assert!((150..250).contains(&count(|kind| *kind == Kind::Poison)));
        for (index, item) in items.iter().enumerate() {
            let checked = pb::Event::decode(item.bytes.clone())
                .ok()
                .and_then(|event| sluice_proto::validate::event(event, "t", 1_700_000_000_000_000).ok());
            assert_eq!(checked.is_none(), item.kind == Kind::Poison);
            if item.kind == Kind::Copy {
                assert!(items[..index].iter().any(|before| before.bytes == item.bytes));
            }
        }
    }

    #[test]
    fn data_keeps_what_it_says_and_gets_what_it_lacks() {
        let text = r#"[{"event":{"payment":{"accountId":"a-{{.RequestNumber}}"}}}, {"eventId":"mine","payment":{}}]"#;
        let (ids, items) = events(plan(Input::Data(text.to_owned())), 3);
        let event = |index: usize| pb::Event::decode(items[index].bytes.clone()).unwrap();
        let account = |index| match event(index).payload {
            Some(pb::event::Payload::Payment(payment)) => payment.account_id,
            _ => panic!("not a payment"),
        };
        assert_eq!((account(0).as_str(), account(2).as_str()), ("a-0", "a-2"));
        assert_eq!(event(1).event_id, "mine");
        assert_eq!(ids.number(&event(0).event_id), Some(0));
    }
}
