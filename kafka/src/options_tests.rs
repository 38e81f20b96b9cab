//! Tests of the options: precedence, and that each mistake is named in one line.

use super::*;

#[derive(Debug, Parser)]
struct Server {
    #[command(flatten)]
    kafka: Kafka,
    #[arg(long, default_value_t = 0.5)]
    score: f64,
    #[arg(long)]
    config: Option<PathBuf>,
    #[arg(long)]
    check_config: bool,
}

fn loaded(args: &[&str]) -> Result<Server, Error> {
    load(["server"].iter().chain(args).map(OsString::from))
}

/// As with a file of this text.
fn with(text: &str, args: &[&str]) -> Result<Server, Error> {
    static FILES: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = FILES.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("sluice-options-{}-{number}.toml", std::process::id()));
    std::fs::write(&path, text).expect("write");
    let loaded = loaded(&[&["--config", path.to_str().expect("text")], args].concat());
    std::fs::remove_file(&path).expect("remove");
    loaded
}

#[test]
fn a_flag_beats_the_file_and_the_file_the_default() {
    let text = "score = 0.4\ntopic_prefix = \"a.\"\nkafka_property = [\"linger.ms=1\", \"client.rack=a\"]\n";
    let server = with(text, &["--topic-prefix", "b."]).expect("loads");
    assert_eq!((server.score, server.kafka.topic_prefix.as_str()), (0.4, "b."));
    assert_eq!(server.kafka.config().extra["client.rack"], "a");
    assert_eq!(server.kafka.kafka, "127.0.0.1:19092");
    assert!(server.config.is_some() && !server.check_config);
}

#[test]
fn mistakes_are_named_in_one_line() {
    for (text, expected) in [
        ("scores = 1", "there is no option scores"),
        ("config = \"x\"", "there is no option config"),
        ("check_config = 1", "there is no option check_config"),
        ("help = true", "there is no option help"),
        ("score = true", "invalid value 'true'"),
        ("score = 2026-01-01", "score is datetime"),
        ("score = [[1]]", "score is array"),
        ("\nscore = ", "line 2: "),
        ("kafka_property = \"acks\"", "NAME=VALUE"),
    ] {
        let error = with(text, &[]).expect_err(text);
        let said = error.to_string();
        assert!(said.contains(expected), "{text}: {said}");
        assert!(matches!(error, Error::Options(_)) || !said.contains('\n'), "{said}");
    }
    let missing = loaded(&["--config", "/does/not/exist"]).expect_err("missing");
    assert!(missing.to_string().contains("/does/not/exist"), "{missing}");
    assert!(loaded(&["--no-such-option"]).is_err());
}
