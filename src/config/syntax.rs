//! Text -> table: TOML syntax, all of its errors at once.

use super::diagnostic::{Diagnostic, Diagnostics, Span};
use super::value::{self, Table};
use toml::de::DeTable;

/// Parses the text number 0. Syntax errors go into `problems`; the table is then incomplete.
pub fn parse(text: &str, problems: &mut Diagnostics) -> Table {
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let span = Span::new(0, error.span().unwrap_or(text.len()..text.len()));
        problems.push(match error.message() {
            "duplicate key" => duplicate(text, span),
            message => {
                let (title, expected) = message.split_once(", expected ").unwrap_or((message, ""));
                let mut title = title.to_string();
                // `missing newline` and the like start in lower case already; keep it so for all.
                if let Some(first) = title.get_mut(..1) {
                    first.make_ascii_lowercase();
                }
                let problem = Diagnostic::new(title, span).hint_if(hint(message, text, span));
                if expected.is_empty() { problem } else { problem.label(format!("expected {expected}")) }
            }
        });
    }
    value::table(0, 0, table.into_inner())
}

/// A way out of the commonest slips.
fn hint(message: &str, text: &str, span: Span) -> Option<String> {
    let rest = text.get(span.start as usize..).unwrap_or_default();
    let word: String = rest.chars().take_while(|c| c.is_alphanumeric() || "_-./".contains(*c)).collect();
    let line = text.get(..span.start as usize).and_then(|before| before.rsplit('\n').next()).unwrap_or_default();
    if line.trim_end().ends_with('=') && word.starts_with(|c: char| c.is_alphabetic()) {
        return Some(format!("strings take quotes: `\"{word}\"`"));
    }
    message.contains("string").then(|| "a string ends with the quote that it begins with, on the same line".into())
}

/// The key at `span` stands twice. The parser does not say where the first one is; it is looked for line by line.
fn duplicate(text: &str, span: Span) -> Diagnostic {
    let start = span.start as usize;
    let name = text.get(start..span.end as usize).unwrap_or_default();
    let line_start = text.get(..start).and_then(|before| before.rfind('\n')).map_or(0, |newline| newline + 1);
    let line = text[line_start..].lines().next().unwrap_or_default();
    let before = || {
        let mut at = 0;
        text[..line_start].split_inclusive('\n').map(move |line| {
            at += line.len();
            (at - line.len(), line)
        })
    };
    let header = |line: &str| {
        let line = line.trim_start();
        let inner = line.strip_prefix('[').filter(|inner| !inner.starts_with('['))?;
        let end = inner.find(']')?;
        Some(inner[..end].split('.').map(str::trim).collect::<Vec<_>>().join("."))
    };
    let title = match header(line).as_deref().map(|path| (path.split_once('.'), path)) {
        Some((Some(("stages", stage)), _)) if !stage.contains('.') => format!("stage `{stage}` is defined twice"),
        Some((Some(("profile", profile)), _)) if !profile.contains('.') => {
            format!("profile `{profile}` is defined twice")
        }
        Some((_, path)) => format!("`[{path}]` is written twice"),
        None => format!("`{name}` is set twice"),
    };
    let first = match header(line) {
        Some(path) => before()
            .find(|(_, earlier)| header(earlier).as_deref() == Some(path.as_str()))
            .map(|(at, earlier)| at + earlier.find(name).unwrap_or(0)),
        None => {
            let same_line = line.find(name).map(|column| line_start + column).filter(|at| *at < start);
            let section: Vec<(usize, &str)> = before().collect();
            let earlier = section
                .iter()
                .rev()
                .take_while(|(_, line)| header(line).is_none())
                .filter(|(_, line)| line.split_once('=').is_some_and(|(key, _)| key.trim() == name));
            earlier.last().map(|(at, line)| at + line.find(name).unwrap_or(0)).or(same_line)
        }
    };
    let problem = Diagnostic::new(title, span).label("the second one").hint("keep one of the two, or rename one");
    match first {
        Some(at) => problem.context(Span::new(0, at..at + name.len()), "the first one"),
        None => problem,
    }
}
