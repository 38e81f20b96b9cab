//! What is left at the end is there, and an image is taken for what it holds.

use prometheus_client::registry::Registry;

use super::*;

const LATENESS_US: i64 = 600_000_000;
const PARTITION: i32 = 3;

fn state() -> State {
    State::new(LATENESS_US, RuleSet::built_in())
}

#[test]
fn an_image_that_ends_elsewhere_than_its_name_says_is_refused() {
    let origin = Origin {
        cluster: "cluster".to_owned(),
        topic: "payments".to_owned(),
        partition: PARTITION,
    };
    let image = state().image(origin.clone(), 17, 0).expect("encodes").seal();
    let told = |_next| Some(RuleSet::built_in());
    for within in [0..=17, 17..=17, 17..=20] {
        let replayed = restored(&image, &origin, LATENESS_US, &within, told);
        assert_eq!(replayed.expect("it fits").next, 17);
    }
    for within in [0..=16, 18..=20] {
        let refused = restored(&image, &origin, LATENESS_US, &within, told).err();
        assert!(matches!(refused, Some(Error::Offset(17))), "{within:?}: {refused:?}");
    }
}

/// Kafka does not answer, so that images wait behind the first one.
#[test]
fn the_last_state_is_left_whether_it_was_handed_over_or_found_no_room() {
    let directory = std::env::temp_dir().join(format!("sluice-snapshots-{}", uuid::Uuid::new_v4()));
    let options = Options {
        directory: Some(directory.clone()),
        interval: Duration::ZERO,
        lateness_us: LATENESS_US,
    };
    let kafka = Config {
        bootstrap_servers: "127.0.0.1:1".to_owned(),
        ..Config::default()
    };
    let metrics = Metrics::register(&mut Registry::default());
    let cluster = "cluster".to_owned();
    let snapshots = Snapshots::start(&options, &kafka, &Topics::new(""), cluster, &metrics).expect("starts");
    let mut due = Due::first(Instant::now());
    let found_no_room = (1..=5).find(|next| {
        snapshots.offer(&mut due, PARTITION, *next, &state());
        due.next != *next
    });
    let found_no_room = found_no_room.expect("nothing is written, and yet there is always room");
    for next in [due.next, found_no_room] {
        snapshots.leave(&due, PARTITION, next, &state());
        let files = snapshots.files.as_ref().expect("there is a directory");
        assert!(files.hold(PARTITION, next), "the snapshot at {next} is not left");
    }
    // The thread may be writing there still.
    drop(fs::remove_dir_all(directory));
}
