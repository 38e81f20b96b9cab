//! Tests of the state: windows, lateness, duplicates, expiry, and that taking a batch back restores it exactly.

use proptest::prelude::*;
use sluice_proto::event::PaymentRecord;
use sluice_proto::money::Amount;

use super::*;
use crate::testing::{SECOND, T0, event_id, payment};

const MINUTE: i64 = 60 * SECOND;

pub(super) fn state() -> State {
    State::new(10 * MINUTE, RuleSet::built_in())
}

fn at(id: u32, time: i64) -> PaymentRecord {
    PaymentRecord {
        event_id: event_id(id),
        occurred_at: T0 + time,
        ..payment()
    }
}

pub(super) fn observe(state: &mut State, payment: &PaymentRecord) -> Observed {
    state.observe(payment, i64::MAX)
}

fn recent(observed: Observed) -> usize {
    match observed {
        Observed::Fresh(features) => features.recent_payments,
        other => panic!("{other:?} is not fresh"),
    }
}

#[test]
fn payments_are_counted_by_their_own_time() {
    let mut state = state();
    for (id, second, expected) in [(1, 0, 1), (2, 30, 2), (3, 59, 3), (4, 60, 3), (5, 45, 3), (6, 61, 5)] {
        let count = recent(observe(&mut state, &at(id, second * SECOND)));
        assert_eq!(count, expected, "payment {id} at {second} s");
    }
}

#[test]
fn accounts_of_two_tenants_have_nothing_in_common() {
    let mut state = state();
    assert_eq!(recent(observe(&mut state, &at(1, 0))), 1);
    let other = PaymentRecord {
        tenant: "other".to_owned(),
        ..at(1, 0)
    };
    assert_eq!(
        recent(observe(&mut state, &other)),
        1,
        "the same event_id and account of another tenant"
    );
}

#[test]
fn a_repeated_payment_is_a_duplicate_and_leaves_no_trace() {
    let mut state = state();
    observe(&mut state, &at(1, 0));
    state.merge();
    assert_eq!(observe(&mut state, &at(1, 0)), Observed::Duplicate);
    assert_eq!(observe(&mut state, &at(1, 9 * MINUTE)), Observed::Conflict);
    assert_eq!(
        recent(observe(&mut state, &at(2, 1))),
        2,
        "stream time did not move and nothing was counted"
    );
}

#[test]
fn another_payment_with_the_same_id_is_a_conflict_and_leaves_no_trace() {
    let mut state = state();
    let first = at(1, 0);
    observe(&mut state, &first);
    state.merge();
    let before = contents(&state);
    let others = [
        PaymentRecord {
            amount: Amount::from_ten_thousandths(1),
            ..first.clone()
        },
        PaymentRecord {
            account_id: "another".to_owned(),
            ..first.clone()
        },
        PaymentRecord {
            merchant_id: "another".to_owned(),
            ..first.clone()
        },
        PaymentRecord {
            currency: "USD".to_owned(),
            ..first.clone()
        },
    ];
    for other in others {
        assert_eq!(observe(&mut state, &other), Observed::Conflict);
    }
    // What the gateway may have masked meanwhile is no other content.
    let masked = PaymentRecord {
        device_id: Some("****1234".to_owned()),
        ..first
    };
    assert_eq!(observe(&mut state, &masked), Observed::Duplicate);
    assert_eq!(contents(&state), before);
}

#[test]
fn a_remembered_payment_takes_32_bytes() {
    assert_eq!(size_of::<(Key, Seen)>(), 32);
    for time in [0, -1, T0, i64::MIN, i64::MAX] {
        assert_eq!(Seen::new(time, 7).time(), time);
    }
}

#[test]
fn a_duplicate_is_forgotten_exactly_when_it_would_be_late() {
    let mut state = state();
    observe(&mut state, &at(1, 0));
    observe(&mut state, &at(2, 10 * MINUTE));
    assert_eq!(observe(&mut state, &at(1, 0)), Observed::Duplicate);
    observe(&mut state, &at(3, 10 * MINUTE + 1));
    let behind_us = 10 * MINUTE + 1;
    assert_eq!(observe(&mut state, &at(1, 0)), Observed::Late { behind_us });
    let reused = observe(&mut state, &at(1, 10 * MINUTE));
    assert!(matches!(reused, Observed::Fresh(_)), "whether it was swept out or not");
}

#[test]
fn a_late_payment_leaves_no_trace() {
    let mut state = state();
    observe(&mut state, &at(1, 20 * MINUTE));
    let behind_us = 10 * MINUTE + 1;
    assert_eq!(
        observe(&mut state, &at(2, 10 * MINUTE - 1)),
        Observed::Late { behind_us }
    );
    assert_eq!(recent(observe(&mut state, &at(3, 10 * MINUTE))), 1);
}

#[test]
fn stream_time_does_not_run_ahead_of_the_log() {
    let mut state = state();
    state.observe(&at(1, 15 * MINUTE), T0);
    assert!(matches!(state.observe(&at(2, 0), T0), Observed::Fresh(_)));
}

#[test]
fn what_is_old_is_swept_out() {
    let mut state = state();
    for id in 0..100 {
        let record = PaymentRecord {
            account_id: format!("account-{id}"),
            ..at(id, 0)
        };
        observe(&mut state, &record);
    }
    state.merge();
    let sizes = |payments, accounts, merchants| Sizes {
        payments,
        accounts,
        merchants,
    };
    assert_eq!(state.sizes(), sizes(100, 100, 1));
    observe(&mut state, &at(200, 11 * MINUTE));
    state.merge();
    assert_eq!(
        state.sizes(),
        sizes(1, 100, 1),
        "payments go after the allowed lateness"
    );
    let elsewhere = PaymentRecord {
        merchant_id: "merchant-2".to_owned(),
        ..at(201, 7 * DAY_US)
    };
    observe(&mut state, &elsewhere);
    state.merge();
    assert_eq!(
        state.sizes(),
        sizes(1, 1, 1),
        "accounts and merchants go when no feature looks back so far"
    );
}

/// What a sweep forgets is nothing that a feature depends on: a state that never swept says the same.
#[test]
fn an_account_that_comes_back_after_it_was_forgotten_is_a_new_one() {
    let device = |device: &str, payment: PaymentRecord| PaymentRecord {
        device_id: Some(device.to_owned()),
        ..payment
    };
    let (mut swept, mut unswept) = (state(), state());
    for state in [&mut swept, &mut unswept] {
        for id in 0..4 {
            observe(state, &device("phone", at(id, i64::from(id) * DAY_US)));
        }
    }
    swept.merge();
    for (id, day) in [(10, 4), (11, 6), (12, 9), (13, 15), (14, 15)] {
        let payment = device("tablet", at(id, day * DAY_US + 12 * 60 * MINUTE));
        assert_eq!(
            observe(&mut swept, &payment),
            observe(&mut unswept, &payment),
            "day {day}"
        );
        swept.merge();
    }
}

fn rules(window_s: u32) -> Arc<RuleSet> {
    let document = crate::rules::BUILT_IN.replace(
        "window_s: 60\n  contribution: 0.5",
        &format!("window_s: {window_s}\n  contribution: 0.5"),
    );
    Arc::new(RuleSet::parse(&document).expect("a rule set"))
}

#[test]
fn a_rule_set_is_taken_back_with_its_batch() {
    let mut state = state();
    let versions = [
        rules(100).version(),
        rules(200).version(),
        RuleSet::built_in().version(),
    ];
    let [first, second, built_in] = versions;
    state.apply(rules(100));
    state.apply(rules(200));
    assert_eq!(state.rules().version(), second);
    state.revert();
    assert_eq!(state.rules().version(), built_in);
    state.apply(rules(100));
    state.merge();
    state.revert();
    assert_eq!(state.rules().version(), first);
}

#[test]
fn a_rule_set_looks_back_on_payments_from_before_it() {
    let mut state = state();
    for id in 0..4 {
        observe(&mut state, &at(id, i64::from(id) * MINUTE));
        state.merge();
    }
    state.apply(rules(300));
    assert_eq!(recent(observe(&mut state, &at(9, 4 * MINUTE))), 5);
}

/// Everything that a later answer can depend on.
pub(super) fn contents(state: &State) -> impl PartialEq + std::fmt::Debug + use<> {
    let mut seen: Vec<_> = state.seen.iter().map(|(key, time)| (*key, *time)).collect();
    seen.sort_unstable();
    let mut accounts: Vec<_> = state
        .accounts
        .iter()
        .map(|(key, account)| (key.clone(), format!("{account:?}")))
        .collect();
    accounts.sort_unstable();
    let mut merchants: Vec<_> = state
        .merchants
        .iter()
        .map(|(key, merchant)| (key.clone(), *merchant))
        .collect();
    merchants.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    (state.stream_time, seen, accounts, merchants)
}

/// Minutes, hours and days all get their turn.
fn any_time() -> impl Strategy<Value = i64> {
    prop_oneof![0_i64..1_500, 0_i64..20_000, 0_i64..900_000]
}

prop_compose! {
    pub(super) fn any_payment()(
        id in 0_u32..40,
        (account, merchant) in (0_u32..4, 0_u32..3),
        time in any_time(),
        units in 1_i64..1_000,
        currency in prop::sample::select(vec!["EUR", "USD"]),
        device in prop::option::of(0_u32..8),
        country in prop::option::of(prop::sample::select(vec!["FR", "DE", "JP"])),
        place in prop::option::of(0_u32..3),
        point in prop::option::of((-80.0..80.0, -170.0..170.0)),
    ) -> PaymentRecord {
        PaymentRecord {
            account_id: format!("account-{account}"),
            merchant_id: format!("merchant-{merchant}"),
            amount: Amount::from_ten_thousandths(units * 10_000),
            currency: currency.to_owned(),
            device_id: device.map(|device| format!("device-{device}")),
            country: country.map(str::to_owned),
            place: place.map(|place| format!("place-{place}")),
            latitude: point.map(|point: (f64, f64)| point.0),
            longitude: point.map(|point| point.1),
            ..at(id, time * SECOND)
        }
    }
}

/// Payments in the order in which most of them occurred, or in none.
fn payments(most: usize) -> impl Strategy<Value = Vec<PaymentRecord>> {
    let unsorted = prop::collection::vec(any_payment(), 0..most);
    (unsorted, any::<bool>()).prop_map(|(mut payments, sorted)| {
        if sorted {
            payments.sort_by_key(|payment| payment.occurred_at);
        }
        payments
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn taking_a_batch_back_restores_the_state(
        merged in payments(60),
        taken_back in payments(60),
        later in payments(60),
    ) {
        let mut state = state();
        let mut untouched = self::state();
        for payment in &merged {
            observe(&mut state, payment);
            observe(&mut untouched, payment);
        }
        state.merge();
        untouched.merge();
        let first: Vec<_> = taken_back.iter().map(|payment| observe(&mut state, payment)).collect();
        state.revert();
        let again: Vec<_> = taken_back.iter().map(|payment| observe(&mut state, payment)).collect();
        prop_assert_eq!(first, again, "the same batch gives the same answers");
        state.revert();
        for payment in &later {
            prop_assert_eq!(observe(&mut state, payment), observe(&mut untouched, payment));
        }
        state.merge();
        untouched.merge();
        // Windows may differ in what was forgotten early, but never in what can still be counted.
        prop_assert_eq!(state.sizes(), untouched.sizes());
        prop_assert_eq!(state.stream_time, untouched.stream_time);
    }

    #[test]
    fn taking_back_leaves_the_contents_as_they_were(batch in payments(60)) {
        let mut state = state();
        observe(&mut state, &at(1_000, 0));
        state.merge();
        let before = contents(&state);
        for payment in &batch {
            observe(&mut state, payment);
        }
        state.revert();
        prop_assert_eq!(contents(&state), before);
    }

    #[test]
    fn answers_do_not_depend_on_where_batches_end(
        payments in payments(120),
        length in 1_usize..20,
        switch_at in 0_usize..120,
    ) {
        let (mut one_by_one, mut batched) = (state(), state());
        let other = rules(300);
        let mut index = 0;
        for batch in payments.chunks(length) {
            for payment in batch {
                if index == switch_at {
                    one_by_one.apply(other.clone());
                    batched.apply(other.clone());
                }
                index += 1;
                let single = observe(&mut one_by_one, payment);
                one_by_one.merge();
                prop_assert_eq!(single, observe(&mut batched, payment));
            }
            batched.merge();
        }
    }
}
