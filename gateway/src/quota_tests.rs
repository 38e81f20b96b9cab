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

fn write(text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("sluice-quotas-{}", uuid::Uuid::new_v4()));
    std::fs::write(&path, text).expect("write");
    path
}

fn caller(tenant: &str, name: &str) -> Caller {
    Caller {
        tenant: tenant.into(),
        name: name.into(),
        roles: Role::USUAL.into(),
        topics: None,
        expires: None,
        revoked: CancellationToken::new(),
    }
}

fn pay(meter: &Meter, events: u64) -> Result<(), Spent> {
    meter.pay(&mut Due::of(events, 100))
}

#[test]
fn what_has_no_bound_is_never_spent() {
    let quotas = Quotas::load(None, Limits::default()).expect("valid");
    let meter = quotas.meter(&caller("a", "b"));
    assert_eq!(meter.pay(&mut Due::of(u64::MAX, u64::MAX)), Ok(()));
}

#[test]
fn what_is_paid_stays_paid_while_the_rest_is_waited_for() {
    let limits = Limits {
        events: rate_of(1, 10),
        bytes: rate_of(1, 1_600),
    };
    let meter = Quotas::load(None, limits).expect("valid").meter(&caller("a", "b"));
    let mut due = Due::of(5, 2_100);
    let spent = meter.pay(&mut due).expect_err("more bytes than a burst");
    assert_eq!(
        (spent.quota, due),
        ("tenant.bytes_per_second", Due([[0, 500], [5, 2_100]]))
    );
    let mut more = Due::of(5, 0);
    assert_eq!(meter.pay(&mut more), Ok(()), "the events were paid once");
    assert_eq!(pay(&meter, 1).expect_err("spent").quota, "tenant.events_per_second");
}

#[test]
fn a_refused_call_uses_nothing_up() {
    let text = "[[principal]]\ntenant = \"a\"\nname = \"b\"\nevents_per_s = 1\nburst_events = 2\n";
    let path = write(text);
    let limits = Limits {
        events: rate_of(1, 10),
        bytes: rate_of(1, 1_600),
    };
    let quotas = Quotas::load(Some(&path), limits).expect("valid");
    let meter = quotas.meter(&caller("a", "b"));
    for _try in 0..20 {
        let spent = meter.pay_for_one(2_100).expect_err("more bytes than a burst");
        assert_eq!(spent.quota, "tenant.bytes_per_second");
    }
    assert_eq!(meter.pay(&mut Due::of(2, 1_600)), Ok(()));
    std::fs::remove_file(&path).expect("remove");
}

#[test]
fn a_call_with_more_than_a_burst_is_paid_for_after_some_tries() {
    let limits = Limits {
        events: None,
        bytes: rate_of(1_000_000, 1_600),
    };
    let quotas = Quotas::load(None, limits).expect("valid");
    quotas.gateways().store(2, Ordering::Relaxed);
    let meter = quotas.meter(&caller("a", "b"));
    assert!(meter.pay_for_one(MAX_EVENT_BYTES).is_err());
    assert!((0..).any(|_| meter.pay_for_one(MAX_EVENT_BYTES).is_ok()));
}

#[test]
fn another_gateway_leaves_a_share_of_what_was_left() {
    let limits = Limits {
        events: rate_of(1, 100),
        bytes: None,
    };
    let quotas = Quotas::load(None, limits).expect("valid");
    let meter = quotas.meter(&caller("a", "b"));
    assert_eq!(pay(&meter, 60), Ok(()));
    quotas.gateways().store(2, Ordering::Relaxed);
    assert_eq!(pay(&meter, 19), Ok(()));
    assert!(pay(&meter, 3).is_err(), "four tenths of a half is twenty");
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
    assert_eq!(pay(&small, 2), Ok(()));
    assert_eq!(pay(&small, 1).expect_err("spent").quota, "principal.events_per_second");
    assert_eq!(pay(&large, 3), Ok(()));
    assert_eq!(pay(&large, 1).expect_err("spent").quota, "tenant.events_per_second");
    assert_eq!(pay(&other, 900), Ok(()));

    // A raised quota counts at once, and so does a file without it; a bad one changes nothing.
    std::fs::write(&path, "[[tenant]]\nname = \"a\"\nevents_per_s = 1000000000\n").expect("write");
    quotas.reload().expect("valid");
    assert!((0..).any(|_| pay(&large, 1).is_ok()));
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
