//! `sluicectl review`: shows the payments that wait for a verdict, ends reviews, and takes payments back.
//!
//! What is said travels as a record of the topic of verdicts, as the gateway's ReviewService writes it; the processor heeds
//! it once, however often it is said.

use anyhow::{Context, bail, ensure};
use rdkafka::message::OwnedHeaders;
use sluice_kafka::registry::Registry;
use sluice_kafka::{Config, Topics};
use sluice_proto::avro::{Encoder, Record as _};
use sluice_proto::bounds::MAX_ID_BYTES;
use sluice_proto::event::EventId;
use sluice_proto::settlement::{Action, MAX_ACTOR_BYTES, MAX_REASON_BYTES, Verdict};
use sluice_proto::{topics, validate};

use crate::options::{Say, Show};
use crate::postgres;
use crate::produce::{self, Record};
use crate::table::Table;

/// Kafka's way of saying that the key decides the partition.
const BY_KEY: i32 = -1;

/// The payments that wait for a verdict, those whose time is up first.
pub(crate) fn list(show: &Show) -> anyhow::Result<String> {
    const SQL: &str = "SELECT tenant, account_id, event_id::text, trim_scale(amount)::text, currency, score, \
         array_to_string(reasons, ' '), seconds_left FROM open_reviews WHERE $1::text IS NULL OR tenant = $1 \
         ORDER BY seconds_left NULLS LAST, part, off LIMIT $2";
    type Review = (String, String, String, String, String, f64, String, Option<i64>);
    let reviews: Vec<Review> = postgres::run(&show.postgres.url, async |connection| {
        let query = sqlx::query_as(SQL).bind(&show.tenant).bind(i64::from(show.limit));
        query.fetch_all(connection).await
    })?;
    let mut table = Table::new(&[
        "TENANT",
        "ACCOUNT",
        "EVENT",
        "AMOUNT",
        "CURRENCY",
        "SCORE",
        "REASONS",
        "SECONDS LEFT",
    ]);
    for (tenant, account, event, amount, currency, score, reasons, left) in reviews {
        let left = left.map_or("-".to_owned(), |left| left.to_string());
        table.row([
            tenant,
            account,
            event,
            amount,
            currency,
            format!("{score:.2}"),
            reasons,
            left,
        ]);
    }
    Ok(table.to_string())
}

/// Writes down what somebody says of a payment.
pub(crate) fn say(config: &Config, topics: &Topics, action: Action, say: &Say) -> anyhow::Result<String> {
    let Some(event_id) = EventId::parse(&say.event) else {
        bail!("{:?} is not the id of an event, which is a UUID", say.event);
    };
    validate::tenant(&say.tenant).map_err(|violation| anyhow::anyhow!("the tenant {violation}"))?;
    let account_fits = (1..=MAX_ID_BYTES).contains(&say.account.len());
    ensure!(account_fits, "the account is empty or longer than {MAX_ID_BYTES} bytes");
    ensure!(
        say.reason.len() <= MAX_REASON_BYTES,
        "the reason is longer than {MAX_REASON_BYTES} bytes"
    );
    let actor_fits = (1..=MAX_ACTOR_BYTES).contains(&say.actor.len());
    ensure!(actor_fits, "the actor is empty or longer than {MAX_ACTOR_BYTES} bytes");
    let subject = topics::value_subject(&topics.verdicts);
    let id = Registry::new(&say.registry.url).register(&subject, Verdict::SCHEMA_JSON)?;
    let verdict = Verdict {
        event_id,
        tenant: say.tenant.clone(),
        account_id: say.account.clone(),
        action,
        actor: say.actor.clone(),
        reason: say.reason.clone(),
    };
    let mut payload = Vec::new();
    Encoder::<Verdict>::new(i32::try_from(id)?)?.encode(&verdict, &mut payload)?;
    let record = Record {
        partition: BY_KEY,
        key: Some(topics::key(&say.tenant, &say.account).into_bytes()),
        payload: Some(payload),
        headers: OwnedHeaders::new(),
    };
    let offsets = produce::write(config, &topics.verdicts, &[record])?;
    let offset = offsets.first().context("no offset")?;
    Ok(format!(
        "{} of {event_id} is at offset {offset} of {}; what it comes to is in the view predictions\n",
        action.as_str(),
        topics.verdicts
    ))
}
