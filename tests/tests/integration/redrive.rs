//! Dead letters that are listed, shown and driven again: back to their source, with one more retry, until the limit.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sluice_proto::avro::{Decoder, Encoder, PREFIX_BYTES};
use sluice_proto::event::{EventId, PaymentRecord};
use sluice_proto::{headers, topics};
use sluice_tests::run::on_own;
use sluice_tests::session::Session;
use sluice_tests::stack::{Options, Stack, Tenant};
use sluice_tests::subscription::Subscription;
use sluice_tests::topics::{Record, consumed, read, write_payment};
use sluice_tests::{command, events};

/// A record that would be a payment with another date, and its id.
async fn record_of_tomorrow(stack: &Stack, tenant: &Tenant, ahead_us: i64) -> Result<(Vec<u8>, String)> {
    let event = events::payment("redriven");
    let mut session = Session::open(&stack.gateway_url(), &tenant.key, "good").await?;
    session.store(std::slice::from_ref(&event)).await?;
    let records = read(stack, topics::PAYMENTS).await?;
    let good = records
        .iter()
        .find(|record| record.is_of(&tenant.name))
        .context("it is not stored")?;
    let id = good.payload[1..PREFIX_BYTES].try_into().map(i32::from_be_bytes)?;
    let mut payment: PaymentRecord = Decoder::new(id)?.decode(&good.payload)?;
    payment.event_id = EventId::new(uuid::Uuid::now_v7());
    payment.occurred_at += ahead_us;
    let mut bytes = Vec::new();
    Encoder::new(id)?.encode(&payment, &mut bytes)?;
    Ok((bytes, payment.event_id.to_string()))
}

/// The letters of a tenant, each as its type and how often it was driven again.
async fn letters(stack: &Stack, tenant: &Tenant) -> Result<Vec<(Record, String)>> {
    consumed(stack).await?;
    let all = read(stack, topics::DEAD_LETTERS).await?;
    let of_tenant = all.into_iter().filter(|letter| letter.is_of(&tenant.name));
    of_tenant
        .map(|letter| {
            let count = letter.header(headers::RETRY_COUNT)?.to_owned();
            Ok((letter, count))
        })
        .collect()
}

#[test]
fn letters_go_back_with_one_more_retry_until_the_limit() {
    on_own(Options::default(), async |stack| {
        let tenant = stack.tenant();
        let (poison, _) = record_of_tomorrow(stack, &tenant, 86_400_000_000).await?;
        let written = write_payment(stack, &tenant.name, "redriven", poison.clone()).await?;
        let first = letters(stack, &tenant).await?;
        ensure!(first.len() == 1 && first[0].1 == "0", "{first:?}");

        let list = stack.sluicectl(&["dlq", "list"])?;
        let place = format!("{}:{}", first[0].0.partition, first[0].0.offset);
        let source = format!("{}:{}", written.0, written.1);
        ensure!(
            list.contains(&place) && list.contains(&source) && list.contains("VALIDATION_ERROR"),
            "{list}"
        );
        let shown = stack.sluicectl(&["dlq", "show", &place])?;
        ensure!(
            shown.contains("source_offset: ") && shown.contains(&format!("value: {} bytes", poison.len())),
            "{shown}"
        );
        let planned = stack.sluicectl(&["dlq", "redrive", "--dry-run"])?;
        ensure!(planned.contains("1 would be driven again"), "{planned}");
        ensure!(letters(stack, &tenant).await?.len() == 1, "a dry run writes nothing");

        for retry in 1..=3 {
            let page = stack.sluicectl(&["dlq", "redrive"])?;
            ensure!(page.contains("1 driven again"), "{page}");
            let now = letters(stack, &tenant).await?;
            ensure!(now.len() == retry + 1, "{now:?}");
            let (newest, count) = now.last().context("a letter")?;
            assert_eq!(*count, retry.to_string());
            assert_eq!((&newest.payload, newest.partition), (&poison, written.0));
        }
        let page = stack.sluicectl(&["dlq", "redrive"])?;
        ensure!(
            page.contains("left: driven again 3 times already") && page.contains("0 driven again"),
            "{page}"
        );
        let page = stack.sluicectl(&["dlq", "redrive"])?;
        ensure!(
            !page.contains("VALIDATION_ERROR") && page.contains("0 driven again"),
            "nothing is new: {page}"
        );
        let page = stack.sluicectl(&["dlq", "redrive", &place, "--max-retries", "9"])?;
        ensure!(page.contains("1 driven again"), "a named one goes again: {page}");
        Ok(())
    });
}

/// Anybody who may write to Kafka can give a header such a name.
#[test]
fn a_header_whose_name_cannot_be_read_stops_no_redrive() {
    on_own(Options::default(), async |stack| {
        if !command::installed("kcat") {
            command::skipped("kcat", "it is not installed");
            return Ok(());
        }
        let record = stack.directory().join("record");
        std::fs::write(&record, "no payment")?;
        let mut write = Command::new("kcat");
        write.args(["-P", "-b", &stack.servers().kafka, "-t", &stack.topic(topics::PAYMENTS)]);
        write
            .args(["-p", "0", "-H"])
            .arg(OsStr::from_bytes(b"\xff=1"))
            .arg(&record);
        command::succeed(write).await?;
        consumed(stack).await?;
        let list = stack.sluicectl(&["dlq", "list"])?;
        ensure!(list.contains("1 in all"), "{list}");
        let shown = stack.sluicectl(&["dlq", "show", "0:0"])?;
        ensure!(
            shown.contains("value: 10 bytes") && shown.contains("names are not UTF-8"),
            "{shown}"
        );
        let page = stack.sluicectl(&["dlq", "redrive"])?;
        ensure!(
            page.contains("is not UTF-8") && page.contains("0 driven again"),
            "{page}"
        );
        Ok(())
    });
}

/// A date too far ahead is a fault that goes by itself.
#[test]
fn a_letter_whose_fault_is_gone_is_decided() {
    on_own(Options::default(), async |stack| {
        let tenant = stack.tenant();
        let mut subscription = Subscription::open(&stack.gateway_url(), &tenant.key).await?;
        // Twenty seconds beyond the fifteen minutes that a date may lie ahead.
        let (early, id) = record_of_tomorrow(stack, &tenant, 920_000_000).await?;
        write_payment(stack, &tenant.name, "redriven", early).await?;
        ensure!(letters(stack, &tenant).await?.len() == 1);
        sluice_tests::wait::until("the letter is driven again in time", async || {
            stack.sluicectl(&["dlq", "redrive", "--max-retries", "1000"])?;
            consumed(stack).await?;
            let decisions = read(stack, topics::DECISIONS).await?.len();
            // The other one is that of the payment from which the record was made.
            Ok((decisions == 2).then_some(()))
        })
        .await?;
        subscription.decided(&[id]).await
    });
}
