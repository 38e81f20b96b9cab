//! Rule sets that are applied while payments flow: what is in force follows from the payment's offset, whatever dies or is
//! deleted meanwhile, and a document that is none stops nothing.

use anyhow::{Context, Result, ensure};
use sluice_proto::{headers, pb, topics};
use sluice_tests::checker::{self, Expected};
use sluice_tests::run::{on_own, on_shared};
use sluice_tests::session::Session;
use sluice_tests::stack::{self, Options, Stack, Tenant};
use sluice_tests::subscription::{Subscription, rules};
use sluice_tests::topics::{consumed, delete_before, read, write_control};
use sluice_tests::{events, servers};

/// The payments of the harness are of 12.34 EUR.
const STRICT: &str = "
version: strict-1
outcomes: {review: 0.3, decline: 0.9}
large_amount: {over_units: 10, contribution: 0.4}
late_event: {contribution: 0.5}
expressions:
  - {id: WHOLE_EUROS, version: '7', when: payment.amount == 12.34 && features.payments_1m < 100, contribution: 0.5}
  - {id: TRIED_OUT, when: features.payments_1m > 0, contribution: 1.0, shadow: true}
  - {id: BROKEN, when: 1 / (features.payments_1m - features.payments_1m) > 0, contribution: 1.0}
";
const SHARED_ACCOUNTS: usize = 24;

/// A document in a file that sluicectl can read.
fn file(stack: &Stack, name: &str, document: &str) -> Result<String> {
    let path = stack.directory().join(name);
    std::fs::write(&path, document)?;
    Ok(path.display().to_string())
}

struct Client<'s> {
    stack: &'s mut Stack,
    tenant: Tenant,
    session: Session,
    subscription: Subscription,
    published: Vec<pb::Event>,
}

impl<'s> Client<'s> {
    async fn new(stack: &'s mut Stack) -> Result<Self> {
        let (tenant, url) = (stack.tenant(), stack.gateway_url());
        Ok(Self {
            session: Session::open(&url, &tenant.key, "rule-sets").await?,
            subscription: Subscription::open(&url, &tenant.key).await?,
            tenant,
            stack,
            published: Vec::new(),
        })
    }

    /// Publishes payments into every partition, and gives the one rule set version and the rules that decided them all.
    async fn decided_by(&mut self) -> Result<(String, Vec<String>)> {
        let payments: Vec<_> = (0..SHARED_ACCOUNTS)
            .map(|account| events::payment(&format!("account-{account}")))
            .collect();
        self.session.store(&payments).await?;
        self.subscription.decided(&events::ids(&payments)).await?;
        let said = |event: &pb::Event| {
            let decision = &self.subscription.decisions[&event.event_id];
            let fired = rules(decision).into_iter().map(str::to_owned).collect::<Vec<_>>();
            (decision.rule_set_version.clone(), fired)
        };
        let first = said(&payments[0]);
        for payment in &payments {
            ensure!(said(payment) == first, "{:?} and {first:?}", said(payment));
        }
        self.published.extend(payments);
        Ok(first)
    }

    async fn check(&self) -> Result<()> {
        let expected = Expected::all(&self.tenant.name, &self.published);
        checker::check(self.stack, &expected).await.map(drop)
    }
}

#[test]
fn an_applied_rule_set_judges_what_comes_after_it_and_outlives_a_crash() {
    on_own(Options::default(), async |stack| {
        let mut client = Client::new(stack).await?;
        let (version, fired) = client.decided_by().await?;
        ensure!(
            version.starts_with("built-in-1-") && fired.is_empty(),
            "{version} {fired:?}"
        );
        let shown = client.stack.sluicectl(&["rules", "show"])?;
        ensure!(shown.matches("the processors' own").count() == 4, "{shown}");

        let document = file(client.stack, "strict.yaml", STRICT)?;
        client.stack.sluicectl(&["rules", "apply", &document])?;
        let (strict, fired) = client.decided_by().await?;
        ensure!(strict.starts_with("strict-1-"), "{strict}");
        assert_eq!(
            fired,
            ["LARGE_AMOUNT", "WHOLE_EUROS"],
            "the shadowed one is not among them"
        );
        let decision = &client.subscription.decisions[&client.published[SHARED_ACCOUNTS].event_id];
        assert_eq!((decision.outcome(), decision.score), (pb::Outcome::Review, 0.7));
        assert_eq!(
            (
                decision.reasons[1].rule_version.as_str(),
                decision.reasons[1].detail.as_str()
            ),
            ("7", "payment.amount = 12.34, features.payments_1m = 2")
        );
        let shown = client.stack.sluicectl(&["rules", "show"])?;
        ensure!(shown.matches(&strict).count() == 4, "{shown}");
        let metrics = stack::page(client.stack.processor_admin(0), "/metrics").await?;
        for line in [
            "sluice_processor_rules_fired_total{rule=\"TRIED_OUT\",shadow=\"true\"} 24",
            "sluice_processor_rules_fired_total{rule=\"WHOLE_EUROS\",shadow=\"false\"} 24",
            "sluice_processor_rules_failed_total{rule=\"BROKEN\"} 24",
            "sluice_processor_rule_sets_total 4",
        ] {
            let plain = line.replace("sluice_", "");
            ensure!(metrics.contains(&plain), "no {plain} in:\n{metrics}");
        }

        client.stack.processor(0)?.kill_9()?;
        client.stack.start_processor(0)?;
        assert_eq!(client.decided_by().await?.0, strict, "by replay");
        client.check().await
    });
}

#[test]
fn a_rule_set_outlives_the_record_that_brought_it() {
    on_own(Options::default(), async |stack| {
        let mut client = Client::new(stack).await?;
        let document = file(client.stack, "strict.yaml", STRICT)?;
        client.stack.sluicectl(&["rules", "apply", &document])?;
        let (strict, _) = client.decided_by().await?;
        let offsets = consumed(client.stack).await?;
        client.stack.processor(0)?.kill_9()?;
        delete_before(client.stack, topics::PAYMENTS, &offsets).await?;
        client.stack.start_processor(0)?;
        let (version, fired) = client.decided_by().await?;
        assert_eq!((version, fired.len()), (strict, 2));
        Ok(())
    });
}

#[test]
fn a_document_that_is_none_is_a_dead_letter_and_changes_nothing() {
    on_own(Options::default(), async |stack| {
        let mut client = Client::new(stack).await?;
        let before = client.decided_by().await?;
        for (kind, document) in [
            (
                headers::RULE_SET,
                STRICT.replace("payment.amount ==", "payment.amont =="),
            ),
            (headers::RULE_SET, String::new()),
            ("something-else", STRICT.to_owned()),
        ] {
            for partition in 0..client.stack.partitions() {
                write_control(client.stack, partition, kind, document.clone().into_bytes()).await?;
            }
        }
        assert_eq!(client.decided_by().await?, before);
        let letters = read(client.stack, topics::DEAD_LETTERS).await?;
        let of = |error_type: &str| {
            let errors = letters
                .iter()
                .filter(|letter| letter.header(headers::ERROR_TYPE).is_ok_and(|of| of == error_type));
            errors
                .map(|letter| letter.header(headers::ERROR).map(str::to_owned))
                .collect::<Result<Vec<_>>>()
        };
        let refused = of("RULE_SET_ERROR")?;
        assert_eq!(refused.len(), 8);
        let named = refused
            .iter()
            .filter(|error| error.contains("WHOLE_EUROS: there is no payment.amont"));
        assert_eq!(named.count(), 4);
        assert_eq!(of("DESERIALIZATION_ERROR")?.len(), 4);
        client.check().await
    });
}

#[test]
fn a_document_is_checked_before_it_is_applied() {
    on_shared(async |stack| {
        let good = file(stack, "good.yaml", STRICT)?;
        let page = stack.sluicectl(&["rules", "check", &good])?;
        ensure!(page.contains("valid: strict-1-") && page.contains("shadow"), "{page}");
        let bad = file(
            stack,
            "bad.yaml",
            &STRICT.replace("contribution: 0.4", "contribution: 4"),
        )?;
        for command in ["check", "apply"] {
            let error = stack
                .sluicectl(&["rules", command, &bad])
                .err()
                .context("it is refused")?;
            let error = format!("{error:#}");
            ensure!(
                error.contains("large_amount.contribution is 4, not within 0 to 1"),
                "{error}"
            );
        }
        Ok(())
    });
}

#[test]
fn a_processor_starts_with_the_rule_set_of_its_file() {
    let built_in = std::fs::read_to_string(servers::root().join("processor/src/rules/built_in.yaml"));
    let document = built_in.expect("the document is there").replace("built-in-1", "mine");
    let path = std::env::temp_dir().join(format!("sluice-rules-{}.yaml", uuid::Uuid::new_v4()));
    std::fs::write(&path, document).expect("it can be written");
    let options = Options {
        processor_env: vec![("SLUICE_RULES".to_owned(), path.display().to_string())],
        ..Options::default()
    };
    on_own(options, async |stack| {
        let mut client = Client::new(stack).await?;
        let (version, _) = client.decided_by().await?;
        ensure!(version.starts_with("mine-"), "{version}");
        Ok(())
    });
    std::fs::remove_file(path).expect("it is there");
}

#[test]
fn a_backtest_says_what_would_change_and_changes_nothing() {
    on_own(Options::default(), async |stack| {
        let mut client = Client::new(stack).await?;
        client.decided_by().await?;
        let document = file(client.stack, "strict.yaml", STRICT)?;
        let page = client.stack.sluicectl(&["rules", "backtest", &document])?;
        ensure!(page.starts_with("24 payments under strict-1-"), "{page}");
        let row = |cells: &[&str]| {
            page.lines()
                .any(|line| line.split_whitespace().eq(cells.iter().copied()))
        };
        ensure!(row(&["APPROVE", "0", "24", "0"]), "all go to review: {page}");
        ensure!(
            row(&["LARGE_AMOUNT", "0", "24"]) && row(&["TRIED_OUT", "(shadow)", "0", "24"]),
            "{page}"
        );
        ensure!(page.contains("BROKEN had no value for 24 payments"), "{page}");
        ensure!(page.contains("24 outcomes would change"), "{page}");
        let example =
            "APPROVE to REVIEW: LARGE_AMOUNT: 12.34 EUR is over 10.00 EUR; WHOLE_EUROS: payment.amount = 12.34";
        ensure!(page.contains(example), "{page}");

        client.stack.sluicectl(&["rules", "apply", &document])?;
        client.decided_by().await?;
        let page = client.stack.sluicectl(&["rules", "backtest", &document])?;
        ensure!(
            page.starts_with("48 payments") && page.contains("24 outcomes would change"),
            "{page}"
        );
        let none = ["rules", "backtest", &document, "--to", "2026-01-01T00:00:00Z"];
        let page = client.stack.sluicectl(&none)?;
        ensure!(page.starts_with("0 payments"), "{page}");
        client.check().await
    });
}
