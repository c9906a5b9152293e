//! Commands in a page: fenced blocks without a language, or with a shell's, and `graftwork …`, `make …`, `cargo …` and
//! `scripts/…` inside the text; and those in comments of deployment files.

use std::{fmt, fs, path::Path};

use anyhow::{Context as _, Result, ensure};

use crate::{
    names::{is_assignment, words},
    root,
};

/// A command, and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    pub(crate) page: String,
    line: usize,
    pub(crate) text: String,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.page, self.line, self.text)
    }
}

fn text_of(page: &str) -> Result<String> {
    fs::read_to_string(root().join(page)).with_context(|| page.to_owned())
}

/// Blocks of a language: the number of the first line, and the lines.
fn blocks(page: &str, languages: &[&str]) -> Result<Vec<(usize, Vec<String>)>> {
    let (mut blocks, mut open): (Vec<(usize, Vec<String>)>, Option<bool>) = (Vec::new(), None);
    for (at, line) in text_of(page)?.lines().enumerate() {
        match (line.strip_prefix("```"), open) {
            (Some(language), None) => {
                let wanted = languages.contains(&language);
                open = Some(wanted);
                if wanted {
                    blocks.push((at + 2, Vec::new()));
                }
            }
            (Some(_), Some(_)) => open = None,
            (None, Some(true)) => blocks.last_mut().context("a block is open")?.1.push(line.to_owned()),
            (None, _) => {}
        }
    }
    ensure!(open.is_none(), "{page}: a block does not end");
    Ok(blocks)
}

/// A line without its comment; `#` inside quotes is none.
fn without_comment(line: &str) -> &str {
    let (mut quoted, mut before) = (false, ' ');
    for (at, letter) in line.char_indices() {
        match letter {
            '"' => quoted = !quoted,
            '#' if !quoted && before == ' ' => return line[..at].trim_end(),
            _ => {}
        }
        before = letter;
    }
    line.trim_end()
}

/// Every command of the page's blocks, in order; continued lines are one.
pub(crate) fn commands(page: &str) -> Result<Vec<Command>> {
    let mut commands = Vec::new();
    for (first, lines) in blocks(page, &["", "sh", "console"])? {
        let mut open: Option<Command> = None;
        for (at, line) in lines.iter().enumerate() {
            let line = without_comment(line);
            let (part, goes_on) = line.strip_suffix('\\').map_or((line, false), |part| (part, true));
            let command = open.get_or_insert_with(|| {
                let page = page.to_owned();
                Command { page, line: first + at, text: String::new() }
            });
            command.text.push_str(if command.text.is_empty() { "" } else { " " });
            command.text.push_str(part.trim());
            if !goes_on {
                commands.extend(open.take().filter(|command| !command.text.is_empty()));
            }
        }
        ensure!(open.is_none(), "{page}: the last command of a block goes on nowhere");
    }
    Ok(commands)
}

/// `graftwork …`, `make …`, `cargo …` and `scripts/…` inside the text of a page; one may go on in the next line.
pub(crate) fn spans(page: &str) -> Result<Vec<Command>> {
    let (mut spans, mut fenced, mut open) = (Vec::new(), false, None::<Command>);
    for (at, line) in text_of(page)?.lines().enumerate() {
        fenced ^= line.starts_with("```");
        if fenced || line.starts_with("```") {
            continue;
        }
        ensure!(open.is_none() || !line.trim().is_empty(), "{page}:{}: a code span does not end", at + 1);
        for (nth, part) in line.split('`').enumerate() {
            if nth > 0 {
                match open.take() {
                    Some(span) => spans.extend(Some(span).filter(|span| is_command(&span.text))),
                    None => open = Some(Command { page: page.to_owned(), line: at + 1, text: String::new() }),
                }
            } else if let Some(span) = &mut open {
                span.text.push(' ');
            }
            if let Some(span) = &mut open {
                span.text.push_str(if nth == 0 { part.trim_start() } else { part });
            }
        }
    }
    Ok(spans)
}

/// Whether it is a script, or another program with more than its name.
fn is_command(text: &str) -> bool {
    let words = words(text);
    let mut words = words.iter().skip_while(|word| is_assignment(word));
    words.next().is_some_and(|first| {
        let script = first.starts_with("scripts/") && Path::new(first).extension().is_some();
        script || (["graftwork", "make", "cargo"].contains(&first.as_str()) && words.next().is_some())
    })
}

/// Commands in comments of the files below a folder: they stand five spaces behind their `#`. What a unit's environment file
/// holds are arguments of the unit's program.
pub(crate) fn comments(folder: &str) -> Result<Vec<Command>> {
    let mut commands = Vec::new();
    for entry in fs::read_dir(root().join(folder))? {
        let page = format!("{folder}/{}", entry?.file_name().to_string_lossy());
        if root().join(&page).is_dir() {
            commands.extend(comments(&page)?);
            continue;
        }
        let program = if page.contains("graftwork-worker") { "worker" } else { "coordinator" };
        for (at, line) in text_of(&page)?.lines().enumerate() {
            if let Some(text) = line.trim_start().strip_prefix("#     ") {
                let text = text.replace("OPTIONS=", &format!("graftwork {program} "));
                commands.push(Command { page: page.clone(), line: at + 1, text });
            }
        }
    }
    Ok(commands)
}

/// The job file that the page shows first.
pub(crate) fn job(page: &str) -> Result<String> {
    let blocks = blocks(page, &["toml"])?;
    let text = blocks.into_iter().map(|(_, lines)| lines.join("\n") + "\n").find(|text| text.contains("[base_model]"));
    text.with_context(|| format!("{page} shows no job"))
}
