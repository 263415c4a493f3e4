//! Text -> table: TOML syntax, all of its errors at once.

use super::diagnostic::{Diagnostic, Diagnostics, Span};
use super::value::{self, Table};
use toml::de::DeTable;

/// Parses the text number 0. Syntax errors go into `problems`; the table is then incomplete.
pub fn parse(text: &str, problems: &mut Diagnostics) -> Table {
    let (table, errors) = DeTable::parse_recoverable(text);
    let errors: Vec<(Span, &str)> = errors
        .iter()
        .map(|error| (Span::new(0, error.span().unwrap_or(text.len()..text.len())), error.message()))
        .collect();
    // Keys of a table that stands twice are all doubled; the table is what needs a word.
    let doubled: Vec<usize> = errors
        .iter()
        .filter(|(_, message)| *message == DUPLICATE)
        .filter_map(|(span, _)| header(line_at(text, span.start).1).map(|_| line_at(text, span.start).0))
        .collect();
    let section = |span: Span| {
        let before = text.get(..line_at(text, span.start).0).unwrap_or_default();
        let mut start = before.len();
        before.split_inclusive('\n').rev().find_map(|line| {
            start -= line.len();
            header(line).map(|_| start)
        })
    };
    let mut last_line = None;
    for (index, (span, message)) in errors.iter().enumerate() {
        let line = line_at(text, span.start);
        if *message == DUPLICATE {
            let is_doubled = header(line.1).is_none() && section(*span).is_some_and(|start| doubled.contains(&start));
            if !is_doubled {
                problems.push(duplicate(text, *span));
            }
            continue;
        }
        // One slip makes the parser stumble all along the line: the first error counts, or what was left open.
        let same_line = |(other, _): &&(Span, &str)| line_at(text, other.start).0 == line.0;
        let open = errors[index..].iter().take_while(same_line).find(|(_, message)| message.starts_with("unclosed"));
        if last_line.replace(line.0) != Some(line.0) {
            let (span, message) = open.unwrap_or(&errors[index]);
            problems.push(slip(text, *span, message));
        }
    }
    value::table(0, 0, table.into_inner())
}

/// The parser's word for a key or table that stands twice.
const DUPLICATE: &str = "duplicate key";

/// The parser's word for a bare word where a value should stand, or nothing at all.
const UNQUOTED: &str = "string values must be quoted";

/// Where the line of byte `at` begins, and the line.
fn line_at(text: &str, at: u32) -> (usize, &str) {
    let mut at = (at as usize).min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    (start, text[start..].lines().next().unwrap_or_default())
}

/// The dotted path of a line such as `[stages.model]`.
fn header(line: &str) -> Option<String> {
    let inner = line.trim_start().strip_prefix('[').filter(|inner| !inner.starts_with('['))?;
    let end = inner.find(']')?;
    Some(inner[..end].split('.').map(str::trim).collect::<Vec<_>>().join("."))
}

/// A syntax error, with a way out of the commonest ones.
fn slip(text: &str, span: Span, message: &str) -> Diagnostic {
    let rest = text.get(span.start as usize..).unwrap_or_default();
    let word: String = rest.chars().take_while(|c| c.is_alphanumeric() || "_-./".contains(*c)).collect();
    if message.starts_with(UNQUOTED) {
        return match word.as_str() {
            "" => Diagnostic::new("a key without a value", span).label("expected a value"),
            "True" | "False" => Diagnostic::new(format!("`{word}` is no value"), span)
                .label("expected `true` or `false`")
                .hint(format!("write `{}`", word.to_lowercase())),
            _ => Diagnostic::new("a string without quotes", span)
                .label("expected a value")
                .hint(format!("strings take quotes: `\"{word}\"`")),
        };
    }
    let (title, expected) = message.split_once(", expected ").unwrap_or((message, ""));
    let mut title = title.to_string();
    if let Some(first) = title.get_mut(..1) {
        first.make_ascii_lowercase();
    }
    let mut problem = Diagnostic::new(title, span);
    problem = match expected {
        "" => problem,
        "nothing" => problem.label("expected nothing more here"),
        _ => problem.label(format!("expected {}", expected.replace(", ", " or "))),
    };
    let opened = match message {
        _ if message.starts_with("unclosed array") => opening(text, span, '[', ']'),
        _ if message.starts_with("unclosed inline table") => opening(text, span, '{', '}'),
        _ => None,
    };
    if let Some(at) = opened {
        problem = problem.context(Span::new(0, at..at + 1), "opened here");
    }
    if message.contains("string") {
        problem = problem.hint("a string ends with the quote that it begins with, on the same line");
    }
    problem
}

/// Where the bracket was opened that is still open at `span`. Brackets in strings are counted too: this is a guess.
fn opening(text: &str, span: Span, open: char, close: char) -> Option<usize> {
    let mut n_closed = 0;
    for (at, c) in text.get(..span.start as usize)?.char_indices().rev() {
        if c == close {
            n_closed += 1;
        } else if c == open {
            if n_closed == 0 {
                return Some(at);
            }
            n_closed -= 1;
        }
    }
    None
}

/// The key at `span` stands twice. The parser does not say where the first one is; it is looked for line by line.
fn duplicate(text: &str, span: Span) -> Diagnostic {
    let start = span.start as usize;
    let name = text.get(start..span.end as usize).unwrap_or_default();
    let (line_start, line) = line_at(text, span.start);
    let before = || {
        let mut at = 0;
        text[..line_start].split_inclusive('\n').map(move |line| {
            at += line.len();
            (at - line.len(), line)
        })
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
