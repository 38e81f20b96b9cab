//! Owns the transactional producer of the model, as [`crate::publish`] and librdkafka are one: requests that are repeated
//! until they are answered, and a transaction that is of no use after an error.
//!
//! Asks through [`super::wire`].

use std::collections::BTreeMap;
use std::rc::Rc;

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::OwnedHeaders;
use sluice_kafka::error;
use sluice_proto::avro::Encoder;
use sluice_proto::decision::Decision;

use super::client::LANES;
use super::group::Membership;
use super::kafka::{Reply, Request, Stored, Topic};
use super::wire::{Got, MS, Sent, Wire};
use crate::batch::{Output, Written};
use crate::dead_letter::letter_headers;
use crate::lane::Settings;
use crate::publish::Error;
use crate::world::{Record, Transactions};

/// How long an abort may take; see [`crate::publish`].
const ABORT_PATIENCE: u64 = 2_000 * MS;

/// How many producers of a lane take turns; see [`crate::publish`].
const PRODUCERS: usize = 2;

/// Where a transaction stands in its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Ready,
    Open,
    /// It may have been committed, or the producer is fenced: nothing can be done with it.
    Lost,
}

/// Records for each partition of each topic.
type ByPartition = BTreeMap<(Topic, i32), Vec<Rc<Stored>>>;

/// A lane's two producers, which take turns with each transaction.
pub(super) struct Producers<'y> {
    both: [Producer<'y>; PRODUCERS],
    turn: usize,
}

/// One of them.
struct Producer<'y> {
    wire: Wire<'y>,
    id: usize,
    epoch: i16,
    patience: u64,
    stage: Stage,
    /// The coordinator knows of the transaction.
    known: bool,
    numbers: BTreeMap<(Topic, i32), u32>,
    /// Records on their way.
    sent: Vec<u64>,
    encoder: Rc<Encoder<Decision>>,
}

fn failed(step: &'static str) -> Error {
    error::Producer::Transaction {
        step,
        cause: KafkaError::Global(Code::OperationTimedOut),
    }
    .into()
}

impl<'y> Producers<'y> {
    pub(super) fn new(wire: &Wire<'y>, settings: &Settings, lane: u16) -> Result<Self, Error> {
        let slot = {
            let core = wire.shared.borrow();
            core.processes[wire.process].slot
        };
        let first = (slot * LANES + usize::from(lane)) * PRODUCERS;
        let both = [
            Producer::new(wire, settings, first)?,
            Producer::new(wire, settings, first + 1)?,
        ];
        Ok(Self { both, turn: 0 })
    }

    fn pass_turn(&mut self) {
        self.turn = (self.turn + 1) % PRODUCERS;
    }
}

impl<'y> Producer<'y> {
    fn new(wire: &Wire<'y>, settings: &Settings, id: usize) -> Result<Self, Error> {
        let patience = settings.transaction_timeout.as_micros() as u64;
        let epoch = match wire.insist(patience, || Request::Init { id }) {
            Some(Reply::Epoch(epoch)) => epoch,
            _ => return Err(failed("init_transactions")),
        };
        Ok(Self {
            wire: wire.clone(),
            id,
            epoch,
            patience,
            stage: Stage::Ready,
            known: false,
            numbers: BTreeMap::new(),
            sent: Vec::new(),
            encoder: super::input::encoder(settings.decision_schema)?,
        })
    }

    fn begin(&mut self) -> Result<(), Error> {
        if self.stage != Stage::Ready {
            return Err(failed("begin_transaction"));
        }
        (self.stage, self.known) = (Stage::Open, false);
        Ok(())
    }

    /// Tells the coordinator of partitions, or of the group's offsets.
    fn add(&mut self, parts: &[(Topic, i32)], group: bool) -> Result<(), Error> {
        let (id, epoch) = (self.id, self.epoch);
        self.known = true;
        let request = || Request::Add {
            id,
            epoch,
            parts: parts.to_vec(),
            group,
        };
        match self.wire.insist(self.patience, request) {
            Some(Reply::Done) => Ok(()),
            other => Err(self.lose("add to the transaction", other)),
        }
    }

    /// What an answer that is no success leaves of the producer.
    fn lose(&mut self, step: &'static str, reply: Option<Reply>) -> Error {
        if reply == Some(Reply::Fenced) {
            self.stage = Stage::Lost;
        }
        failed(step)
    }

    /// Hands records to the network. They arrive in their own time, and perhaps twice.
    fn produce(&mut self, to: (Topic, i32), records: Vec<Rc<Stored>>) {
        let number = self.numbers.entry(to).or_default();
        let first = *number;
        *number += records.len() as u32;
        let records: Rc<[Rc<Stored>]> = records.into();
        let mut core = self.wire.shared.borrow_mut();
        let core = &mut *core;
        let (there, again) = core.faults.delivery(&mut core.rng, core.now);
        let request = || {
            Sent::Kafka(Request::Produce {
                id: self.id,
                epoch: self.epoch,
                to,
                first,
                records: records.clone(),
            })
        };
        let ticket = core.post(there, request());
        self.sent.push(ticket);
        if let Some(again) = again {
            core.count("records sent twice");
            core.post(again, request());
        }
    }

    fn records(&self, outputs: &[Output<'_, impl Record>]) -> Result<ByPartition, Error> {
        let mut all = ByPartition::new();
        let mut put = |topic, part, key: Option<Vec<u8>>, payload: Option<Vec<u8>>, headers: Option<OwnedHeaders>| {
            let stored = Stored {
                key,
                payload,
                headers,
                time_ms: 0,
            };
            all.entry((topic, part)).or_default().push(Rc::new(stored));
        };
        for Output { message, written, .. } in outputs {
            let (part, payload) = (message.partition(), message.payload().map(<[u8]>::to_vec));
            match written {
                Written::Decision(decision) => {
                    let mut bytes = Vec::new();
                    self.encoder.encode(decision, &mut bytes)?;
                    let key = format!("{}/{}", decision.tenant, decision.account_id);
                    put(Topic::Decisions, part, Some(key.into_bytes()), Some(bytes), None);
                    if decision.late {
                        put(Topic::Late, part, None, payload, None);
                    }
                }
                Written::RuleSet => {
                    let key = (message.offset() + 1).to_string();
                    put(Topic::RuleSets, part, Some(key.into_bytes()), payload, None);
                }
                Written::Letter { kind, error } => {
                    let headers = letter_headers(*message, *kind, error, true);
                    put(Topic::DeadLetters, part, None, payload, Some(headers));
                }
            }
        }
        Ok(all)
    }
}

impl Transactions for Producers<'_> {
    type Membership = Membership;

    fn send<R: Record>(&mut self, outputs: &[Output<'_, R>]) -> Result<(), Error> {
        self.both[self.turn].send(outputs)
    }

    fn settle(&mut self) -> Result<(), Error> {
        self.both[self.turn].settle()
    }

    fn prove(&mut self, _partitions: &[i32], membership: &Membership) -> Result<(), Error> {
        let producer = &mut self.both[self.turn];
        producer.begin()?;
        // Those of the decisions are of no interest to the model.
        producer.send_offsets(&BTreeMap::new(), membership)
    }

    fn send_offsets(&mut self, ends: &BTreeMap<i32, i64>, membership: &Membership) -> Result<(), Error> {
        self.both[self.turn].send_offsets(ends, membership)
    }

    fn commit(&mut self) -> Result<(), Error> {
        self.both[self.turn].commit()?;
        self.pass_turn();
        Ok(())
    }

    fn abort(&mut self) -> Result<(), Error> {
        self.both[self.turn].abort()?;
        self.pass_turn();
        Ok(())
    }

    fn failed(&self, _error: &Error) {}
}

impl Producer<'_> {
    fn send<R: Record>(&mut self, outputs: &[Output<'_, R>]) -> Result<(), Error> {
        self.begin()?;
        let records = self.records(outputs)?;
        if !records.is_empty() {
            let parts: Vec<(Topic, i32)> = records.keys().copied().collect();
            self.add(&parts, false)?;
        }
        for (to, records) in records {
            self.produce(to, records);
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<(), Error> {
        let deadline = self.wire.shared.borrow().now + self.patience;
        for ticket in std::mem::take(&mut self.sent) {
            loop {
                let got = self.wire.shared.borrow_mut().take(ticket);
                match got {
                    Some(Got::Kafka(Reply::Done)) => break,
                    Some(Got::Kafka(reply)) => {
                        // Its numbers have a gap from here on.
                        self.stage = Stage::Lost;
                        return Err(self.lose("deliver", Some(reply)));
                    }
                    _ if self.wire.shared.borrow().now > deadline => {
                        self.stage = Stage::Lost;
                        return Err(failed("deliver"));
                    }
                    _ => self.wire.wait(MS),
                }
            }
        }
        Ok(())
    }

    fn send_offsets(&mut self, ends: &BTreeMap<i32, i64>, membership: &Membership) -> Result<(), Error> {
        self.add(&[], true)?;
        let (id, epoch, membership) = (self.id, self.epoch, *membership);
        let request = || Request::Offsets {
            id,
            epoch,
            membership,
            offsets: ends.iter().map(|(part, end)| (*part, *end)).collect(),
        };
        match self.wire.insist(self.patience, request) {
            Some(Reply::Done) => Ok(()),
            other => Err(self.lose("send_offsets_to_transaction", other)),
        }
    }

    fn commit(&mut self) -> Result<(), Error> {
        if self.stage != Stage::Open {
            return Err(failed("commit_transaction"));
        }
        // Until it is known to be over, it can neither be aborted nor followed by another.
        self.stage = Stage::Lost;
        self.end(true, self.patience)
    }

    fn abort(&mut self) -> Result<(), Error> {
        match self.stage {
            Stage::Ready => Ok(()),
            Stage::Open => self.end(false, ABORT_PATIENCE),
            Stage::Lost => Err(failed("abort_transaction")),
        }
    }

    fn end(&mut self, commit: bool, patience: u64) -> Result<(), Error> {
        let (id, epoch) = (self.id, self.epoch);
        // A transaction that the coordinator has not heard of is over when its client says so.
        let reply = if self.known {
            self.wire.insist(patience, || Request::End { id, epoch, commit })
        } else {
            Some(Reply::Done)
        };
        self.stage = if reply == Some(Reply::Done) {
            Stage::Ready
        } else {
            Stage::Lost
        };
        if self.stage == Stage::Lost {
            return Err(failed("end the transaction"));
        }
        Ok(())
    }
}
