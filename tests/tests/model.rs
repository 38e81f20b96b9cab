//! The processor's state against the naive model of every feature: random payments in and out of order, of few accounts,
//! over seconds, hours and days. What the state says must be what the model says, to the bit.
//!
//! That a batch which is taken back leaves no trace, and that answers do not depend on where batches end, is tested in the
//! processor itself.

use proptest::prelude::*;
use sluice_processor::backtest::Replay;
use sluice_processor::rules::RuleSet;
use sluice_proto::event::{EventId, PaymentRecord};
use sluice_proto::money::Amount;
use sluice_tests::features::Past;
use uuid::Uuid;

const CASES: u32 = 10_000;
const MAX_PAYMENTS: usize = 60;
const SECOND_US: i64 = 1_000_000;
/// 2026-01-01.
const BEGIN_US: i64 = 1_767_225_600 * SECOND_US;
const LATENESS_S: u32 = 86_400;

#[derive(Clone, Debug)]
struct Draw {
    /// Since the payment before, or behind it where it is negative.
    pause_us: i64,
    account: u8,
    merchant: u8,
    units: i64,
    is_euro: bool,
    device: Option<u8>,
    country: Option<&'static str>,
    point: Option<(f64, f64)>,
}

/// Within a minute, a session, a day, the days that are looked back on, and beyond; now and then behind.
fn pause() -> impl Strategy<Value = i64> {
    prop_oneof![
        4 => 0..90 * SECOND_US,
        4 => 0..1_500 * SECOND_US,
        2 => 0..20_000 * SECOND_US,
        2 => 0..100_000 * SECOND_US,
        1 => 0..700_000 * SECOND_US,
        3 => -1_500 * SECOND_US..0,
        1 => -86_000 * SECOND_US..0,
        // Exactly on a second, so that times are equal now and then.
        2 => (0_i64..3).prop_map(|seconds| seconds * SECOND_US),
    ]
}

prop_compose! {
    fn draw()(
        pause_us in pause(),
        account in 0_u8..3,
        merchant in 0_u8..3,
        units in 1_i64..1_000,
        is_euro in prop::bool::weighted(0.8),
        device in prop::option::of(0_u8..9),
        country in prop::option::of(prop::sample::select(vec!["FR", "DE", "JP"])),
        point in prop::option::of((-80.0..80.0, -170.0..170.0)),
    ) -> Draw {
        Draw { pause_us, account, merchant, units, is_euro, device, country, point }
    }
}

fn payment(number: usize, time: i64, draw: &Draw) -> PaymentRecord {
    PaymentRecord {
        event_id: EventId::new(Uuid::from_u128(number as u128 + 1)),
        tenant: "acme".to_owned(),
        account_id: format!("account-{}", draw.account),
        amount: Amount::from_ten_thousandths(draw.units * 2_500),
        currency: if draw.is_euro { "EUR" } else { "USD" }.to_owned(),
        occurred_at: time,
        merchant_id: format!("merchant-{}", draw.merchant),
        merchant_category: None,
        terminal_id: None,
        method: "CARD_PRESENT".to_owned(),
        device_id: draw.device.map(|device| format!("device-{device}")),
        country: draw.country.map(str::to_owned),
        place: None,
        latitude: draw.point.map(|point| point.0),
        longitude: draw.point.map(|point| point.1),
        traceparent: None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn the_state_says_what_the_model_says(draws in prop::collection::vec(draw(), 1..MAX_PAYMENTS)) {
        let mut state = Replay::new(RuleSet::built_in(), LATENESS_S);
        let mut model = Past::default();
        let (mut time, mut newest) = (BEGIN_US, i64::MIN);
        for (number, draw) in draws.iter().enumerate() {
            time += draw.pause_us;
            let payment = payment(number, time, draw);
            let at = (0, number as i64);
            let is_late = time < newest.saturating_sub(i64::from(LATENESS_S) * SECOND_US);
            newest = newest.max(time);
            let expected = (!is_late).then(|| model.take(&payment, at));
            prop_assert_eq!(state.observe(&payment, at), expected);
        }
    }
}
