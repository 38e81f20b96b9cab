//! Tests of rule sets: what a document may say, and what its rules make of a payment.

use sluice_proto::money::Amount;

use super::*;
use crate::testing::payment;
use crate::whereabouts::Move;

fn judge(rules: &RuleSet, payment: &PaymentRecord, features: &Features) -> Verdict {
    rules.judge(payment, features, &mut Aside::default())
}

fn ids(verdict: &Verdict) -> Vec<&str> {
    verdict.reasons.iter().map(|reason| &*reason.rule_id).collect()
}

fn large() -> PaymentRecord {
    PaymentRecord {
        amount: Amount::from_ten_thousandths(200_000_000),
        ..payment()
    }
}

fn moved() -> Option<Move> {
    Some(Move {
        from: "Paris".to_owned(),
        to: "Tokyo".to_owned(),
        elapsed_us: 5_000_000,
    })
}

/// A document with no built-in rule but the one that there must be, and with these lines.
fn with(lines: &str) -> String {
    format!("version: test\noutcomes: {{review: 0.5, decline: 0.75}}\nlate_event: {{contribution: 0.1}}\n{lines}")
}

fn parse(lines: &str) -> RuleSet {
    RuleSet::parse(&with(lines)).expect("a rule set")
}

#[test]
fn an_ordinary_payment_is_approved_without_reasons() {
    let features = Features {
        recent_payments: 1,
        ..Features::default()
    };
    let verdict = judge(&RuleSet::built_in(), &payment(), &features);
    assert_eq!((verdict.outcome, verdict.score), (Outcome::Approve, 0.0));
    assert!(verdict.reasons.is_empty() && !verdict.late);
}

#[test]
fn one_rule_is_reviewed_and_several_are_declined() {
    let rules = RuleSet::built_in();
    let one = judge(&rules, &large(), &Features::default());
    assert_eq!((one.outcome, ids(&one)), (Outcome::Review, vec!["LARGE_AMOUNT"]));
    let features = Features {
        recent_payments: 6,
        moved: moved(),
        ..Features::default()
    };
    let all = judge(&rules, &large(), &features);
    assert_eq!(ids(&all), ["LARGE_AMOUNT", "HIGH_FREQUENCY", "IMPOSSIBLE_TRAVEL"]);
    assert_eq!(all.outcome, Outcome::Decline);
    assert!((all.score - 0.96).abs() < 1e-9, "{}", all.score);
}

#[test]
fn a_late_payment_is_at_least_reviewed() {
    let aside = &mut Aside::default();
    let verdict = parse("").judge_late(&payment(), 601_500_000, aside);
    assert_eq!((verdict.outcome, ids(&verdict)), (Outcome::Review, vec!["LATE_EVENT"]));
    assert_eq!(verdict.reasons[0].detail, "601.5 s behind the partition's stream time");
    assert!(verdict.late);
    let large = RuleSet::built_in().judge_late(&large(), 1, aside);
    assert_eq!(large.outcome, Outcome::Decline);
}

#[test]
fn an_expression_fires_with_the_values_that_it_saw() {
    let rules = parse(
        "expressions:\n  - id: NEW_DEVICE\n    version: \"2\"\n    when: features.new_device && payment.amount > 10\n    \
         contribution: 0.4\n",
    );
    let features = Features {
        new_device: true,
        ..Features::default()
    };
    let verdict = judge(&rules, &payment(), &features);
    assert_eq!((ids(&verdict), verdict.score), (vec!["NEW_DEVICE"], 0.4));
    assert_eq!(
        (&*verdict.reasons[0].rule_version, verdict.reasons[0].detail.as_str()),
        ("2", "features.new_device = true, payment.amount = 12.5")
    );
    assert!(judge(&rules, &payment(), &Features::default()).reasons.is_empty());
}

#[test]
fn a_late_payment_is_judged_by_expressions_without_history() {
    let rules = parse(
        "expressions:\n  - {id: A, when: payment.amount > 1.0, contribution: 0.1}\n  \
         - {id: B, when: features.payments_1m == 0, contribution: 0.1}\n",
    );
    let verdict = rules.judge_late(&payment(), 1, &mut Aside::default());
    assert_eq!(ids(&verdict), ["LATE_EVENT", "A"]);
}

#[test]
fn a_shadowed_rule_is_counted_and_changes_nothing() {
    let rules = parse(
        "large_amount: {over_units: 10, contribution: 0.6, shadow: true}\nexpressions:\n  \
         - {id: SHADOW, when: 'true', contribution: 0.9, shadow: true}\n",
    );
    let mut aside = Aside::default();
    let verdict = rules.judge(&large(), &Features::default(), &mut aside);
    assert_eq!((verdict.outcome, verdict.score), (Outcome::Approve, 0.0));
    assert!(verdict.reasons.is_empty());
    let shadowed: Vec<&str> = aside.shadowed.iter().map(|id| &**id).collect();
    assert_eq!(shadowed, ["LARGE_AMOUNT", "SHADOW"]);
}

#[test]
fn an_expression_without_a_value_does_not_fire_and_is_counted() {
    let rules = parse("expressions:\n  - {id: DIVIDES, when: 1 / features.payments_1m > 0, contribution: 0.9}\n");
    let mut aside = Aside::default();
    let verdict = rules.judge(&payment(), &Features::default(), &mut aside);
    assert!(verdict.reasons.is_empty());
    assert_eq!(&*aside.failed[0], "DIVIDES");
}

#[test]
fn the_version_follows_the_document() {
    let version = |lines: &str| parse(lines).version();
    assert!(RuleSet::built_in().version().starts_with("built-in-1-"));
    assert_eq!(version(""), version(""));
    assert_ne!(version(""), version("large_amount: {over_units: 1, contribution: 0.1}"));
}

#[test]
fn the_example_of_the_guide_is_a_rule_set() {
    let guide = include_str!("../../../docs/rules.md");
    let example = guide.lines().skip_while(|line| !line.starts_with("    version: "));
    let example = example.map_while(|line| line.strip_prefix("    "));
    let example = example.collect::<Vec<_>>().join("\n");
    let rules = RuleSet::parse(&example).expect("a rule set");
    let ids: Vec<String> = rules.summaries().into_iter().map(|rule| rule.id).collect();
    assert_eq!(
        ids,
        [
            "LARGE_AMOUNT",
            "HIGH_FREQUENCY",
            "LATE_EVENT",
            "NEW_DEVICE_FAR_FROM_USUAL",
            "NIGHT_ABROAD"
        ]
    );
}

#[test]
fn the_guide_names_every_fact() {
    let guide = include_str!("../../../docs/rules.md");
    for name in expression::names() {
        assert!(guide.contains(&format!("`{name}`")), "{name}");
    }
}

#[test]
fn a_rule_that_is_left_out_does_not_judge() {
    let features = Features {
        recent_payments: 100,
        moved: moved(),
        ..Features::default()
    };
    assert!(judge(&parse(""), &large(), &features).reasons.is_empty());
}

#[test]
fn what_a_document_must_not_say_is_named() {
    let many = (0..=MAX_EXPRESSIONS).map(|id| format!("  - {{id: R{id}, when: 'true', contribution: 0.1}}\n"));
    let many = format!("expressions:\n{}", many.collect::<String>());
    for (lines, named) in [
        ("surprise: 1", "surprise"),
        ("version: again", "version"),
        ("large_amount: {over_units: 1}", "contribution"),
        ("large_amount: {over_units: -1, contribution: 0.1}", "cannot be read"),
        (
            "large_amount: {over_units: 1, contribution: 1.5}",
            "large_amount.contribution is 1.5",
        ),
        (
            "large_amount: {over_units: 1, contribution: .nan}",
            "large_amount.contribution",
        ),
        (
            "high_frequency: {more_than_payments: 5, window_s: 301, contribution: 0.5}",
            "high_frequency.window_s is 301, not within 1 to 300",
        ),
        (
            "impossible_travel: {over_kmh: 0, place_window_s: 60, contribution: 0.5}",
            "impossible_travel.over_kmh",
        ),
        (
            "expressions:\n  - {id: A B, when: 'true', contribution: 0.1}",
            "\"A B\"",
        ),
        (
            "expressions:\n  - {id: LARGE_AMOUNT, when: 'true', contribution: 0.1}",
            "two rules LARGE_AMOUNT",
        ),
        (
            "expressions:\n  - {id: A, when: payment.amont > 1.0, contribution: 0.1}",
            "A: there is no payment.amont",
        ),
        (&many, "number of expressions is 65"),
    ] {
        let error = RuleSet::parse(&with(lines)).expect_err(lines).to_string();
        assert!(error.contains(named), "{lines}: {error}");
    }
    for document in ["", "[]", "version: 1", "\u{0}", &"x".repeat(MAX_DOCUMENT_BYTES + 1)] {
        assert!(RuleSet::parse(document).is_err(), "{document:.20}");
    }
    let reversed = with("").replace("0.75", "0.4");
    let error = RuleSet::parse(&reversed).expect_err("reversed").to_string();
    assert_eq!(error, "outcomes.decline is 0.4, not within 0.5 to 1");
}

#[test]
fn a_document_that_would_grow_without_bound_is_refused() {
    let bomb =
        "a: &a [x, x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b]";
    assert!(RuleSet::parse(bomb).is_err());
    let deep = format!("expressions: {}", "[".repeat(10_000));
    assert!(RuleSet::parse(&with(&deep)).is_err());
}
