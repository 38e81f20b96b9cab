//! Records that anybody can write to the payments topic: what cannot be decided goes to the dead letters, and the lane
//! goes on.

use anyhow::{Context, Result, ensure};
use sluice_proto::avro::{Encoder, PREFIX_BYTES};
use sluice_proto::event::PaymentRecord;
use sluice_proto::{headers, topics};
use sluice_tests::checker::{self, Expected};
use sluice_tests::events;
use sluice_tests::run::on_shared;
use sluice_tests::session::Session;
use sluice_tests::stack::{Stack, Tenant};
use sluice_tests::subscription::Subscription;
use sluice_tests::topics::{Record, consumed, read, write_payment};

/// A key of so many bytes fits into a record of up to 1,000,000 with little else, and not with a letter's headers.
const LARGE_KEY_BYTES: usize = 999_850;

/// Publishes a good payment of this account, and returns the bytes of its record.
async fn good_record(stack: &Stack, tenant: &Tenant, account: &str) -> Result<Vec<u8>> {
    let event = events::payment(account);
    Session::open(&stack.gateway_url(), &tenant.key, "good")
        .await?
        .store(std::slice::from_ref(&event))
        .await?;
    let records = read(stack, topics::PAYMENTS).await?;
    let is_it = |record: &&Record| record.header(headers::EVENT_ID).is_ok_and(|id| id == event.event_id);
    Ok(records
        .iter()
        .find(is_it)
        .context("the payment is not stored")?
        .payload
        .clone())
}

fn schema_id(record: &[u8]) -> Result<i32> {
    let prefix = record
        .first_chunk::<PREFIX_BYTES>()
        .context("shorter than the prefix")?;
    Ok(i32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]))
}

/// Whether this dead letter is about the record at this place.
fn is_about(letter: &Record, partition: i32, offset: i64) -> bool {
    let says = |name, value: String| letter.header(name).is_ok_and(|found| found == value);
    says(headers::SOURCE_PARTITION, partition.to_string()) && says(headers::SOURCE_OFFSET, offset.to_string())
}

/// The same record with something that the gateway would have refused.
fn changed(good: &[u8], change: impl FnOnce(&mut PaymentRecord)) -> Result<Vec<u8>> {
    let id = schema_id(good)?;
    let mut record: PaymentRecord = sluice_proto::avro::Decoder::new(id)?.decode(good)?;
    record.event_id = sluice_proto::event::EventId::new(uuid::Uuid::now_v7());
    change(&mut record);
    let mut bytes = Vec::new();
    Encoder::new(id)?.encode(&record, &mut bytes)?;
    Ok(bytes)
}

#[test]
fn poison_goes_to_the_dead_letters_and_the_lane_goes_on() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let mut subscription = Subscription::open(&url, &tenant.key).await?;
        let good = good_record(stack, &tenant, "poisoned").await?;
        let unknown_schema = [&[0, 0x7f, 0xff, 0xff, 0xff], &good[PREFIX_BYTES..]].concat();
        // 200,000 control characters in place of the 36 of an id: told in words they are five times as long.
        let (prefix, rest) = (&good[..PREFIX_BYTES], &good[PREFIX_BYTES + 37..]);
        let long_id = [prefix, &[0x80, 0xb5, 0x18], &[1; 200_000], rest].concat();
        let deserialization = "DESERIALIZATION_ERROR";
        let validation = "VALIDATION_ERROR";
        let cases = [
            ("nothing", Vec::new(), deserialization),
            ("no wire format", b"{\"amount\": 5}".to_vec(), deserialization),
            ("a schema that there is not", unknown_schema, deserialization),
            ("half a record", good[..good.len() / 2].to_vec(), deserialization),
            (
                "a record and a half",
                [&good[..], &good[PREFIX_BYTES..]].concat(),
                deserialization,
            ),
            ("noise", [&good[..PREFIX_BYTES], &[0xff; 60]].concat(), deserialization),
            ("an id that is too long for its letter", long_id, deserialization),
            (
                "no account",
                changed(&good, |record| record.account_id.clear())?,
                validation,
            ),
            (
                // Rules that quote it would make decisions that fit into no record.
                "a method that is too long",
                changed(&good, |record| record.method = "\"".repeat(600_000))?,
                validation,
            ),
            (
                "an unknown currency",
                changed(&good, |record| record.currency = "XQZ".to_owned())?,
                validation,
            ),
            (
                "a time far ahead",
                changed(&good, |record| record.occurred_at += 86_400_000_000)?,
                validation,
            ),
        ];
        let mut written = Vec::new();
        for (what, payload, error_type) in cases {
            let (partition, offset) = write_payment(stack, &tenant.name, "poisoned", payload.clone()).await?;
            written.push((what, partition, offset, payload, error_type));
        }
        // Payments of the same account stand behind the poison, in the same partition.
        let after = events::payments("poisoned", 3)
            .into_iter()
            .chain((0..3).map(|_number| events::payment("poisoned")));
        let after: Vec<_> = after.collect();
        Session::open(&url, &tenant.key, "after").await?.store(&after).await?;
        subscription.decided(&events::ids(&after)).await?;

        let letters = read(stack, topics::DEAD_LETTERS).await?;
        for (what, partition, offset, payload, error_type) in written {
            let mut found = letters.iter().filter(|letter| is_about(letter, partition, offset));
            let letter = found.next().with_context(|| format!("{what}: no dead letter"))?;
            ensure!(found.next().is_none(), "{what}: more than one dead letter");
            ensure!(
                letter.header(headers::ERROR_TYPE)? == error_type,
                "{what}: {}",
                letter.header(headers::ERROR_TYPE)?
            );
            ensure!(!letter.header(headers::ERROR)?.is_empty(), "{what}: no error in words");
            ensure!(
                letter.header(headers::RETRY_COUNT)? == "0",
                "{what}: it was never tried again"
            );
            ensure!(
                letter.header(headers::SOURCE_TOPIC)? == stack.topic(topics::PAYMENTS),
                "{what}: another topic"
            );
            ensure!(letter.payload == payload, "{what}: not the original bytes");
            ensure!(
                letter.key == topics::key(&tenant.name, "poisoned"),
                "{what}: not the original key"
            );
        }
        Ok(())
    });
}

#[test]
fn a_record_whose_key_leaves_no_room_for_a_letter_has_one_all_the_same() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let account = "x".repeat(LARGE_KEY_BYTES);
        let (partition, offset) = write_payment(stack, &tenant.name, &account, b"noise".to_vec()).await?;
        consumed(stack).await?;
        let letters = read(stack, topics::DEAD_LETTERS).await?;
        let letter = letters.iter().find(|letter| is_about(letter, partition, offset));
        let letter = letter.context("no dead letter")?;
        ensure!(letter.header(headers::ERROR_TYPE)? == "DESERIALIZATION_ERROR");
        ensure!(letter.key.is_empty() && letter.payload.is_empty(), "it did fit");
        Ok(())
    });
}

#[test]
fn a_payment_written_by_somebody_else_in_the_right_form_is_decided() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let mut subscription = Subscription::open(&stack.gateway_url(), &tenant.key).await?;
        let good = good_record(stack, &tenant, "foreign").await?;
        let foreign = changed(&good, |_record| {})?;
        let record: PaymentRecord = sluice_proto::avro::Decoder::new(schema_id(&foreign)?)?.decode(&foreign)?;
        write_payment(stack, &tenant.name, "foreign", foreign).await?;
        subscription.decided(&[record.event_id.to_string()]).await?;
        let mut expected = Expected::of(&tenant.name);
        expected.published.extend(subscription.decisions.keys().cloned());
        checker::check(stack, &expected).await?;
        Ok(())
    });
}
