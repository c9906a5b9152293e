//! Commands in a page: fenced blocks without a language, or with a shell's, and `graftwork …` inside the text.

use std::{fmt, fs};

use anyhow::{Context as _, Result, ensure};

use crate::root;

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

/// `graftwork …` inside the text of a page.
pub(crate) fn spans(page: &str) -> Result<Vec<Command>> {
    let (mut spans, mut fenced) = (Vec::new(), false);
    for (at, line) in text_of(page)?.lines().enumerate() {
        fenced ^= line.starts_with("```");
        let quoted = line.split('`').skip(1).step_by(2).filter(|text| text.starts_with("graftwork ") && !fenced);
        spans.extend(quoted.map(|text| Command { page: page.to_owned(), line: at + 1, text: text.to_owned() }));
    }
    Ok(spans)
}

/// The job file that the page shows first.
pub(crate) fn job(page: &str) -> Result<String> {
    let blocks = blocks(page, &["toml"])?;
    let text = blocks.into_iter().map(|(_, lines)| lines.join("\n") + "\n").find(|text| text.contains("[base_model]"));
    text.with_context(|| format!("{page} shows no job"))
}
