//! The scenarios in which what is around the servers breaks: the registry, the disks, the snapshots of the state;
//! or changes: the rules and the schemas.
//!
//! A part of [`super::scenario`].

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sluice_proto::avro::{Encoder, Record as _};
use sluice_proto::event::{EventId, PaymentRecord};
use sluice_proto::money::Amount;
use sluice_proto::topics;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::disk::{self, Disk, run};
use super::faults::{Armed, Fault, PROCESSOR};
use super::world::{HOLD_EVENTS, Part, World};
use crate::oracle;
use crate::stack::Stack;
use crate::topics::Record;

const FIRST: Part = Part::Processor(0);
/// Nobody listens there.
const NOBODY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1);
/// Times that the snapshots are damaged in one trial.
const DAMAGES: usize = 4;
/// Events during which new snapshots are made.
const SNAPSHOT_EVENTS: usize = 2_000;
/// Damaged snapshots that are written to the topic at once.
const NEWEST: usize = 8;
/// Rule sets that are applied in one trial, what they say, and events from one to the next.
const RULE_SETS: usize = 6;
const LARGE_UNITS: [i64; 4] = [10, 50, 10_000, 20_000];
const FREQUENT: std::ops::Range<usize> = 1..8;
const RULE_SET_EVENTS: std::ops::Range<usize> = 100..2_000;
/// Versions of the schema that are added in one trial, and payments that are written with each.
const SCHEMAS: usize = 3;
const NEWER_PAYMENTS: usize = 40;
const NEWER_ACCOUNTS: usize = 6;

/// The registry cannot be reached, or does not answer, while servers run and while one starts.
///
/// # Errors
/// When something does not go on by itself.
pub async fn registry(world: &mut World) -> Result<()> {
    for silent in [false, true] {
        let proxy = &world.network.as_ref().context("the network is not proxied")?.registry;
        let at = proxy.target();
        if silent {
            proxy.stall(true);
        } else {
            proxy.lead_to(NOBODY);
            proxy.cut();
        }
        world.note(if silent {
            "the registry is silent"
        } else {
            "the registry is away"
        });
        // Who runs does not need it.
        world.recovered(Instant::now()).await?;
        world.kill(FIRST)?;
        world.launch(FIRST, &[])?;
        world.traffic.passes(HOLD_EVENTS).await?;
        let proxy = &world.network.as_ref().context("the network is not proxied")?.registry;
        proxy.lead_to(at);
        proxy.stall(false);
        world.recovered(Instant::now()).await?;
    }
    Ok(())
}

/// The processor dies, or ends, and finds its snapshots cut off, changed, empty, gone or replaced by others of them, in its
/// directory and in the topic.
///
/// # Errors
/// When something does not go on by itself.
pub async fn snapshots(world: &mut World) -> Result<()> {
    let directory = snapshot_directory(world.stack.directory());
    for damage in 0..DAMAGES {
        world.traffic.passes(SNAPSHOT_EVENTS).await?;
        if world.rng.bool() {
            world.kill(FIRST)?;
        } else {
            world.note(format!("{FIRST:?} leaves"));
            world.process(FIRST)?.terminate().await?;
        }
        let files: Vec<PathBuf> = std::fs::read_dir(&directory)?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        ensure!(!files.is_empty(), "there are no snapshots in {}", directory.display());
        for file in &files {
            damage_file(world, file, &files)?;
        }
        if damage % 2 == 1 {
            damage_topic(world).await?;
        }
        world.note(format!("{} snapshots damaged", files.len()));
        world.launch(FIRST, &[])?;
        world.recovered(Instant::now()).await?;
    }
    Ok(())
}

/// Another rule set is applied again and again in mid-stream, and the processor dies or stands still meanwhile.
///
/// # Errors
/// When something does not go on by itself.
pub async fn rule_sets(world: &mut World) -> Result<()> {
    for number in 0..RULE_SETS {
        let large_units = LARGE_UNITS[world.rng.usize(..LARGE_UNITS.len())];
        let frequent = world.rng.usize(FREQUENT);
        let document = oracle::rule_set(&format!("trial-{number}"), large_units, frequent);
        let file = world.stack.directory().join("rules.yaml");
        std::fs::write(&file, document)?;
        let file = file.display().to_string();
        world.stack.sluicectl(&["rules", "apply", &file])?;
        world.note(format!(
            "over {large_units} is large, more than {frequent} are frequent"
        ));
        match world.rng.u32(..3) {
            0 => world.kill(FIRST)?,
            1 => {
                let armed = Armed::choose(
                    &mut world.rng,
                    &PROCESSOR[..9],
                    &[Fault::Kill, Fault::Error, Fault::Stop],
                );
                world.strike_and_recover(FIRST, armed).await?;
                continue;
            }
            _ => {}
        }
        let events = world.rng.usize(RULE_SET_EVENTS);
        world.traffic.passes(events).await?;
        if !world.process(FIRST)?.runs()? {
            world.launch(FIRST, &[])?;
        }
        world.recovered(Instant::now()).await?;
    }
    Ok(())
}

/// Somebody publishes with a newer version of the schema, which nobody has seen before, beside the gateway; the processor is
/// killed before and after.
///
/// # Errors
/// When something does not go on by itself.
pub async fn schemas(world: &mut World) -> Result<()> {
    let tenant = world.stack.tenant().name;
    for version in 0..SCHEMAS {
        let id = register(&world.stack, version).await?;
        world.note(format!("version {version} of the payments' schema"));
        for number in 0..NEWER_PAYMENTS {
            let account = format!("newer-{}", number % NEWER_ACCOUNTS);
            let payload = newer_payment(&tenant, &account, id, version)?;
            crate::topics::write_payment(&world.stack, &tenant, &account, payload).await?;
            if number == NEWER_PAYMENTS / 2 {
                world.kill(FIRST)?;
                world.launch(FIRST, &[])?;
            }
        }
        world.recovered(Instant::now()).await?;
    }
    Ok(())
}

/// Registers this build's schema with more fields than it has, one for each version. Returns its id.
async fn register(stack: &Stack, version: usize) -> Result<i32> {
    let mut schema = serde_json::to_value(PaymentRecord::schema())?;
    let fields = schema["fields"].as_array_mut().context("the schema has no fields")?;
    for number in 0..=version {
        fields.push(json!({"name": format!("newer_{number}"), "type": ["null", "string"], "default": null}));
    }
    let subject = topics::value_subject(&stack.topic(topics::PAYMENTS));
    let url = format!("{}/subjects/{subject}/versions", stack.servers().registry);
    let body = json!({"schema": schema.to_string()});
    let registered = tokio::task::spawn_blocking(move || {
        let agent: ureq::Agent = ureq::Agent::config_builder().proxy(None).build().into();
        agent
            .post(&url)
            .send_json(body)?
            .body_mut()
            .read_json::<serde_json::Value>()
    });
    let id = registered.await??["id"].as_i64().context("the registry gave no id")?;
    Ok(id.try_into()?)
}

/// A payment as it is written by somebody who knows the added fields, some of which it has.
fn newer_payment(tenant: &str, account: &str, id: i32, version: usize) -> Result<Vec<u8>> {
    const TEXT: &[u8] = b"\x02\x0enewer ?";
    const NULL: &[u8] = b"\x00";
    let micros = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_micros();
    let payment = PaymentRecord {
        event_id: EventId::new(Uuid::now_v7()),
        tenant: tenant.to_owned(),
        account_id: account.to_owned(),
        amount: Amount::from_ten_thousandths(120_000),
        currency: "EUR".to_owned(),
        occurred_at: micros.try_into()?,
        merchant_id: "merchant-1".to_owned(),
        merchant_category: None,
        terminal_id: None,
        method: "CARD_PRESENT".to_owned(),
        device_id: None,
        country: None,
        place: None,
        latitude: None,
        longitude: None,
        traceparent: None,
    };
    let mut payload = Vec::new();
    Encoder::<PaymentRecord>::new(id)?.encode(&payment, &mut payload)?;
    for number in 0..=version {
        payload.extend_from_slice(if number % 2 == 0 { TEXT } else { NULL });
    }
    Ok(payload)
}

/// Where the processor of a trial has its snapshots.
pub fn snapshot_directory(directory: &Path) -> PathBuf {
    directory.join("snapshots")
}

fn damage_file(world: &mut World, file: &Path, others: &[PathBuf]) -> Result<()> {
    let mut bytes = std::fs::read(file)?;
    match world.rng.u32(..5) {
        0 => bytes.truncate(world.rng.usize(..=bytes.len())),
        1 if !bytes.is_empty() => {
            let at = world.rng.usize(..bytes.len());
            bytes[at] ^= 1 << world.rng.u32(..8);
        }
        2 => bytes.clear(),
        3 => return Ok(std::fs::remove_file(file)?),
        // Whole, but of another partition or another time.
        _ => bytes = std::fs::read(&others[world.rng.usize(..others.len())]).unwrap_or_default(),
    }
    Ok(std::fs::write(file, bytes)?)
}

async fn damage_topic(world: &mut World) -> Result<()> {
    let all = crate::topics::read(&world.stack, topics::SNAPSHOTS).await?;
    let newest = all.into_iter().rev().take(NEWEST);
    let damaged: Vec<Record> = newest
        .map(|mut record| {
            record.payload.truncate(world.rng.usize(..=record.payload.len()));
            record
        })
        .collect();
    crate::topics::write_again(&world.stack, topics::SNAPSHOTS, damaged).await
}

/// The disk of the snapshots is full, then that of the ledger.
///
/// # Errors
/// When something does not go on by itself, or this is not root, who alone can make small disks.
pub async fn full_disk(world: &mut World) -> Result<()> {
    let snapshots = Disk::mount(&snapshot_directory(world.stack.directory()))?;
    world.kill(FIRST)?;
    world.launch(FIRST, &[])?;
    disk::fill(snapshots.path())?;
    world.note("the snapshots' disk is full");
    world.traffic.passes(SNAPSHOT_EVENTS).await?;
    world.recovered(Instant::now()).await?;
    world.kill(FIRST)?;
    world.launch(FIRST, &[])?;
    world.recovered(Instant::now()).await?;
    disk::free(snapshots.path())?;
    world.recovered(Instant::now()).await?;

    // Postgres' own user has to be able to reach it.
    let name = format!("sluice-disk-{}", world.rng.u32(..));
    let disk = Disk::mount(&std::env::temp_dir().join(&name))?;
    let mut postgres = PgConnection::connect(&world.stack.servers().postgres).await?;
    run("chown", &["postgres".as_ref(), disk.path().as_os_str()])?;
    let space = name.replace('-', "_");
    let make = format!("CREATE TABLESPACE {space} LOCATION '{}'", disk.path().display());
    sqlx::raw_sql(&make).execute(&mut postgres).await?;
    move_ledger(world, &space).await?;
    world.recovered(Instant::now()).await?;
    disk::fill(disk.path())?;
    world.note("the ledger's disk is full");
    world.traffic.passes(HOLD_EVENTS).await?;
    world.traffic.passes(HOLD_EVENTS).await?;
    disk::free(disk.path())?;
    world.recovered(Instant::now()).await?;
    move_ledger(world, "pg_default").await?;
    let drop = format!("DROP TABLESPACE {space}");
    sqlx::raw_sql(&drop).execute(&mut postgres).await?;
    world.recovered(Instant::now()).await
}

/// Moves the ledger's tables and indexes to another disk, while lanes wait.
async fn move_ledger(world: &World, space: &str) -> Result<()> {
    const PARTS: &str =
        "SELECT relname::text, relkind::text FROM pg_class WHERE relname LIKE 'ledger\\_p%' AND relkind IN ('r', 'i')";
    let mut connection = crate::ledger::connect(&world.stack).await?;
    let parts: Vec<(String, String)> = sqlx::query_as(PARTS).fetch_all(&mut connection).await?;
    ensure!(!parts.is_empty(), "the ledger has no partition");
    for (name, kind) in parts {
        let kind = if kind == "i" { "INDEX" } else { "TABLE" };
        let statement = format!("ALTER {kind} {name} SET TABLESPACE {space}");
        sqlx::raw_sql(&statement).execute(&mut connection).await?;
    }
    Ok(())
}
