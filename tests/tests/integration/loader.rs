//! The loader on the real parts: every mode, a gateway killed in mid-run, its exit codes, and its page in a real browser.
//! That its latencies are right is tested beside it, in `load/tests/`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_tests::credentials::Authority;
use sluice_tests::process::Process;
use sluice_tests::run::{on_own, on_prepared, on_shared};
use sluice_tests::stack::{Options, Stack, Tenant};
use sluice_tests::{command, servers, wait};

const NOT_TRIED: i32 = 2;
/// Lines of progress, one a second, before the gateway is killed.
const SECONDS_BEFORE_KILL: usize = 3;
const BROWSER: &str = "chromium";

/// The loader with an address and a key.
fn loader(stack: &Stack, tenant: &Tenant, arguments: &[&str]) -> Result<Command> {
    let mut loader = Command::new(servers::binary("sluice-load")?);
    loader
        .args(arguments)
        .arg(stack.gateway_url())
        .args(["--api-key", &tenant.key]);
    Ok(loader)
}

fn read(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).context("not JSON")
}

/// Runs the loader, which must find nothing wrong, and reads its report.
async fn report(stack: &Stack, name: &str, arguments: &[&str]) -> Result<Value> {
    let path = stack.directory().join(format!("{name}.json"));
    let mut loader = loader(stack, &stack.tenant(), arguments)?;
    loader.args(["-O", "json", "-q", "-o"]).arg(&path);
    command::succeed(loader).await?;
    read(&path)
}

fn count(report: &Value, what: &str) -> Result<u64> {
    report["account"][what]
        .as_u64()
        .with_context(|| format!("no {what} in {}", report["account"]))
}

#[test]
fn every_event_of_every_mode_is_accounted_for() {
    on_shared(async |stack| {
        let publish = ["publish", "-c", "2", "--batch", "16", "-r", "2000", "-n", "2000"];
        let published = report(stack, "publish", &publish).await?;
        assert_eq!(
            (count(&published, "sent")?, count(&published, "stored")?),
            (2_000, 2_000)
        );

        let one = report(stack, "publish-one", &["publish-one", "-c", "8", "-n", "300"]).await?;
        assert_eq!((count(&one, "stored")?, &one["openLoop"]), (300, &Value::Bool(false)));

        let decided = report(stack, "decide", &["decide", "-c", "8", "-n", "200"]).await?;
        assert_eq!(count(&decided, "decided")?, 200);
        assert_eq!(decided["latencies"]["decision"]["count"].as_u64(), Some(200));

        let mixed = [
            "--poison",
            "5%",
            "--duplicates",
            "5%",
            "--subscribers",
            "2",
            "-c",
            "2",
            "-r",
            "400",
            "-z",
            "4s",
        ];
        let mixed = report(stack, "mixed", &[&["end-to-end"][..], &mixed].concat()).await?;
        let (poison, copies) = (count(&mixed, "poisonSent")?, count(&mixed, "copiesSent")?);
        assert!(poison > 20 && copies > 20, "{poison} and {copies}");
        assert_eq!(count(&mixed, "poisonRefused")?, poison);
        assert_eq!(count(&mixed, "decided")?, count(&mixed, "sent")? - poison - copies);
        for (rule, found) in mixed["rules"].as_object().context("no rules")? {
            assert!(found["found"].as_u64() >= found["injected"].as_u64(), "{rule}: {found}");
        }
        // Each subscriber had each decision.
        let latencies = mixed["latencies"]["decision"]["count"].as_u64();
        assert_eq!(latencies, Some(2 * count(&mixed, "decided")?));
        Ok(())
    });
}

#[test]
fn a_subscription_counts_what_others_publish() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let path = stack.directory().join("subscribe.json");
        let (url, output) = (stack.gateway_url(), path.to_string_lossy().into_owned());
        let arguments = [
            "subscribe",
            &url,
            "--api-key",
            &tenant.key,
            "-c",
            "2",
            "-n",
            "1000",
            "-O",
            "json",
            "-o",
        ];
        let arguments = [&arguments[..], &[&output]].concat();
        let program = servers::binary("sluice-load")?;
        let mut subscriber = Process::start("subscriber", &program, &arguments, &[], stack.directory())?;
        let log = subscriber.log().to_owned();
        wait::until("the subscriptions are open", async || {
            subscriber.must_run()?;
            Ok((!std::fs::read_to_string(&log)?.is_empty()).then_some(()))
        })
        .await?;
        command::succeed(loader(stack, &tenant, &["publish", "-q", "-n", "500", "-r", "1000"])?).await?;
        let status = subscriber.ended().await?;
        ensure!(status.success(), "{status}\n{}", subscriber.log_tail());
        let report = read(&path)?;
        // Each of the two had each decision.
        assert_eq!((count(&report, "decided")?, count(&report, "duplicates")?), (1_000, 0));
        assert_eq!(report["latencies"]["delivery"]["count"].as_u64(), Some(1_000));
        Ok(())
    });
}

#[test]
fn certificates_are_checked_and_shown() {
    on_prepared(
        Options {
            processors: 0,
            partitions: 1,
            ..Options::default()
        },
        async |stack| {
            let directory = stack.directory().to_owned();
            let authority = Authority::new()?;
            let (certificate, key) = authority.sign("gateway", &["localhost"])?.write(&directory)?;
            let [roots, principals, own, own_key, other] =
                ["roots.pem", "principals.toml", "own.pem", "own.key", "other.pem"].map(|name| directory.join(name));
            let checkout = authority.sign("checkout", &[])?;
            for (path, text) in [
                (&roots, &authority.pem),
                (&own, &checkout.certificate),
                (&own_key, &checkout.key),
                (&other, &Authority::new()?.pem),
                (
                    &principals,
                    &"[[certificate]]\nsubject = \"CN=checkout\"\ntenant = \"acme\"\n".to_owned(),
                ),
            ] {
                std::fs::write(path, text)?;
            }
            for (name, path) in [
                ("SLUICE_API_KEYS", &principals),
                ("SLUICE_TLS_CERT", &certificate),
                ("SLUICE_TLS_KEY", &key),
                ("SLUICE_TLS_CLIENT_CA", &roots),
            ] {
                stack.set_env(name, &path.display().to_string());
            }
            stack.start_gateway()?;
            stack.ready().await?;

            let address = stack.gateway_address().to_string();
            let [roots, other, own, own_key] = [&roots, &other, &own, &own_key].map(|path| path.display().to_string());
            let tried = async |arguments: &[&str]| {
                let mut loader = Command::new(servers::binary("sluice-load")?);
                loader.args(["publish-one", &address, "-q", "-n", "20"]).args(arguments);
                command::run(loader).await
            };
            let known: &[&str] = &["--cert", &own, "--key", &own_key];
            for trust in [&["--cacert", &roots, "--cname", "localhost"][..], &["--skipTLS"]] {
                let output = tried(&[known, trust].concat()).await?;
                assert_eq!(output.status.code(), Some(0), "{}", text(&output));
            }
            for (distrust, words) in [
                (&["--cacert", &other, "--cname", "localhost"][..], "certificate"),
                (&["--cacert", &roots, "--cname", "elsewhere"], "certificate"),
            ] {
                let output = tried(&[known, distrust].concat()).await?;
                let clear = text(&output).lines().count() == 1 && text(&output).contains(words);
                assert!(
                    clear && output.status.code() == Some(NOT_TRIED),
                    "{distrust:?}: {}",
                    text(&output)
                );
            }
            let output = tried(&["--cacert", &roots, "--cname", "localhost"]).await?;
            let refused = text(&output).contains("Unauthenticated");
            assert!(
                refused && output.status.code() == Some(1),
                "without a certificate: {}",
                text(&output)
            );
            Ok(())
        },
    );
}

#[test]
fn the_callers_own_event_is_published() {
    on_shared(async |stack| {
        let data = r#"{"event":{"payment":{"accountId":"own-{{.RequestNumber}}","merchantId":"m",
            "amount":{"currencyCode":"EUR","units":"{{randomInt 1 9}}"}}}}"#;
        let own = report(stack, "own", &["publish-one", "-n", "50", "-c", "5", "-d", data]).await?;
        assert_eq!(count(&own, "stored")?, 50);
        Ok(())
    });
}

#[test]
fn a_gateway_killed_in_mid_run_shows_as_a_gap_and_costs_nothing() {
    on_own(Options::default(), async |stack| {
        let tenant = stack.tenant();
        let path = stack.directory().join("killed.json");
        let (url, output) = (stack.gateway_url(), path.to_string_lossy().into_owned());
        let arguments = [
            "end-to-end",
            &url,
            "--api-key",
            &tenant.key,
            "-c",
            "2",
            "-r",
            "500",
            "-z",
            "10s",
        ];
        let arguments = [&arguments[..], &["-O", "json", "-o", &output]].concat();
        let program = servers::binary("sluice-load")?;
        let mut loader = Process::start("loader", &program, &arguments, &[], stack.directory())?;
        let log = loader.log().to_owned();
        // It writes a line each second.
        let mut runs_for = async |what: &str, seconds: usize| {
            wait::until(what, async || {
                loader.must_run()?;
                let lines = std::fs::read_to_string(&log)?.lines().count();
                Ok((lines >= seconds).then_some(()))
            })
            .await
        };
        runs_for("the run is under way", SECONDS_BEFORE_KILL).await?;
        stack.gateway()?.kill_9()?;
        runs_for("a whole second has passed without a gateway", SECONDS_BEFORE_KILL + 2).await?;
        stack.start_gateway()?;
        let status = loader.ended().await?;
        ensure!(status.success(), "{status}\n{}", loader.log_tail());
        let report = read(&path)?;
        for nothing in ["lost", "duplicates", "unsent", "reordered"] {
            assert_eq!(count(&report, nothing)?, 0, "{nothing}");
        }
        assert_eq!((count(&report, "sent")?, count(&report, "decided")?), (5_000, 5_000));
        // Two publishers and a subscriber.
        assert_eq!(count(&report, "resumes")?, 3);
        let outages = report["account"]["outages"].as_array().context("no outages")?;
        assert!(
            outages.len() == 3 && outages.iter().all(|outage| outage["toS"].is_number()),
            "{outages:?}"
        );
        assert!(report["gaps"].as_array().is_some_and(|gaps| !gaps.is_empty()), "no gap");
        let held_s = report["offered"]["heldS"]["connection"].as_f64().unwrap_or_default();
        assert!(held_s > 0.0, "nothing was held back");
        println!("gaps {}, outages {outages:?}", report["gaps"]);
        stack.must_run()
    });
}

#[test]
fn what_cannot_be_tried_is_one_clear_line() {
    on_shared(async |stack| {
        let address = stack.gateway_address().to_string();
        let free = servers::free_address()?.to_string();
        let tried = |arguments: &[&str]| {
            let mut loader = Command::new(servers::binary("sluice-load")?);
            loader.args(arguments);
            Ok::<_, anyhow::Error>(loader)
        };
        let cases: [(&[&str], &str); 14] = [
            (&["publish", "--no-such-flag"], "--no-such-flag"),
            (&["publish", "-r", "fast"], "fast"),
            (&["publish", "-z", "10"], "is not a duration"),
            (&["publish", "--slo", "ack.p99"], "is not an objective"),
            (
                &["publish-one", "--batch", "5"],
                "--batch has no meaning for publish-one",
            ),
            (&["publish", "--find-max", "-r", "10"], "--slo"),
            (
                &["publish", "--load-schedule", "step", "-z", "1s"],
                "--load-step-duration",
            ),
            (&["publish", "-d", "{}}"], "not JSON"),
            (&["publish", "--config", "/no/such/file"], "/no/such/file"),
            (&["publish", "--insecure", &free], "cannot connect to"),
            (
                &["publish", "--insecure", &address, "-o", "/no/such/directory/report"],
                "cannot write the report",
            ),
            (&["publish", &address, "--cacert", "/no/such/ca.pem"], "/no/such/ca.pem"),
            (&["publish", &address, "--skipTLS"], "no TLS session"),
            (
                &["publish", "--insecure", &address, "--api-key", "wrong"],
                "Unauthenticated",
            ),
        ];
        for (arguments, words) in cases {
            let output = command::run(tried(arguments)?).await?;
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let clear = text.lines().count() == 1 && text.contains(words);
            assert!(
                clear && output.status.code() == Some(NOT_TRIED),
                "{arguments:?}: {} {text}",
                output.status
            );
        }
        Ok(())
    });
}

#[test]
fn a_missed_objective_is_a_failure_and_a_found_rate_is_none() {
    on_shared(async |stack| {
        let tenant = stack.tenant();
        let missed = [
            "publish",
            "-q",
            "-r",
            "500",
            "-n",
            "500",
            "--slo",
            "ack.p50<1ns,errors<1%",
        ];
        let output = command::run(loader(stack, &tenant, &missed)?).await?;
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(text(&output).contains("FAILED  ack.p50<1ns"), "{}", text(&output));

        let search = [
            "publish",
            "-q",
            "--find-max",
            "-r",
            "100",
            "-z",
            "1s",
            "--slo",
            "rate<1000",
            "-O",
            "json",
        ];
        let output = command::run(loader(stack, &tenant, &search)?).await?;
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        let report: Value = serde_json::from_slice(&output.stdout)?;
        let trials = report["trials"].as_array().context("no trials")?;
        let held = trials.iter().filter(|trial| trial["held"] == true);
        let highest = held.filter_map(|trial| trial["ratePerS"].as_f64()).fold(0.0, f64::max);
        // Answers come a little later than events are sent, and so at a lower rate.
        assert!((400.0..1_600.0).contains(&highest), "{highest} of {trials:?}");
        Ok(())
    });
}

fn text(output: &Output) -> String {
    let parts = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    parts.concat()
}

/// Opens a page in a browser without a screen.
async fn browse(directory: &Path, page: &Path, options: &[&str]) -> Result<String> {
    let mut browser = Command::new(BROWSER);
    browser.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
    ]);
    browser.args([
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]);
    browser.arg(format!(
        "--user-data-dir={}",
        directory.join(format!("browser-{}", options.len())).display()
    ));
    browser.args(options).arg(format!("file://{}", page.display()));
    command::succeed(browser).await
}

#[test]
fn the_page_opens_in_a_browser_without_a_network() {
    on_shared(async |stack| {
        if !command::installed(BROWSER) {
            command::skipped("the page in a browser", "chromium is not installed");
            return Ok(());
        }
        let directory: PathBuf = stack.directory().to_owned();
        report(
            stack,
            "page",
            &["end-to-end", "-r", "300", "-z", "3s", "--name", "A run to look at"],
        )
        .await?;
        let page = directory.join("page.html");
        let mut make = Command::new(servers::binary("sluice-load")?);
        make.arg("report")
            .arg(directory.join("page.json"))
            .args(["-O", "html", "-o"])
            .arg(&page);
        command::succeed(make).await?;
        // The page tells its own width, as the browser lays it out.
        let mut text = std::fs::read_to_string(&page)?;
        text.push_str(
            "<script>document.body.dataset.width = \
             `${document.documentElement.scrollWidth} of ${window.innerWidth}`;</script>",
        );
        let telling = directory.join("telling.html");
        std::fs::write(&telling, text)?;
        for size in ["--window-size=1280,900", "--window-size=500,900"] {
            let shown = browse(&directory, &telling, &["--dump-dom", size]).await?;
            for part in [
                "A run to look at",
                "as promised",
                "Latency by percentile",
                "Held back by the server",
                "<path",
            ] {
                ensure!(shown.contains(part), "no {part} in the page:\n{shown}");
            }
            let (_before, width) = shown
                .split_once("data-width=\"")
                .context("the page did not run to its end")?;
            let (width, _after) = width.split_once('"').context("no width")?;
            let (needed, there) = width.split_once(" of ").context("no width")?;
            assert!(
                needed.parse::<u32>()? <= there.parse::<u32>()?,
                "the page is wider than the window: {width}"
            );
        }
        Ok(())
    });
}
