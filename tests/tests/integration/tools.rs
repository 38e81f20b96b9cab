//! The tools that operators have: grpcurl and ghz by reflection, kcat on the topics.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sluice_proto::{headers, topics};
use sluice_tests::credentials::Authority;
use sluice_tests::run::{on_own, on_shared};
use sluice_tests::session::Session;
use sluice_tests::stack::{Options, Stack};
use sluice_tests::subscription::Subscription;
use sluice_tests::{command, events};

/// Calls of each run of ghz.
const GHZ_CALLS: &str = "50";

/// Calls the gateway with nothing but its address and a key.
async fn grpcurl(program: &Path, stack: &Stack, key: &str, before: &[&str], after: &[&str]) -> Result<String> {
    let mut call = Command::new(program);
    call.arg("-plaintext")
        .args(["-H", &format!("authorization: Bearer {key}")])
        .args(before);
    call.arg(stack.gateway_address().to_string()).args(after);
    command::succeed(call).await
}

#[test]
fn grpcurl_lists_and_calls_the_services_by_reflection() {
    on_shared(async |stack| {
        let Some(program) = command::grpcurl().await? else {
            command::skipped("grpcurl", "Go is missing, which installs it");
            return Ok(());
        };
        let tenant = stack.tenant();
        let services = grpcurl(&program, stack, &tenant.key, &[], &["list"]).await?;
        let expected = [
            "grpc.health.v1.Health",
            "sluice.v1.AuditService",
            "sluice.v1.DecisionService",
            "sluice.v1.IngestService",
            "sluice.v1.ReviewService",
            "sluice.v1.SchemaService",
        ];
        for service in expected {
            ensure!(
                services.lines().any(|line| line == service),
                "{service} is not listed:\n{services}"
            );
        }
        let described = grpcurl(
            &program,
            stack,
            &tenant.key,
            &[],
            &["describe", "sluice.v1.PaymentEvent"],
        )
        .await?;
        ensure!(described.contains("google.type.Money amount"), "{described}");

        let mut subscription = Subscription::open(&stack.gateway_url(), &tenant.key).await?;
        let event_id = uuid::Uuid::now_v7().to_string();
        let request = serde_json::json!({"event": {
            "event_id": event_id,
            "occurred_at": now()?,
            "payment": {
                "account_id": "grpcurl",
                "merchant_id": "merchant-1",
                "amount": {"currency_code": "EUR", "units": 12_000},
            },
        }});
        let data = request.to_string();
        let method = "sluice.v1.IngestService/PublishOne";
        let answer = grpcurl(&program, stack, &tenant.key, &["-d", &data], &[method]).await?;
        let answer: serde_json::Value = serde_json::from_str(&answer)?;
        ensure!(answer["position"].is_object(), "{answer}");
        subscription.decided(std::slice::from_ref(&event_id)).await?;
        assert_eq!(subscription.decisions[&event_id].reasons[0].rule_id, "LARGE_AMOUNT");

        for service in expected.map(|name| if name.starts_with("sluice") { name } else { "" }) {
            let data = serde_json::json!({ "service": service }).to_string();
            let check = ["grpc.health.v1.Health/Check"];
            let health = grpcurl(&program, stack, &tenant.key, &["-d", &data], &check).await?;
            ensure!(health.contains("\"SERVING\""), "{service}: {health}");
        }
        Ok(())
    });
}

/// The time in the form that JSON has for it.
fn now() -> Result<String> {
    let now = prost_types::Timestamp::from(std::time::SystemTime::now());
    Ok(now.to_string())
}

/// How grpcurl and ghz reach a gateway, and who they say they are.
struct Way {
    host: String,
    grpcurl: Vec<String>,
    ghz: Vec<String>,
}

impl Way {
    fn plain(stack: &Stack, key: &str) -> Self {
        let strings = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Self {
            host: stack.gateway_address().to_string(),
            grpcurl: strings(&["-plaintext", "-H", &format!("authorization: Bearer {key}")]),
            ghz: strings(&[
                "--insecure",
                "-m",
                &serde_json::json!({"authorization": format!("Bearer {key}")}).to_string(),
            ]),
        }
    }

    fn mutual_tls(port: u16, roots: &Path, certificate: &Path, key: &Path) -> Self {
        let files = [("cacert", roots), ("cert", certificate), ("key", key)];
        let options = |dashes: &str| {
            let each = files.iter();
            each.flat_map(|(name, path)| [format!("{dashes}{name}"), path.display().to_string()])
                .collect()
        };
        Self {
            host: format!("localhost:{port}"),
            grpcurl: options("-"),
            ghz: options("--"),
        }
    }

    async fn check(&self, grpcurl: &Path, ghz: &Path) -> Result<()> {
        for (method, answered) in [("PublishOne", "position"), ("Decide", "decision")] {
            let method = format!("sluice.v1.IngestService/{method}");
            let event = |event_id: &str, occurred_at: &str| {
                serde_json::json!({"event": {
                    "event_id": event_id,
                    "occurred_at": occurred_at,
                    "payment": {
                        "account_id": "tools",
                        "merchant_id": "merchant-1",
                        "amount": {"currency_code": "EUR", "units": 12},
                    },
                }})
                .to_string()
            };
            let mut call = Command::new(grpcurl);
            call.args(&self.grpcurl).args(["-max-time", "14", "-d"]);
            call.arg(event(&uuid::Uuid::now_v7().to_string(), &now()?));
            call.args([&self.host, &method]);
            let answer: serde_json::Value = serde_json::from_str(&command::succeed(call).await?)?;
            ensure!(answer[answered].is_object(), "{method}: {answer}");

            let mut load = Command::new(ghz);
            load.args(&self.ghz)
                .args(["--call", &method, "-n", GHZ_CALLS, "-c", "5", "-O", "json", "-d"]);
            load.arg(event("{{newUUID}}", "{{.Timestamp}}")).arg(&self.host);
            let report: serde_json::Value = serde_json::from_str(&command::succeed(load).await?)?;
            let codes = &report["statusCodeDistribution"];
            ensure!(
                codes["OK"].as_u64() == GHZ_CALLS.parse().ok(),
                "{method}: {codes} {report}"
            );
        }
        Ok(())
    }
}

#[test]
fn grpcurl_and_ghz_publish_and_decide_plainly_and_with_certificates() {
    on_own(Options::default(), async |stack| {
        let (Some(grpcurl), Some(ghz)) = (command::grpcurl().await?, command::ghz().await?) else {
            command::skipped("grpcurl and ghz", "Go is missing, which installs them");
            return Ok(());
        };
        let tenant = stack.tenant();
        Way::plain(stack, &tenant.key).check(&grpcurl, &ghz).await?;

        let directory = stack.directory().to_owned();
        let authority = Authority::new()?;
        let (certificate, key) = authority.sign("gateway", &["localhost"])?.write(&directory)?;
        let [roots, principals, own, own_key] =
            ["roots.pem", "principals.toml", "own.pem", "own.key"].map(|name| directory.join(name));
        let client = authority.sign("checkout", &[])?;
        std::fs::write(&own, &client.certificate)?;
        std::fs::write(&own_key, &client.key)?;
        std::fs::write(&roots, &authority.pem)?;
        let entry = format!(
            "[[certificate]]\nsubject = \"CN=checkout\"\ntenant = \"{}\"\n",
            tenant.name
        );
        std::fs::write(&principals, entry)?;
        for (variable, path) in [
            ("SLUICE_API_KEYS", &principals),
            ("SLUICE_TLS_CERT", &certificate),
            ("SLUICE_TLS_KEY", &key),
            ("SLUICE_TLS_CLIENT_CA", &roots),
        ] {
            stack.set_env(variable, &path.display().to_string());
        }
        let mut secure = stack.another_gateway("gateway-tls")?;
        secure.ready().await?;
        let way = Way::mutual_tls(secure.address.port(), &roots, &own, &own_key);
        way.check(&grpcurl, &ghz).await
    });
}

#[test]
fn kcat_shows_the_headers() {
    on_shared(async |stack| {
        if !command::installed("kcat") {
            command::skipped("kcat", "it is not installed");
            return Ok(());
        }
        let tenant = stack.tenant();
        let url = stack.gateway_url();
        let mut subscription = Subscription::open(&url, &tenant.key).await?;
        let payment = events::payment("kcat");
        Session::open(&url, &tenant.key, "kcat-1")
            .await?
            .store(std::slice::from_ref(&payment))
            .await?;
        subscription.decision(&payment).await?;
        let key = topics::key(&tenant.name, "kcat");
        let id = format!("{}={}", headers::EVENT_ID, payment.event_id);
        let own = format!("{}={}", headers::TENANT, tenant.name);
        let from = format!("{}=kcat-1", headers::PRODUCER_ID);
        for (topic, parts) in [
            (topics::PAYMENTS, vec![&id, &own, &from]),
            // A decision carries no header but its trace.
            (topics::DECISIONS, vec![]),
        ] {
            let mut show = Command::new("kcat");
            show.args([
                "-C",
                "-q",
                "-e",
                "-o",
                "beginning",
                "-X",
                "isolation.level=read_committed",
            ]);
            show.args([
                "-b",
                &stack.servers().kafka,
                "-t",
                &stack.topic(topic),
                "-f",
                "%k %h\\n",
            ]);
            let shown = command::succeed(show).await?;
            let line = shown
                .lines()
                .find(|line| line.starts_with(&key))
                .with_context(|| format!("{topic}: no {key}:\n{shown}"))?;
            ensure!(parts.iter().all(|part| line.contains(part.as_str())), "{topic}: {line}");
        }
        Ok(())
    });
}
