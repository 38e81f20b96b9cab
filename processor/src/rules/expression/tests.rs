//! Tests of expressions: what they mean, what is refused, and that CEL's own interpreter agrees.

use std::collections::HashMap;

use cel::objects::{Key, Map};
use proptest::prelude::*;
use sluice_proto::event::PaymentRecord;
use sluice_proto::money::Amount;

use super::*;
use crate::features::Features;
use crate::testing::payment;
use crate::whereabouts::Trip;

fn features() -> Features {
    Features {
        payments_1m: 2,
        payments_5m: 7,
        amount_1h: 150.5,
        usual_amount: Some(4.25),
        new_device: true,
        travelled: Some(Trip {
            distance_km: 877.5,
            elapsed_us: 3_600_000_000,
        }),
        ..Features::default()
    }
}

fn holds(source: &str) -> Result<bool, Failed> {
    let (payment, features) = (paid(), features());
    let expression = Expression::compile(source).unwrap_or_else(|error| panic!("{source}: {error}"));
    expression.holds(&Facts {
        payment: &payment,
        features: &features,
    })
}

fn paid() -> PaymentRecord {
    PaymentRecord {
        country: Some("FR".to_owned()),
        place: Some("Besançon".to_owned()),
        ..payment()
    }
}

#[test]
fn conditions_mean_what_they_say() {
    for source in [
        "payment.amount == 12.5",
        "payment.amount > 12 && payment.amount < 13",
        "payment.currency == \"EUR\"",
        "payment.currency in [\"USD\", 'EUR']",
        "features.payments_5m in [1, 7]",
        "!(payment.currency in [])",
        "features.payments_1m + 5 == features.payments_5m",
        "features.payments_5m % 4 == 3 && -features.payments_1m < 0",
        "double(features.payments_1m) * 2.0 >= 4.0",
        "int(features.amount_1h) == 150",
        "payment.amount > features.usual_amount * 2.0",
        "features.new_device ? payment.amount > 1.0 : false",
        "has(payment.country) && !has(payment.device_id)",
        "payment.device_id == \"\" && features.seconds_since_last == 0.0",
        "has(features.usual_amount) && !has(features.seconds_since_last)",
        "payment.merchant_id.startsWith('merchant') && payment.merchant_id.endsWith(\"-1\")",
        "payment.place.contains('an') && size(payment.place) == 8 && payment.place.size() == 8",
        "payment.country < 'GB'",
        "features.km_since_last / (features.seconds_of_trip / 3600.0) > 800.0",
        "features.new_device == true && features.new_country != true",
        "payment.hour == 0",
    ] {
        assert_eq!(holds(source), Ok(true), "{source}");
    }
}

#[test]
fn what_settles_a_condition_makes_up_for_what_failed() {
    let failing = "1 / (features.payments_1m - 2) > 0";
    assert_eq!(holds(failing), Err(Failed::DivisionByZero));
    assert_eq!(holds(&format!("{failing} || true")), Ok(true));
    assert_eq!(holds(&format!("true || {failing}")), Ok(true));
    assert_eq!(holds(&format!("{failing} && false")), Ok(false));
    assert_eq!(holds(&format!("{failing} && true")), Err(Failed::DivisionByZero));
    assert_eq!(
        holds("9223372036854775807 + features.payments_1m > 0"),
        Err(Failed::Overflow)
    );
    assert_eq!(holds("int(1e30) > 0"), Err(Failed::Overflow));
    assert_eq!(holds("0.0 / 0.0 != 0.0 / 0.0"), Ok(true));
}

#[test]
fn what_cannot_be_meant_is_refused_with_the_reason() {
    for (source, reason) in [
        ("payment.amount", "its value is a double, not a bool"),
        (
            "payment.amont > 1.0",
            "there is no payment.amont; there are payment.amount,",
        ),
        ("amount > 1.0", "there is no amount"),
        ("payment.amount.units > 1", "there is no units"),
        ("payment > 1", "there is no payment"),
        ("payment.amount * 2 > 1.0", "* does not take double and int"),
        ("payment.currency + 'x' == 'y'", "+ does not take string and string"),
        ("payment.amount % 2.0 == 0.0", "% does not take double and double"),
        ("payment.currency > 5", "> does not take string and int"),
        ("payment.currency == 5", "== does not take string and int"),
        ("payment.currency in ['EUR', 5]", "in does not take string and int"),
        ("features.new_device && 1", "&& does not take bool and int"),
        ("!payment.amount", "! does not take double"),
        ("-payment.currency == 'x'", "- does not take string"),
        (
            "features.new_device ? 1 : 2.0",
            "? : does not take bool and int and double",
        ),
        (
            "payment.amount.startsWith('1')",
            "startsWith does not take double and string",
        ),
        ("[1, 2].all(x, x > 0)", "macro other than has"),
        (
            "payment.currency.matches('E.*')",
            "matches with 2 arguments cannot be used",
        ),
        ("payment.currency in payment.country", "in without a list"),
        ("payment.amount in [payment.amount]", "anything but plain values"),
        ("1u == 1u", "an unsigned number"),
        ("null == null", "null"),
        ("payment.amount >", "no CEL expression"),
        ("", "no CEL expression"),
        (
            "timestamp('2026-01-01T00:00:00Z') == timestamp('2026')",
            "timestamp with 1 arguments",
        ),
    ] {
        let error = Expression::compile(source).expect_err(source).to_string();
        assert!(error.contains(reason), "{source}: {error}");
    }
}

#[test]
fn an_expression_has_its_bounds() {
    let deep = format!("{}true{}", "(".repeat(1_000), ")".repeat(1_000));
    let nots = format!("{}true", "!".repeat(2_000));
    let long = vec!["features.new_device"; 90].join(" || ");
    let sums = format!("1{} > 0", " + 1".repeat(300));
    let huge = format!("payment.currency == '{}'", "x".repeat(MAX_EXPRESSION_BYTES));
    for source in [long, sums, huge] {
        assert!(Expression::compile(&source).is_err(), "{source:.40}");
    }
    // Whether these are refused is the parser's business; that no stack overflows is ours.
    let conditional = format!("{}true", "true ? true : ".repeat(140));
    let lists = format!("payment.amount in {}{}", "[".repeat(1_000), "]".repeat(1_000));
    for source in [deep, nots, conditional, lists] {
        drop(Expression::compile(&source));
    }
}

#[test]
fn the_detail_names_each_value_once() {
    let expression = Expression::compile("payment.amount > 1.0 && payment.amount < 99.0 && has(payment.device_id)");
    let (payment, features) = (paid(), features());
    let facts = Facts {
        payment: &payment,
        features: &features,
    };
    assert_eq!(
        expression.expect("compiles").detail(&facts),
        "payment.amount = 12.5, payment.device_id is unknown"
    );
}

/// The facts as the interpreter's variables; what is unknown stands as its default, as in a message.
fn variables<'c>(facts: &Facts<'_>) -> cel::Context<'c, 'c> {
    let mut context = cel::Context::default();
    for owner in [facts::PAYMENT, facts::FEATURES] {
        let fields = facts::FIELDS.iter().filter(|field| field.owner == owner);
        let map: HashMap<Key, cel::Value> = fields
            .map(|field| {
                let value = match (field.read)(facts).unwrap_or(field.of.unknown()) {
                    Value::Bool(value) => value.into(),
                    Value::Int(value) => value.into(),
                    Value::Double(value) => value.into(),
                    Value::Text(value) => value.to_owned().into(),
                };
                (Key::from(field.name), value)
            })
            .collect();
        context.add_variable_from_value(owner, cel::Value::Map(Map { map: map.into() }));
    }
    context
}

/// Texts of expressions of each type, as deep as `depth` allows.
fn ints() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        (-5_i64..10).prop_map(|value| format!("({value})")),
        Just("features.payments_1m".to_owned()),
        Just("features.payments_5m".to_owned()),
        Just("size(payment.place)".to_owned()),
        Just("9223372036854775807".to_owned()),
    ];
    leaf.prop_recursive(3, 12, 2, |inner| {
        let operator = prop::sample::select(vec!["+", "-", "*", "/", "%"]);
        (inner.clone(), operator, inner).prop_map(|(a, operator, b)| format!("({a} {operator} {b})"))
    })
}

fn doubles() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        (-20.0_f64..20.0).prop_map(|value| format!("({value:?})")),
        Just("payment.amount".to_owned()),
        Just("features.amount_1h".to_owned()),
        Just("features.usual_amount".to_owned()),
        Just("double(features.payments_5m)".to_owned()),
    ];
    // No division by what may be zero: the interpreter refuses to compare what is no number, where CEL says that it is
    // unequal to everything.
    leaf.prop_recursive(3, 12, 2, |inner| {
        let operator = prop::sample::select(vec!["+", "-", "*", "/ 2.5 +"]);
        (inner.clone(), operator, inner).prop_map(|(a, operator, b)| format!("({a} {operator} {b})"))
    })
}

fn texts() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "payment.currency",
        "payment.place",
        "payment.device_id",
        "'EUR'",
        "'ç'",
        "''",
    ])
    .prop_map(str::to_owned)
}

fn conditions() -> impl Strategy<Value = String> {
    let comparison = || prop::sample::select(vec!["==", "!=", "<", "<=", ">", ">="]);
    let leaf = prop_oneof![
        Just("true".to_owned()),
        Just("features.new_device".to_owned()),
        Just("features.new_country".to_owned()),
        (ints(), comparison(), ints()).prop_map(|(a, is, b)| format!("{a} {is} {b}")),
        (doubles(), comparison(), doubles()).prop_map(|(a, is, b)| format!("{a} {is} {b}")),
        (texts(), comparison(), texts()).prop_map(|(a, is, b)| format!("{a} {is} {b}")),
        (doubles(), comparison(), -9_i64..9).prop_map(|(a, is, b)| format!("{a} {is} ({b})")),
        texts().prop_map(|a| format!("{a} in ['EUR', 'USD', '']")),
        ints().prop_map(|a| format!("{a} in [1, 2, 3]")),
        (texts(), texts()).prop_map(|(a, b)| format!("{a}.contains({b})")),
        (texts(), texts()).prop_map(|(a, b)| format!("{a}.startsWith({b}) || {a}.endsWith({b})")),
    ];
    leaf.prop_recursive(3, 16, 3, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} && {b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} || {b})")),
            inner.clone().prop_map(|a| format!("!({a})")),
            (inner.clone(), inner.clone(), inner).prop_map(|(a, b, c)| format!("(({a}) ? ({b}) : ({c}))")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_interpreter_of_the_parsers_own_crate_agrees(
        source in conditions(),
        ten_thousandths in 0_i64..1_000_000,
        payments_1m in 0_usize..4,
        new_device in any::<bool>(),
    ) {
        let payment = PaymentRecord { amount: Amount::from_ten_thousandths(ten_thousandths), ..paid() };
        let features = Features { payments_1m, new_device, ..features() };
        let facts = Facts { payment: &payment, features: &features };
        let expression = match Expression::compile(&source) {
            Ok(expression) => expression,
            // Too large is no disagreement.
            Err(Error::Size(_) | Error::Parts | Error::Syntax(_)) => return Ok(()),
            Err(error) => panic!("{source}: {error}"),
        };
        let program = cel::Program::compile(&source).expect("parses there too");
        let expected = match program.execute(&variables(&facts)) {
            Ok(cel::Value::Bool(value)) => Some(value),
            Ok(other) => panic!("{source} gave {other:?}"),
            Err(_) => None,
        };
        prop_assert_eq!(expression.holds(&facts).ok(), expected, "{}", source);
    }

    #[test]
    fn no_text_makes_the_compiler_panic(source in "[ -~]{0,80}") {
        drop(Expression::compile(&source));
    }
}
