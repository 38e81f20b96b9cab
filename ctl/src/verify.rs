//! `sluicectl ledger verify`: compares the ledger with the decisions that subscribers can see, field by field, and names
//! what is missing, too much or different.
//!
//! What counts are the offsets that the processors' group has committed, and not the ledger's own watermark: a database that
//! was restored from an older backup has forgotten both rows and watermark. Nothing is written.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::{ControlFlow, Range};

use anyhow::{Context, bail};
use rdkafka::message::Message as _;
use sluice_kafka::admin::Admin;
use sluice_kafka::config::Isolation;
use sluice_kafka::registry::Registry;
use sluice_kafka::scan::{Ranges, Scanner};
use sluice_kafka::{Config, Topics};
use sluice_proto::avro::{DecodeError, Decoder, Record as _};
use sluice_proto::decision::Decision;
use sluice_proto::topics;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};

use crate::options::Verify;
use crate::postgres;

/// Decisions that are compared at a time.
const CHUNK: usize = 5_000;
/// Differences that are told one by one.
const TOLD: usize = 20;

/// A payment's decision, as both sides tell it.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    tenant: String,
    event_id: String,
    account: String,
    ten_thousandths: i64,
    currency: String,
    occurred_at: i64,
    outcome: String,
    score: f64,
    reasons: Vec<String>,
    rules: String,
    late: bool,
}

#[derive(Default)]
struct Findings {
    compared: u64,
    wrong: u64,
    told: String,
}

impl Findings {
    fn add(&mut self, part: i32, off: i64, what: &str) {
        self.wrong += 1;
        if self.wrong <= TOLD as u64 {
            // Writing to a String cannot fail.
            let _written = writeln!(self.told, "partition {part} offset {off}: {what}");
        }
    }
}

/// Compares everything that is kept of the decisions.
pub(crate) fn verify(config: &Config, admin: &Admin, topics: &Topics, verify: &Verify) -> anyhow::Result<String> {
    let group = format!("{}{}", config.topic_prefix, verify.group);
    // First how far the group is, then where the decisions end: what the group has committed is before that.
    let committed: BTreeMap<i32, i64> = admin
        .lag(&group, &topics.payments)?
        .into_iter()
        .filter_map(|lag| Some((lag.partition, lag.committed?)))
        .collect();
    if committed.is_empty() {
        bail!("group {group} has committed nothing: there is nothing to compare");
    }
    let registry = Registry::new(&verify.registry.url);
    let subject = topics::value_subject(&topics.decisions);
    let id = registry.register(&subject, Decision::SCHEMA_JSON)?;
    let mut decoder = Decoder::<Decision>::new(i32::try_from(id)?)?;
    let scanner = Scanner::new(config, Isolation::ReadCommitted)?;
    let mut findings = Findings::default();
    for (part, committed) in &committed {
        let ends = scanner.ends(&topics.decisions, *part)?;
        let detached = postgres::run(&verify.postgres.url, async |connection| {
            let query = sqlx::query_scalar("SELECT coalesce(max(below), 0) FROM ledger_detached WHERE part = $1");
            query.bind(*part).fetch_one(connection).await
        })?;
        let mut compare = Compare {
            postgres: &verify.postgres.url,
            part: *part,
            from: (ends.start == 0).then_some(detached),
            chunk: Vec::new(),
            findings: &mut findings,
        };
        let mut highest = detached - 1;
        let failed = scanner.read(&topics.decisions, &Ranges::from([(*part, ends)]), |message| {
            let read = read(&registry, &mut decoder, message.payload().unwrap_or_default())
                .with_context(|| format!("decision at {}:{}", message.partition(), message.offset()));
            let taken = read.and_then(|decision| {
                // What is not above the highest repeats what was there, and nobody sees it.
                if decision.source_offset <= highest || decision.source_offset >= *committed {
                    return Ok(());
                }
                highest = decision.source_offset;
                compare.take(decision)
            });
            match taken {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => ControlFlow::Break(error),
            }
        })?;
        failed.map_or(Ok(()), Err)?;
        compare.flush(*committed)?;
    }
    let Findings { compared, wrong, told } = findings;
    if wrong > 0 {
        let more = wrong.saturating_sub(TOLD as u64);
        bail!(
            "{wrong} differences in {compared} decisions\n{told}{}",
            if more > 0 {
                format!("and {more} more\n")
            } else {
                String::new()
            }
        );
    }
    Ok(format!(
        "{compared} decisions compared: the ledger has each of them, and nothing else\n"
    ))
}

fn read(registry: &Registry, decoder: &mut Decoder<Decision>, bytes: &[u8]) -> anyhow::Result<Decision> {
    match decoder.decode(bytes) {
        Err(DecodeError::UnknownSchema(id)) => {
            let schema = registry.schema_by_id(u32::try_from(id)?)?;
            decoder.learn(id, &schema)?;
            Ok(decoder.decode(bytes)?)
        }
        decoded => Ok(decoded?),
    }
}

/// Compares one partition, in the order of its offsets.
struct Compare<'v> {
    postgres: &'v str,
    part: i32,
    /// The offset after what is compared; none where the topic may have deleted what comes before its first decision.
    from: Option<i64>,
    chunk: Vec<Decision>,
    findings: &'v mut Findings,
}

impl Compare<'_> {
    fn take(&mut self, decision: Decision) -> anyhow::Result<()> {
        let next = decision.source_offset + 1;
        self.from.get_or_insert(decision.source_offset);
        self.chunk.push(decision);
        if self.chunk.len() == CHUNK {
            self.flush(next)
        } else {
            Ok(())
        }
    }

    /// Compares what was taken with the rows before an offset.
    fn flush(&mut self, to: i64) -> anyhow::Result<()> {
        let Some(from) = self.from else { return Ok(()) };
        let part = self.part;
        let mut rows = postgres::run(self.postgres, async |connection| rows(connection, part, from..to).await)?;
        for decision in self.chunk.drain(..) {
            self.findings.compared += 1;
            let off = decision.source_offset;
            match rows.remove(&off) {
                None => self
                    .findings
                    .add(part, off, &format!("no row of {}", decision.event_id)),
                Some(found) => {
                    let decided = row(&decision);
                    if found != decided {
                        self.findings
                            .add(part, off, &format!("the row says {found:?}, the decision {decided:?}"));
                    }
                }
            }
        }
        for (off, found) in rows {
            self.findings
                .add(part, off, &format!("a row of {} without a decision", found.event_id));
        }
        self.from = Some(to);
        Ok(())
    }
}

fn row(decision: &Decision) -> Row {
    let reason = |reason: &sluice_proto::decision::Reason| format!("{}@{}", reason.rule_id, reason.rule_version);
    Row {
        tenant: decision.tenant.clone(),
        event_id: decision.event_id.to_string(),
        account: decision.account_id.clone(),
        ten_thousandths: decision.amount.ten_thousandths(),
        currency: decision.currency.clone(),
        occurred_at: decision.occurred_at,
        outcome: decision.outcome.as_str().to_owned(),
        score: decision.score,
        reasons: decision.reasons.iter().map(reason).collect(),
        rules: decision.rule_set_version.to_string(),
        late: decision.late,
    }
}

async fn rows(connection: &mut PgConnection, part: i32, offs: Range<i64>) -> Result<BTreeMap<i64, Row>, sqlx::Error> {
    const SQL: &str = "SELECT off, tenant, event_id::text, account_id, (amount * 10000)::bigint AS ten_thousandths, \
         currency, (extract(epoch FROM occurred_at) * 1000000)::bigint AS occurred_at, outcome, score, reasons, \
         rule_set_version, late FROM ledger WHERE part = $1 AND off >= $2 AND off < $3";
    let query = sqlx::query(SQL).bind(part).bind(offs.start).bind(offs.end);
    let found = query.fetch_all(connection).await?;
    let numbered = |columns: &PgRow| -> Result<(i64, Row), sqlx::Error> {
        let row = Row {
            tenant: columns.try_get("tenant")?,
            event_id: columns.try_get("event_id")?,
            account: columns.try_get("account_id")?,
            ten_thousandths: columns.try_get("ten_thousandths")?,
            currency: columns.try_get("currency")?,
            occurred_at: columns.try_get("occurred_at")?,
            outcome: columns.try_get("outcome")?,
            score: columns.try_get("score")?,
            reasons: columns.try_get("reasons")?,
            rules: columns.try_get("rule_set_version")?,
            late: columns.try_get("late")?,
        };
        Ok((columns.try_get("off")?, row))
    };
    found.iter().map(numbered).collect()
}
