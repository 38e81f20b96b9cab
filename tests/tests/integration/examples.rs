//! The contract is callable from every language that has a client here: each example publishes ten payments and prints
//! their decisions.

use std::process::Command;

use anyhow::{Result, ensure};
use sluice_tests::command;
use sluice_tests::run::on_shared;
use sluice_tests::servers;
use sluice_tests::stack::Stack;

/// Runs an example against the stack; it must print ten decisions, of which the one over 10,000 goes to review.
async fn run(stack: &Stack, name: &str, target: &str, mut example: Command) -> Result<()> {
    let tenant = stack.tenant();
    example.env("SLUICE_TARGET", target).env("SLUICE_API_KEY", &tenant.key);
    let Some(printed) = command::succeed_or_skip(&format!("the {name} example"), example).await? else {
        return Ok(());
    };
    let decisions = printed
        .lines()
        .filter(|line| ["APPROVE", "REVIEW", "DECLINE"].iter().any(|word| line.contains(word)));
    ensure!(
        decisions.count() >= 10,
        "{name} printed fewer than ten decisions:\n{printed}"
    );
    ensure!(
        printed.contains("LARGE_AMOUNT"),
        "{name} printed no LARGE_AMOUNT:\n{printed}"
    );
    Ok(())
}

async fn run_script(stack: &Stack, name: &str, directory: &str) -> Result<()> {
    let example = command::script(&command::client(directory), "example.sh");
    run(stack, name, &stack.gateway_address().to_string(), example).await
}

#[test]
fn the_python_example_runs() {
    on_shared(async |stack| run_script(stack, "Python", "python").await);
}

#[test]
fn the_go_example_runs() {
    on_shared(async |stack| run_script(stack, "Go", "go").await);
}

#[test]
fn the_java_example_runs() {
    on_shared(async |stack| run_script(stack, "Java", "java").await);
}

#[test]
fn the_node_example_runs() {
    on_shared(async |stack| run_script(stack, "Node", "node").await);
}

#[test]
fn the_rust_example_runs() {
    on_shared(async |stack| {
        // cargo builds the examples of all packages before it runs a test.
        let program = servers::binaries()?.join("examples/ten_payments");
        run(stack, "Rust", &stack.gateway_url(), Command::new(program)).await
    });
}
