//! Options: checked before anything starts, with one clear line for a mistake.

use std::process::Command;

use anyhow::{Result, ensure};
use sluice_tests::stack::GROUP;
use sluice_tests::{command, servers};

const BINARIES: [&str; 2] = ["sluice-gateway", "sluice-processor"];

/// Runs a binary with an environment of nothing else; returns its exit code and what it said.
fn start(name: &str, arguments: &[&str], env: &[(&str, &str)]) -> Result<(Option<i32>, String)> {
    let mut program = Command::new(servers::binary(name)?);
    let output = program.args(arguments).env_clear().envs(env.iter().copied()).output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&said).into_owned()))
}

/// A file with options, gone when it is dropped.
struct File(std::path::PathBuf);

impl File {
    fn with(text: &str) -> Result<Self> {
        let path = servers::scratch("options")?.join(format!("{}.toml", uuid::Uuid::new_v4()));
        std::fs::write(&path, text)?;
        Ok(Self(path))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

#[test]
fn the_defaults_and_a_file_are_valid() -> Result<()> {
    for name in BINARIES {
        let (code, said) = start(name, &["--check-config"], &[])?;
        ensure!(code == Some(0), "{name}: {code:?}: {said}");
        let file = File::with("kafka = \"localhost:9092\"\nlog = \"warn\"\n")?;
        let (code, said) = start(
            name,
            &["--check-config", "--config", &file.0.display().to_string()],
            &[],
        )?;
        ensure!(code == Some(0), "{name}: {code:?}: {said}");
    }
    Ok(())
}

#[test]
fn a_mistake_is_named_and_nothing_starts() -> Result<()> {
    for name in BINARIES {
        let unknown = File::with("kafak = \"localhost:9092\"\n")?;
        let broken = File::with("kafka = \n")?;
        let (unknown, broken) = (unknown.0.display().to_string(), broken.0.display().to_string());
        let none: Vec<(&str, &str)> = Vec::new();
        let cases = [
            (vec!["--no-such-option"], none.clone(), "--no-such-option"),
            (vec!["--check-config", "--config", &unknown], none.clone(), "kafak"),
            (vec!["--check-config", "--config", &broken], none.clone(), "line 1"),
            (
                vec!["--check-config", "--config", "/no/such/file"],
                none,
                "/no/such/file",
            ),
            (
                vec!["--check-config"],
                vec![("SLUICE_ADMIN_LISTEN", "nowhere")],
                "nowhere",
            ),
        ];
        for (arguments, env, word) in cases {
            let (code, said) = start(name, &arguments, &env)?;
            ensure!(
                code.is_some_and(|code| code != 0),
                "{name} {arguments:?} {env:?}: {code:?}: {said}"
            );
            ensure!(
                said.contains(word),
                "{name} {arguments:?} {env:?} does not name {word}: {said}"
            );
            ensure!(!said.contains("panicked"), "{name} {arguments:?} {env:?}: {said}");
        }
    }
    Ok(())
}

#[test]
fn the_development_key_is_for_loopback_only() -> Result<()> {
    let env = [("SLUICE_LISTEN", "0.0.0.0:50051")];
    let (code, said) = start("sluice-gateway", &["--check-config"], &env)?;
    ensure!(
        code.is_some_and(|code| code != 0) && said.contains("SLUICE_API_KEYS"),
        "{code:?}: {said}"
    );
    let keys = File::with(&format!(
        "[[key]]\nsha256 = \"{}\"\ntenant = \"acme\"\n",
        "0".repeat(64)
    ))?;
    let keys = keys.0.display().to_string();
    let env = [env[0], ("SLUICE_API_KEYS", &keys)];
    let (code, said) = start("sluice-gateway", &["--check-config"], &env)?;
    ensure!(
        code.is_some_and(|code| code != 0) && said.contains("SLUICE_ALLOW_PLAINTEXT"),
        "{code:?}: {said}"
    );
    let env = [env[0], env[1], ("SLUICE_ALLOW_PLAINTEXT", "true")];
    let (code, said) = start("sluice-gateway", &["--check-config"], &env)?;
    ensure!(
        code.is_some_and(|code| code != 0) && said.contains("SLUICE_TOKEN_SECRETS"),
        "{code:?}: {said}"
    );
    let secrets = File::with(&"s".repeat(32))?;
    let secrets = secrets.0.display().to_string();
    let env = [env[0], env[1], env[2], ("SLUICE_TOKEN_SECRETS", &secrets)];
    let (code, said) = start("sluice-gateway", &["--check-config"], &env)?;
    ensure!(code == Some(0), "{code:?}: {said}");
    Ok(())
}

#[test]
fn help_explains_every_part() -> Result<()> {
    for name in [BINARIES[0], BINARIES[1], "sluicectl"] {
        let (code, said) = start(name, &["--help"], &[])?;
        ensure!(code == Some(0) && said.contains("--kafka"), "{name}: {said}");
    }
    // The loader has no server to connect to but the gateway.
    let (code, said) = start("sluice-load", &["--help"], &[])?;
    ensure!(code == Some(0), "{said}");
    Ok(())
}

#[test]
fn sluicectl_shows_topics_groups_and_lag() {
    sluice_tests::run::on_shared(async |stack| {
        let cases: [(&[&str], String); 3] = [
            (&["topics", "list"], stack.topic("payments")),
            (&["groups", "list"], stack.group()),
            // The group is named as the processor's own option names it: without the prefix.
            (&["lag", "--group", GROUP], stack.group()),
        ];
        for (arguments, expected) in cases {
            let mut show = Command::new(servers::binary("sluicectl")?);
            show.args(arguments).envs(stack.common_env());
            let shown = command::succeed(show).await?;
            ensure!(
                shown.contains(&expected),
                "{arguments:?} does not show {expected}:\n{shown}"
            );
        }
        Ok(())
    });
}
