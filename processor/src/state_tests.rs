//! Tests of the state: windows, lateness, duplicates, expiry, and that taking a batch back restores it exactly.

use proptest::prelude::*;
use sluice_proto::event::PaymentRecord;

use super::*;
use crate::config::Thresholds;
use crate::rules::horizons;
use crate::testing::{SECOND, T0, event_id, payment};

const MINUTE: i64 = 60 * SECOND;

fn state() -> State {
    State::new(horizons(&Thresholds::default()))
}

fn at(id: u32, time: i64) -> PaymentRecord {
    PaymentRecord {
        event_id: event_id(id),
        occurred_at: T0 + time,
        ..payment()
    }
}

fn observe(state: &mut State, payment: &PaymentRecord) -> Observed {
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
    assert_eq!(observe(&mut state, &at(1, 9 * MINUTE)), Observed::Duplicate);
    assert_eq!(
        recent(observe(&mut state, &at(2, 1))),
        2,
        "stream time did not move and nothing was counted"
    );
}

#[test]
fn a_duplicate_is_forgotten_exactly_when_it_would_be_late() {
    let mut state = state();
    observe(&mut state, &at(1, 0));
    observe(&mut state, &at(2, 10 * MINUTE));
    assert_eq!(observe(&mut state, &at(1, 0)), Observed::Duplicate);
    observe(&mut state, &at(3, 10 * MINUTE + 1));
    assert_eq!(observe(&mut state, &at(1, 0)), Observed::Late);
    let reused = observe(&mut state, &at(1, 10 * MINUTE));
    assert!(matches!(reused, Observed::Fresh(_)), "whether it was swept out or not");
}

#[test]
fn a_late_payment_leaves_no_trace() {
    let mut state = state();
    observe(&mut state, &at(1, 20 * MINUTE));
    assert_eq!(observe(&mut state, &at(2, 10 * MINUTE - 1)), Observed::Late);
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
    assert_eq!(state.sizes(), (100, 100));
    observe(&mut state, &at(200, 11 * MINUTE));
    state.merge();
    assert_eq!(state.sizes(), (1, 100), "payments go after the allowed lateness");
    observe(&mut state, &at(201, 21 * 60 * MINUTE));
    state.merge();
    assert_eq!(state.sizes(), (1, 1), "accounts go when no journey could take so long");
}

/// Everything that a later answer can depend on.
fn contents(state: &State) -> impl PartialEq + std::fmt::Debug + use<> {
    let mut seen: Vec<_> = state.seen.iter().map(|(key, time)| (*key, *time)).collect();
    seen.sort_unstable();
    let mut accounts: Vec<_> = state
        .accounts
        .iter()
        .map(|(key, account)| (key.clone(), format!("{account:?}")))
        .collect();
    accounts.sort_unstable();
    (state.stream_time, seen, accounts)
}

prop_compose! {
    fn any_payment()(
        id in 0_u32..40,
        account in 0_u32..4,
        time in 0_i64..1_500,
        place in prop::option::of(0_u32..3),
        point in prop::option::of((-80.0..80.0, -170.0..170.0)),
    ) -> PaymentRecord {
        PaymentRecord {
            account_id: format!("account-{account}"),
            place: place.map(|place| format!("place-{place}")),
            latitude: point.map(|point: (f64, f64)| point.0),
            longitude: point.map(|point| point.1),
            ..at(id, time * SECOND)
        }
    }
}

proptest! {
    #[test]
    fn taking_a_batch_back_restores_the_state(
        merged in prop::collection::vec(any_payment(), 0..60),
        taken_back in prop::collection::vec(any_payment(), 0..60),
        later in prop::collection::vec(any_payment(), 0..60),
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
    fn taking_back_leaves_the_contents_as_they_were(batch in prop::collection::vec(any_payment(), 0..60)) {
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
        payments in prop::collection::vec(any_payment(), 0..120),
        length in 1_usize..20,
    ) {
        let (mut one_by_one, mut batched) = (state(), state());
        for batch in payments.chunks(length) {
            for payment in batch {
                let single = observe(&mut one_by_one, payment);
                one_by_one.merge();
                prop_assert_eq!(single, observe(&mut batched, payment));
            }
            batched.merge();
        }
    }
}
