//! A state comes back from its image as it was, and from nothing else.

use proptest::prelude::*;
use sluice_proto::event::PaymentRecord;

use super::*;
use crate::state::tests::{any_payment, contents, observe, state};
use crate::testing::payment;

fn origin() -> Origin {
    Origin {
        cluster: "cluster".to_owned(),
        topic: "payments".to_owned(),
        partition: 3,
    }
}

fn sealed(state: &State) -> Vec<u8> {
    state.image(origin(), 17, 0).expect("encodes").seal()
}

fn restored(image: &[u8]) -> Result<(State, i64), Error> {
    State::from_image(image, &origin(), state().lateness_us, |_next| Some(RuleSet::built_in()))
}

#[test]
fn another_origin_or_configuration_is_refused() {
    let image = sealed(&state());
    let elsewhere = Origin {
        partition: 4,
        ..origin()
    };
    let built_in = |_next| Some(RuleSet::built_in());
    let lateness_us = state().lateness_us;
    let refused = State::from_image(&image, &elsewhere, lateness_us, built_in).expect_err("another partition");
    assert!(matches!(refused, Error::Origin { partition: 3, .. }), "{refused}");
    let refused = State::from_image(&image, &origin(), lateness_us + 1, built_in).expect_err("another lateness");
    assert_eq!(refused, Error::Lateness(lateness_us));
    let refused = State::from_image(&image, &origin(), lateness_us, |_next| None).expect_err("unknown rules");
    assert!(matches!(refused, Error::Rules(_)), "{refused}");
}

#[test]
fn another_version_is_named() {
    let mut image = sealed(&state());
    image[MAGIC.len()] += 1;
    assert_eq!(
        restored(&image).expect_err("a newer version"),
        Error::Version(VERSION + 1)
    );
}

/// Another value means that images of this version would be read wrongly: count [`VERSION`] up, and write the new value here.
#[test]
fn the_encoding_changes_only_with_the_version() {
    let mut state = state();
    let payment = PaymentRecord {
        place: Some("Paris".to_owned()),
        country: Some("FR".to_owned()),
        latitude: Some(48.85),
        longitude: Some(2.35),
        ..payment()
    };
    observe(&mut state, &payment);
    state.merge();
    let header = Header {
        origin: origin(),
        next: 1,
        lateness_us: 2,
        rules: "rules".to_owned(),
        stream_time: 3,
        swept_seen_at: 4,
        swept_past_at: 5,
        seen: 6,
        accounts: 7,
        merchants: 8,
    };
    let account = state.accounts.iter().next().expect("an account");
    let merchant = state.merchants.iter().next().expect("a merchant");
    let seen: (&Key, &Seen) = (&(9, [10; 16]), &Seen::new(11, 12));
    let encoded = postcard::to_allocvec(&(header, seen, account, merchant)).expect("encodes");
    assert_eq!((VERSION, crc32fast::hash(&encoded)), (3, 0x3d77_3ec8));
}

proptest! {
    #[test]
    fn what_comes_back_is_the_same_and_goes_on_the_same(
        before in prop::collection::vec(any_payment(), 0..60),
        after in prop::collection::vec(any_payment(), 0..60),
    ) {
        let mut state = state();
        for payment in &before {
            observe(&mut state, payment);
            state.merge();
        }
        let (mut restored, next) = restored(&sealed(&state)).expect("restores");
        prop_assert_eq!(next, 17);
        prop_assert_eq!(contents(&restored), contents(&state));
        for payment in &after {
            prop_assert_eq!(observe(&mut restored, payment), observe(&mut state, payment));
            state.merge();
            restored.merge();
        }
        prop_assert_eq!(contents(&restored), contents(&state));
    }

    #[test]
    fn damage_is_found(
        payments in prop::collection::vec(any_payment(), 0..20),
        place in any::<prop::sample::Index>(),
        change in 1_u8..,
    ) {
        let mut state = state();
        for payment in &payments {
            observe(&mut state, payment);
            state.merge();
        }
        let whole = sealed(&state);
        let mut damaged = whole.clone();
        damaged[place.index(whole.len())] ^= change;
        prop_assert!(restored(&damaged).is_err());
        prop_assert!(restored(&whole[..place.index(whole.len())]).is_err());
    }
}
