//! Tests of the options: what is refused before anything starts.

use std::ffi::OsString;

use clap::CommandFactory;

use super::*;

fn parse(arguments: &[&str]) -> Result<Config, Error> {
    let arguments = ["sluice-processor"].iter().chain(arguments).map(OsString::from);
    let config = options::load::<Config>(arguments)?;
    config.validate()?;
    Ok(config)
}

#[test]
fn clap_accepts_its_own_declaration() {
    Config::command().debug_assert();
}

#[test]
fn every_option_explains_itself() {
    for arg in Config::command().get_arguments() {
        assert!(arg.get_help().is_some(), "{}", arg.get_id());
    }
}

#[test]
fn values_that_cannot_work_are_refused() {
    for arguments in [
        ["--lanes", "0"],
        ["--lanes", "65"],
        ["--rules", "/no/such/file"],
        ["--rules", "/dev/null"],
        ["--allowed-lateness-s", "0"],
        ["--rail", "ftp://rail"],
        ["--rail-timeout-ms", "10"],
        ["--rail-breaker-open-ms", "1"],
        ["--review-deadline-s", "0"],
        ["--review-at-deadline", "forget"],
        ["--postgres", "mysql://x"],
        ["--registry", "127.0.0.1"],
        ["--instance", "a b"],
        ["--kafka-property", "acks"],
        ["--kafka-property", "acks=1"],
        ["--kafka-property", "no.such=1"],
        ["--kafka", ""],
    ] {
        assert!(parse(&arguments).is_err(), "{arguments:?}");
    }
}

#[test]
fn features_are_written_where_they_are_asked_for() {
    assert!(!parse(&[]).expect("valid").features);
    assert!(parse(&["--features", "true"]).expect("valid").features);
}

#[test]
fn a_lane_keeps_its_transactional_id() {
    let config = parse(&["--instance", "a", "--topic-prefix", "p."]).expect("valid");
    assert_eq!(config.transactional_id(1), "p.sluice-processor-a-lane-1");
}

#[test]
fn the_saga_needs_a_rail_and_nothing_else() {
    assert_eq!(parse(&[]).expect("valid").rail, None);
    let config = parse(&["--rail", "http://rail:7000", "--review-at-deadline", "capture"]).expect("valid");
    assert_eq!(config.review_at_deadline, AtDeadline::Capture);
}

#[test]
fn money_is_moved_with_a_ledger_only() {
    assert!(!parse(&["--postgres", "none"]).expect("valid").has_ledger());
    assert!(parse(&["--postgres", "none", "--rail", "http://rail:7000"]).is_err());
}
