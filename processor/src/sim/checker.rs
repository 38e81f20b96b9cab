//! Owns the comparison of what is left at the end of a trial with what was published. The numbers are those of
//! docs/reliability.md.
//!
//! Reads decisions as the gateway does: committed ones, without those whose source offset is not above the highest. It
//! shares no code with the lane.

use std::collections::BTreeMap;

use rdkafka::message::Headers as _;
use sluice_kafka::config::Isolation;
use sluice_kafka::fail;
use sluice_proto::avro::Decoder;
use sluice_proto::decision::Decision;
use sluice_proto::headers;

use super::input::{DECISION_SCHEMA, Decided, Due, Published};
use super::kafka::{Entry, Fate, Topic};
use super::postgres::Row;
use super::wire::Core;

/// How far a score may be from the account's, which multiplies in another order.
const SCORE_TOLERANCE: f64 = 1e-9;

thread_local! {
    static DECISIONS: Decoder<Decision> = Decoder::new(DECISION_SCHEMA).expect("the schema of decisions is one");
}

/// Finds everything that is wrong.
pub(super) fn check(core: &mut Core, published: &BTreeMap<i32, Vec<Published>>) -> Vec<String> {
    let mut wrong = std::mem::take(&mut core.violations);
    for (part, records) in published {
        let end = records.len() as i64;
        let committed = core.kafka.group.committed.get(part).copied().unwrap_or(0);
        if committed != end {
            wrong.push(format!("0 progress: {part} is committed up to {committed} of {end}"));
        }
        let letters = letters(&core.kafka.log(Topic::DeadLetters, *part).entries);
        let log = core.kafka.log(Topic::Decisions, *part);
        if log.end(Isolation::ReadCommitted) < log.entries.len() {
            wrong.push(format!("6 epochs: a transaction in {part} is open for ever"));
        }
        let (visible, attempts, hidden) = decisions(&log.entries);
        if hidden > 0 {
            wrong.push(format!("1 once: {hidden} decisions of {part} are committed again"));
        }
        for (offset, record) in (0_i64..).zip(records) {
            let (seen, letters) = (
                count(&visible, offset),
                letters.get(&offset).map_or(&[][..], Vec::as_slice),
            );
            once(&mut wrong, (*part, offset), &record.due, seen, letters);
        }
        for decision in visible.iter().chain(&attempts) {
            let offset = usize::try_from(decision.source_offset).unwrap_or(usize::MAX);
            match records.get(offset).map(|record| &record.due) {
                Some(Due::Decision(due)) => same(&mut wrong, due, decision),
                Some(Due::Letter(_) | Due::Nothing) => {}
                None => wrong.push(format!("1 once: {offset} of {part} was decided and never published")),
            }
        }
        ledger(&mut wrong, core, *part, end, &visible);
    }
    wrong.sort();
    wrong.dedup();
    wrong
}

fn count(decisions: &[Decision], offset: i64) -> usize {
    decisions
        .iter()
        .filter(|decision| decision.source_offset == offset)
        .count()
}

/// What a subscriber sees, what was tried in vain, and how many committed ones a subscriber passes over.
fn decisions(entries: &[Entry]) -> (Vec<Decision>, Vec<Decision>, usize) {
    let (mut visible, mut attempts) = (Vec::new(), Vec::new());
    let (mut highest, mut hidden) = (-1, 0);
    for entry in entries {
        let payload = entry.record.as_ref().and_then(|record| record.payload.as_deref());
        let Some(Ok(decision)) = payload.map(|bytes| DECISIONS.with(|decoder| decoder.decode(bytes))) else {
            continue;
        };
        let passes = decision.source_offset > highest || !fail::safeguard("high-watermark");
        if entry.fate == Fate::Committed && passes {
            highest = decision.source_offset;
            visible.push(decision);
        } else {
            hidden += usize::from(entry.fate == Fate::Committed);
            attempts.push(decision);
        }
    }
    (visible, attempts, hidden)
}

/// The types of the committed dead letters of each offset.
fn letters(entries: &[Entry]) -> BTreeMap<i64, Vec<String>> {
    let mut letters: BTreeMap<i64, Vec<String>> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| entry.fate == Fate::Committed) {
        let Some(own) = entry.record.as_ref().and_then(|record| record.headers.as_ref()) else {
            continue;
        };
        let text = |name| {
            let value = own.iter().find(|header| header.key == name)?.value?;
            std::str::from_utf8(value).ok()
        };
        let offset = text(headers::SOURCE_OFFSET).and_then(|offset| offset.parse().ok());
        if let (Some(offset), Some(kind)) = (offset, text(headers::ERROR_TYPE)) {
            letters.entry(offset).or_default().push(kind.to_owned());
        }
    }
    letters
}

fn once(wrong: &mut Vec<String>, place: (i32, i64), due: &Due, seen: usize, letters: &[String]) {
    let (part, offset) = place;
    let decided = usize::from(matches!(due, Due::Decision(_)));
    if seen > 1 {
        wrong.push(format!("2 delivery: {offset} of {part} is seen {seen} times"));
    } else if seen != decided {
        wrong.push(format!(
            "1 once: {offset} of {part} has {seen} decisions, not {decided}"
        ));
    }
    let expected: &[&str] = match due {
        Due::Letter(kind) => &[kind],
        Due::Decision(_) | Due::Nothing => &[],
    };
    if letters != expected {
        wrong.push(format!(
            "1 once: {offset} of {part} has the dead letters {letters:?}, not {expected:?}"
        ));
    }
}

fn same(wrong: &mut Vec<String>, due: &Decided, decision: &Decision) {
    let same = decision.event_id.uuid() == due.event_id
        && decision.occurred_at == due.occurred_at
        && decision.late == due.late
        && decision.rule_set_version.starts_with(&format!("r{}", due.rule_set))
        && (decision.score - due.score).abs() < SCORE_TOLERANCE;
    if !same {
        let place = (decision.source_partition, decision.source_offset);
        let (version, score, late) = (&decision.rule_set_version, decision.score, decision.late);
        wrong.push(format!(
            "4 replay: {place:?} was decided with {version}, score {score}, late {late}, and not as {due:?}"
        ));
    }
}

/// Committed rows and visible decisions are the same, and there are no other rows.
fn ledger(wrong: &mut Vec<String>, core: &Core, part: i32, end: i64, visible: &[Decision]) {
    let tables = &core.postgres.tables;
    let watermark = tables.owners.get(&part).map_or(0, |(_, watermark)| *watermark);
    if watermark != end {
        wrong.push(format!("3 ledger: the watermark of {part} is {watermark}, not {end}"));
    }
    let rows = tables
        .rows
        .range((part, i64::MIN)..=(part, i64::MAX))
        .map(|(_, row)| &**row);
    let rows: BTreeMap<i64, &Row> = rows.map(|row| (row.off, row)).collect();
    for decision in visible {
        let equal = rows.get(&decision.source_offset).is_some_and(|row| {
            row.event_id == decision.event_id.uuid()
                && row.tenant == decision.tenant
                && row.content.occurred_at == decision.occurred_at
                && row.content.account_id == decision.account_id
                && row.content.amount == decision.amount
                && row.content.currency == decision.currency
                && row.outcome == decision.outcome.as_str()
                && row.score.to_bits() == decision.score.to_bits()
                && row.version == *decision.rule_set_version
                && row.late == decision.late
        });
        if !equal {
            let row = rows.get(&decision.source_offset);
            wrong.push(format!(
                "3 ledger: {} of {part} has the row {row:?}",
                decision.source_offset
            ));
        }
    }
    for off in rows.keys().filter(|off| count(visible, **off) == 0) {
        wrong.push(format!("3 ledger: {off} of {part} has a row and no decision"));
    }
    if core.postgres.failovers == 0 {
        let epochs: Vec<i64> = rows.values().map(|row| row.epoch).collect();
        if !epochs.is_sorted() {
            wrong.push(format!("6 epochs: rows of {part} were written in the order {epochs:?}"));
        }
    }
}
