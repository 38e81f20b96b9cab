//! The options of a run from a file: TOML or JSON whose keys are the options' long names, as ghz has them.
//!
//! Comes before the command line is parsed. What the file says is put before what the command line says, which wins.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::{Map, Value};

const OPTION: &str = "--config";

/// The command line with the file's options put in, right after the command's name.
///
/// # Errors
/// When the file cannot be read or has something that is no option's value.
pub fn expand(arguments: impl Iterator<Item = OsString>) -> anyhow::Result<Vec<OsString>> {
    let mut expanded: Vec<OsString> = Vec::new();
    let mut from_file = Vec::new();
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy();
        if text == OPTION {
            let path = arguments.next().context("--config needs a file")?;
            from_file = read(Path::new(&path))?;
        } else if let Some(path) = text.strip_prefix("--config=") {
            from_file = read(Path::new(path))?;
        } else {
            expanded.push(argument);
        }
    }
    if !from_file.is_empty() {
        let after_command = expanded.len().min(2);
        expanded.splice(after_command..after_command, from_file);
    }
    Ok(expanded)
}

fn read(path: &Path) -> anyhow::Result<Vec<OsString>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let is_toml = path.extension().is_some_and(|extension| extension == "toml");
    let options: Map<String, Value> = if is_toml {
        toml::from_str(&text).with_context(|| format!("{} is not TOML", path.display()))?
    } else {
        serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?
    };
    let mut arguments = Vec::new();
    for (name, value) in options {
        let option = option(&name);
        let values = match value {
            Value::Bool(true) => {
                arguments.push(option.into());
                continue;
            }
            Value::Bool(false) => continue,
            Value::Array(values) if name == "slo" => values,
            value => vec![value],
        };
        for value in values {
            let text = match value {
                Value::String(text) => text,
                Value::Number(number) => number.to_string(),
                Value::Object(_) | Value::Array(_) if ["data", "metadata", "tags"].contains(&name.as_str()) => {
                    value.to_string()
                }
                _ => bail!("{}: {name} has a value that no option has", path.display()),
            };
            arguments.push(format!("{option}={text}").into());
        }
    }
    Ok(arguments)
}

/// ghz writes some names in camel case, and keeps two of them so on the command line.
fn option(name: &str) -> String {
    let mut option = "--".to_owned();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && name != "skipFirst" && name != "skipTLS" {
            option.push('-');
            option.push(letter.to_ascii_lowercase());
        } else {
            option.push(letter);
        }
    }
    option
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(name: &str, text: &str) -> anyhow::Result<Vec<String>> {
        let path = std::env::temp_dir().join(format!("{}-{name}", fastrand::u64(..)));
        std::fs::write(&path, text).unwrap();
        let line = [
            "sluice-load",
            "publish",
            "--config",
            &path.to_string_lossy(),
            "--rps",
            "5",
        ]
        .map(OsString::from);
        let arguments = expand(line.into_iter());
        std::fs::remove_file(path).unwrap();
        Ok(arguments?
            .into_iter()
            .map(|argument| argument.into_string().unwrap())
            .collect())
    }

    #[test]
    fn files_of_both_kinds_come_before_the_command_line() {
        let toml = "rps = 10\nduration = \"5s\"\ninsecure = true\nquiet = false\nslo = [\"lost<1\", \"errors<1\"]\n";
        let arguments = expanded("a.toml", toml).unwrap();
        assert_eq!(arguments[1], "publish");
        assert_eq!(arguments.last().unwrap(), "5");
        for option in [
            "--rps=10",
            "--duration=5s",
            "--insecure",
            "--slo=lost<1",
            "--slo=errors<1",
        ] {
            assert!(arguments.contains(&option.to_owned()), "{option} in {arguments:?}");
        }
        let json = r#"{"maxDuration":"3s","skipFirst":5,"tags":{"a":"b"},"host":"h:1"}"#;
        let arguments = expanded("a.json", json).unwrap();
        for option in [
            "--max-duration=3s",
            "--skipFirst=5",
            "--tags={\"a\":\"b\"}",
            "--host=h:1",
        ] {
            assert!(arguments.contains(&option.to_owned()), "{option} in {arguments:?}");
        }
        assert!(expanded("b.json", "{\"rps\":[1]}").is_err());
        assert!(expanded("c.toml", "= 5").is_err());
    }
}
