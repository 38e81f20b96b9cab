//! What no linter checks about the source. Needs no running part.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sluice_tests::servers;

const MAX_LINES: usize = 600;
const CRATES: [&str; 9] = [
    "proto",
    "kafka",
    "gateway",
    "gateway/fuzz",
    "processor",
    "load",
    "ctl",
    "clients/rust",
    "tests",
];
/// The pages whose file names must be right.
const PAGES: [&str; 5] = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "STYLE.md",
    "clients/README.md",
];
/// A page that names every option with its default.
const OPTIONS_PAGE: &str = "docs/operations.md";
/// What makes a word in backticks the name of a file.
const FILE_ENDINGS: [&str; 14] = [
    ".rs", ".md", ".toml", ".sh", ".proto", ".avsc", ".yaml", ".yml", ".sql", ".xml", ".txt", ".json", ".py", ".go",
];

/// Collects what is wrong, so that one run shows everything.
#[derive(Default)]
struct Faults(String);

impl Faults {
    fn add(&mut self, place: impl std::fmt::Display, fault: &str) {
        // Writing to a String cannot fail.
        let _written = writeln!(self.0, "{place}: {fault}");
    }

    fn check(self) {
        assert!(self.0.is_empty(), "\n{}", self.0);
    }
}

/// Files below a directory, with their content, without what tools generate.
fn files(directory: &Path, ending: &str) -> Result<Vec<(PathBuf, String)>> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && !["target", "node_modules", "build", "dist"].contains(&name.as_str()) {
                    open.push(path);
                }
            } else if name.ends_with(ending) {
                let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                found.push((path.strip_prefix(servers::root())?.to_owned(), text));
            }
        }
    }
    found.sort();
    Ok(found)
}

fn sources() -> Result<Vec<(PathBuf, String)>> {
    let root = servers::root();
    let mut all = Vec::new();
    for name in CRATES {
        all.extend(files(&root.join(name), ".rs")?);
    }
    Ok(all)
}

/// The lines of a file that are neither comments nor texts, numbered from 1.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    lines.filter(|(_number, line)| !line.trim_start().starts_with("//"))
}

#[test]
fn every_source_file_says_what_it_owns_and_is_short() {
    let mut faults = Faults::default();
    for (path, text) in sources().expect("the source is readable") {
        if !text.starts_with("//! ") {
            faults.add(path.display(), "does not open with //!");
        }
        let lines = text.lines().count();
        if lines > MAX_LINES {
            faults.add(path.display(), &format!("has {lines} lines, more than {MAX_LINES}"));
        }
    }
    faults.check();
}

#[test]
fn nothing_is_ignored_unfinished_or_left_from_debugging() {
    // Written in parts, so that this file does not contain them.
    let forbidden = [
        ["#[ig", "nore"].concat(),
        ["to", "do!("].concat(),
        ["unimpl", "emented!("].concat(),
        ["db", "g!("].concat(),
        ["FIX", "ME"].concat(),
    ];
    let mut faults = Faults::default();
    for (path, text) in sources().expect("the source is readable") {
        for (number, line) in text.lines().enumerate() {
            for word in forbidden.iter().filter(|word| line.contains(word.as_str())) {
                faults.add(
                    format_args!("{}:{}", path.display(), number + 1),
                    &format!("has {word}"),
                );
            }
        }
    }
    faults.check();
}

/// Whether a line calls a constructor of tonic's status. `Status::from` converts and `Status::from_header_map` reads, which
/// only give on what was made.
fn makes_status(line: &str) -> bool {
    line.match_indices("Status::").any(|(at, found)| {
        let is_longer_name = line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let rest = &line[at + found.len()..];
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let is_function = name.starts_with(|c: char| c.is_ascii_lowercase()) && rest[name.len()..].starts_with('(');
        !is_longer_name && is_function && !matches!(name.as_str(), "from" | "from_header_map")
    })
}

#[test]
fn statuses_are_made_in_one_file() {
    let mut faults = Faults::default();
    for (path, text) in sources().expect("the source is readable") {
        if !path.starts_with("gateway/src") || path.ends_with("gateway/src/status.rs") {
            continue;
        }
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for (number, _line) in code(text).filter(|(_number, line)| makes_status(line)) {
            faults.add(
                format_args!("{}:{number}", path.display()),
                "makes a status: gateway/src/status.rs does that",
            );
        }
    }
    faults.check();
}

#[test]
fn no_test_sleeps() {
    let sleep = ["sle", "ep("].concat();
    let mut faults = Faults::default();
    for (path, text) in sources().expect("the source is readable") {
        let is_test = path.starts_with("tests") || path.to_string_lossy().ends_with("tests.rs");
        let from = if is_test {
            Some(0)
        } else {
            text.find("#[cfg(test)]\nmod tests {")
        };
        let Some(from) = from else { continue };
        let first = text[..from].lines().count();
        for (number, line) in code(&text[from..]) {
            if line.contains(&sleep) {
                faults.add(
                    format_args!("{}:{}", path.display(), first + number),
                    "waits for time to pass, not for a condition",
                );
            }
        }
    }
    faults.check();
}

#[test]
fn versions_are_in_the_workspace_only() {
    let mut faults = Faults::default();
    for name in CRATES {
        let path = servers::root().join(name).join("Cargo.toml");
        let text = std::fs::read_to_string(&path).expect("each crate has a manifest");
        let mut in_dependencies = false;
        for (index, line) in text.lines().enumerate() {
            if line.starts_with('[') {
                in_dependencies = line.contains("dependencies");
            } else if in_dependencies
                && line.contains('=')
                && !line.contains("workspace = true")
                && !line.starts_with('#')
            {
                faults.add(
                    format_args!("{name}/Cargo.toml:{}", index + 1),
                    "has a dependency outside the workspace's table",
                );
            }
        }
    }
    faults.check();
}

/// The words in backticks outside of blocks of code.
fn quoted(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut in_block = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        }
        if !in_block && !line.starts_with("    ") {
            words.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    words
}

/// The targets of Markdown links that are no addresses.
fn linked(text: &str) -> Vec<String> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let local = targets.filter(|target| !target.contains("://") && !target.starts_with('#'));
    local
        .map(|target| target.split('#').next().unwrap_or_default().to_owned())
        .collect()
}

fn looks_like_a_file(word: &str) -> bool {
    let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
    let named = word.contains('/') && (word.ends_with('/') || FILE_ENDINGS.iter().any(|ending| word.ends_with(ending)));
    plain && named && !word.starts_with('/') && !word.starts_with('.')
}

#[test]
fn every_file_that_a_page_names_exists() {
    let root = servers::root();
    let mut faults = Faults::default();
    let mut pages: Vec<PathBuf> = PAGES.iter().map(PathBuf::from).collect();
    let documents = files(&root.join("docs"), ".md").expect("docs is readable");
    pages.extend(documents.into_iter().map(|(path, _text)| path));
    for page in pages {
        let Ok(text) = std::fs::read_to_string(root.join(&page)) else {
            faults.add(page.display(), "is missing");
            continue;
        };
        for name in quoted(&text).iter().filter(|word| looks_like_a_file(word)) {
            let candidates = [
                root.join(name),
                root.join(page.parent().unwrap_or(Path::new(""))).join(name),
            ];
            if !candidates.iter().any(|path| path.exists()) {
                faults.add(page.display(), &format!("names {name}, which does not exist"));
            }
        }
        for target in linked(&text) {
            if !root.join(page.parent().unwrap_or(Path::new(""))).join(&target).exists() {
                faults.add(page.display(), &format!("links to {target}, which does not exist"));
            }
        }
    }
    faults.check();
}

/// The help's paragraph of each option, with the option's environment variable.
fn options(help: &str) -> Vec<(String, String)> {
    let mut paragraphs: Vec<String> = Vec::new();
    for line in help.lines() {
        if line.trim_start().starts_with("--") || (line.trim_start().starts_with('-') && line.contains(", --")) {
            paragraphs.push(String::new());
        }
        if let Some(paragraph) = paragraphs.last_mut() {
            paragraph.push_str(line.trim());
            paragraph.push('\n');
        }
    }
    let variable = |paragraph: &String| {
        let (_before, rest) = paragraph.split_once("[env: ")?;
        let name = rest.split(['=', ']']).next()?.to_owned();
        Some((name, paragraph.clone()))
    };
    paragraphs.iter().filter_map(variable).collect()
}

#[test]
fn every_option_is_documented_with_its_default() {
    let page = std::fs::read_to_string(servers::root().join(OPTIONS_PAGE)).expect("the options have a page");
    let documented: BTreeSet<String> = quoted(&page).into_iter().collect();
    let mut faults = Faults::default();
    for name in ["sluice-gateway", "sluice-processor"] {
        let program = servers::binary(name).expect("the binaries are built");
        // What is set in the environment would be shown as the value.
        let output = Command::new(program)
            .arg("--help")
            .env_clear()
            .output()
            .expect("the binary starts");
        let help = String::from_utf8_lossy(&output.stdout).into_owned();
        let found = options(&help);
        if found.is_empty() {
            faults.add(name, "has a help without options");
        }
        for (variable, paragraph) in found {
            let place = format!("{name} {variable}");
            let says_what = paragraph
                .lines()
                .skip(1)
                .any(|line| !line.is_empty() && !line.starts_with('['));
            let on_one_line = paragraph
                .lines()
                .next()
                .is_some_and(|line| line.matches("  ").count() > 0);
            if !says_what && !on_one_line {
                faults.add(&place, "is not explained by --help");
            }
            if !paragraph.contains("[default: ")
                && !paragraph.to_lowercase().contains("unset")
                && !paragraph.contains("none")
            {
                faults.add(
                    &place,
                    "has neither a default in --help nor words for what happens without it",
                );
            }
            if !documented.contains(&variable) {
                faults.add(&place, &format!("is not in {OPTIONS_PAGE}"));
            }
        }
    }
    faults.check();
}
