//! Tests of the quotas: buckets, shares, and the file.

use tokio_util::sync::CancellationToken;

use super::*;
use crate::auth::Role;

const fn rate_of(per_s: u32, burst: u32) -> Option<Rate> {
    Some(Rate {
        per_s: per_s as f64,
        burst: burst as f64,
    })
}

fn level(events: Option<Rate>, bytes: Option<Rate>) -> Level {
    Bucket::full(Limits { events, bytes }).0.into_inner()
}

const QUOTAS: [&str; 2] = ["events", "bytes"];

fn write(text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("sluice-quotas-{}", uuid::Uuid::new_v4()));
    std::fs::write(&path, text).expect("write");
    path
}

fn caller(tenant: &str, name: &str) -> Caller {
    Caller {
        tenant: tenant.into(),
        name: name.into(),
        roles: Role::ALL.into(),
        expires: None,
        revoked: CancellationToken::new(),
    }
}

#[test]
fn an_overdrawn_bucket_fills_at_its_rate() {
    let mut level = level(rate_of(10, 20), None);
    let start = level.at;
    assert_eq!(level.spent(start, 1.0, QUOTAS), None);
    level.events -= 50.0;
    let spent = level.spent(start, 1.0, QUOTAS).expect("overdrawn");
    assert_eq!(
        spent,
        Spent {
            quota: "events",
            retry_after: Duration::from_millis(3_100)
        }
    );
    assert!(level.spent(start + Duration::from_secs(2), 1.0, QUOTAS).is_some());
    assert_eq!(level.spent(start + Duration::from_millis(3_101), 1.0, QUOTAS), None);
    // A pause gives a burst, and no more.
    assert!(level.is_full(start + Duration::from_secs(60), 1.0));
    assert!((level.events - 20.0).abs() < 1e-9);
}

#[test]
fn the_quota_with_the_longest_wait_is_told() {
    let mut level = level(rate_of(10, 10), rate_of(100, 100));
    let start = level.at;
    (level.events, level.bytes) = (-10.0, -1_000.0);
    let spent = level.spent(start, 1.0, QUOTAS).expect("overdrawn");
    assert_eq!((spent.quota, spent.retry_after.as_secs()), ("bytes", 10));
}

#[test]
fn gateways_share_rate_and_burst() {
    let mut level = level(rate_of(100, 100), None);
    let start = level.at;
    level.events = 0.0;
    level.fill(start + Duration::from_millis(500), 0.25);
    assert!((level.events - 12.5).abs() < 1e-9);
    level.fill(start + Duration::from_secs(60), 0.25);
    assert!((level.events - 25.0).abs() < 1e-9);
}

#[test]
fn what_has_no_bound_is_never_spent() {
    let mut level = level(None, None);
    let start = level.at;
    (level.events, level.bytes) = (-1e9, -1e12);
    assert_eq!(level.spent(start, 1.0, QUOTAS), None);
    assert!(level.is_full(start, 1.0));
}

#[test]
fn tenants_and_principals_have_their_own() {
    let path = write(
        "[[tenant]]\nname = \"a\"\nevents_per_s = 5\n\
         [[principal]]\ntenant = \"a\"\nname = \"small\"\nevents_per_s = 1\nburst_events = 2\n",
    );
    let defaults = Limits {
        events: rate_of(1_000, 1_000),
        bytes: None,
    };
    let quotas = Quotas::load(Some(&path), defaults).expect("valid");
    let (small, large, other) = (
        quotas.meter(&caller("a", "small")),
        quotas.meter(&caller("a", "large")),
        quotas.meter(&caller("b", "small")),
    );
    assert_eq!(small.take(2, 100), Ok(()));
    assert_eq!(
        small.take(1, 100).expect_err("spent").quota,
        "principal.events_per_second"
    );
    assert_eq!(large.take(3, 100), Ok(()));
    assert_eq!(large.take(1, 100).expect_err("spent").quota, "tenant.events_per_second");
    assert_eq!(other.take(900, 100), Ok(()));

    // A raised quota counts at once, and so does a file without it; a bad one changes nothing.
    std::fs::write(&path, "[[tenant]]\nname = \"a\"\nevents_per_s = 1000000000\n").expect("write");
    quotas.reload().expect("valid");
    assert!((0..).any(|_| large.take(1, 100).is_ok()));
    std::fs::write(&path, "nonsense").expect("write");
    assert!(quotas.reload().is_err());
    drop((small, large, other));
    while !quotas.buckets.lock().is_empty() {
        quotas.forget_idle();
    }
    std::fs::remove_file(&path).expect("remove");
}

#[test]
fn mistakes_in_the_file_are_named() {
    for (text, word) in [
        ("[[tenant]]\nevents_per_s = 1\n", "name"),
        ("[[tenant]]\nname = \"a\"\nevents = 1\n", "events"),
        ("[[tenant]]\nname = \"a\"\nevents_per_s = 0\n", "0"),
        ("[[tenant]]\nname = \"a\"\nburst_bytes = 1\n", "burst"),
        ("[[tenant]]\nname = \"a\"\n[[tenant]]\nname = \"a\"\n", "twice"),
        ("[[principal]]\nname = \"a\"\n", "no tenant"),
        ("[[tenant]]\nname = \"a\"\ntenant = \"b\"\n", "has a tenant"),
    ] {
        let path = write(text);
        let error = Quotas::load(Some(&path), Limits::default())
            .err()
            .expect(text)
            .to_string();
        assert!(error.contains(word), "{text}: {error}");
        std::fs::remove_file(&path).expect("remove");
    }
}
