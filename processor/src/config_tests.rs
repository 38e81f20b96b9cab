//! Tests of the options: precedence, unknown keys, and what is refused before anything starts.

use std::ffi::OsString;
use std::io::Write;

use clap::CommandFactory;

use super::*;

fn parse(arguments: &[&str]) -> Result<Config, Error> {
    let arguments = ["sluice-processor"].iter().chain(arguments).map(OsString::from);
    let config = file::parse(arguments.collect::<Vec<_>>().into_iter())?;
    config.validate()?;
    Ok(config)
}

fn file(name: &str, text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("sluice-processor-{}-{name}.toml", std::process::id()));
    let mut file = std::fs::File::create(&path).expect("file");
    file.write_all(text.as_bytes()).expect("written");
    path
}

fn with_file(name: &str, text: &str, arguments: &[&str]) -> Result<Config, Error> {
    let path = file(name, text);
    let mut all = vec!["--config", path.to_str().expect("path")];
    all.extend(arguments);
    let parsed = parse(&all);
    std::fs::remove_file(&path).expect("removed");
    parsed
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
fn a_flag_goes_before_the_file_and_the_file_before_the_default() {
    let text = "lanes = 3\nreview_score = 0.4\ntopic_prefix = \"a.\"\nkafka_property = [\"client.rack=r1\"]\n";
    let config = with_file("order", text, &["--lanes", "4"]).expect("valid");
    assert_eq!((config.lanes, config.thresholds.review_score), (4, 0.4));
    assert_eq!(config.thresholds.decline_score, 0.75);
    assert_eq!(config.group_name(), "a.sluice-processor");
    assert_eq!(config.kafka().extra["client.rack"], "r1");
}

#[test]
fn what_is_unknown_in_the_file_is_an_error() {
    for (name, text, expected) in [
        ("unknown", "lane = 3", "there is no option lane"),
        ("nested", "check_config = 1", "there is no option check_config"),
        ("type", "lanes = [[1]]", "neither text nor a number"),
        ("syntax", "lanes =", ""),
    ] {
        let error = with_file(name, text, &[]).expect_err(name).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn values_that_cannot_work_are_refused() {
    for arguments in [
        ["--lanes", "0"],
        ["--lanes", "65"],
        ["--decline-score", "0.3"],
        ["--late-contribution", "1.5"],
        ["--allowed-lateness-s", "0"],
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
fn a_lane_keeps_its_transactional_id() {
    let config = parse(&["--instance", "a", "--topic-prefix", "p."]).expect("valid");
    assert_eq!(config.transactional_id(1), "p.sluice-processor-a-lane-1");
}
