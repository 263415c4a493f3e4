//! Problems in what a user wrote, shown as source excerpts with carets.
//!
//! Every later step pushes into one [`Diagnostics`], so that all problems of a file are reported together, in the
//! order of the file (invariant 8). Drawing is left to `annotate-snippets`, behind this module alone.

use crate::error::{Class, Error};
use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

/// A text that problems point into: the pipeline file, or a command-line argument.
#[derive(Clone, Debug)]
pub struct Text {
    /// What stands before the line number: the path as given, or `--set 1`.
    pub name: String,
    /// The text.
    pub text: String,
}

/// A range of bytes of one [`Text`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// Which text.
    pub text: u32,
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Span {
    /// The span `range` of the text number `text`. Pipelines above 4 GiB are refused when they are read.
    pub fn new(text: u32, range: Range<usize>) -> Span {
        Span { text, start: range.start as u32, end: range.end as u32 }
    }

    /// The part of this span from byte `start` to byte `end`, both counted from its beginning.
    pub fn part(self, start: usize, end: usize) -> Span {
        let at = |offset: usize| (self.start + offset as u32).min(self.end);
        Span { text: self.text, start: at(start), end: at(end) }
    }
}

/// One problem: what is wrong, where, what was expected there, and ways out.
#[derive(Clone, Debug)]
pub struct Diagnostic {
    title: String,
    span: Span,
    label: String,
    context: Vec<(Span, String)>,
    hints: Vec<String>,
}

impl Diagnostic {
    /// `title` says what is wrong, as a lower-case fragment; the caret goes under `span`.
    pub fn new(title: impl Into<String>, span: Span) -> Diagnostic {
        Diagnostic { title: title.into(), span, label: String::new(), context: Vec::new(), hints: Vec::new() }
    }

    /// What was expected; stands beside the caret.
    pub fn label(mut self, label: impl Into<String>) -> Diagnostic {
        self.label = label.into();
        self
    }

    /// Another place that matters.
    pub fn context(mut self, span: Span, label: impl Into<String>) -> Diagnostic {
        self.context.push((span, label.into()));
        self
    }

    /// What to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Diagnostic {
        self.hints.push(hint.into());
        self
    }

    /// `hint`, if there is one.
    pub fn hint_if(self, hint: Option<String>) -> Diagnostic {
        match hint {
            Some(hint) => self.hint(hint),
            None => self,
        }
    }
}

/// The problems found so far, and the texts that they point into.
#[derive(Clone, Debug)]
pub struct Diagnostics {
    texts: Arc<Vec<Text>>,
    list: Vec<Diagnostic>,
    /// A stage is checked once per point of the matrix, and once per profile: the same problem is told once.
    seen: HashSet<(Span, String)>,
    /// Whether the matrix itself is wrong, so that nothing more is to be said about `${...}`.
    pub(crate) is_matrix_broken: bool,
}

impl Diagnostics {
    /// None yet.
    pub fn new(texts: Arc<Vec<Text>>) -> Diagnostics {
        Diagnostics { texts, list: Vec::new(), seen: HashSet::new(), is_matrix_broken: false }
    }

    /// Adds a problem, unless the same was told about the same place.
    pub fn push(&mut self, problem: Diagnostic) {
        if self.seen.insert((problem.span, problem.title.clone())) {
            self.list.push(problem);
        }
    }

    /// Whether all is well.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether `text`, written at `span`, still has a `${...}` because of a problem already told.
    pub fn is_unresolved(&self, text: &str, span: Span) -> bool {
        text.contains("${") && (self.is_matrix_broken || self.has_within(span))
    }

    /// Whether a problem was told about a part of `span`.
    fn has_within(&self, span: Span) -> bool {
        self.list.iter().any(|problem| {
            let here = problem.span;
            here.text == span.text && here.start >= span.start && here.end <= span.end
        })
    }

    /// The texts.
    pub fn texts(&self) -> &Arc<Vec<Text>> {
        &self.texts
    }

    /// What stands at `span`.
    pub fn excerpt(&self, span: Span) -> &str {
        let text = self.texts.get(span.text as usize).map_or("", |text| text.text.as_str());
        text.get(span.start as usize..span.end as usize).unwrap_or_default()
    }

    /// All problems, in the order of the texts, as one error.
    pub fn into_error(self, style: bool) -> Error {
        Error::rendered(Class::User, self.render(style))
    }

    /// All problems, laid out; with terminal colours if `style`.
    pub fn render(&self, style: bool) -> String {
        let renderer = if style { Renderer::styled() } else { Renderer::plain() };
        let mut problems: Vec<&Diagnostic> = self.list.iter().collect();
        problems.sort_by_key(|problem| problem.span);
        let mut out = String::new();
        for problem in &problems {
            let drawn = renderer.render(&[self.group(problem)]);
            // The renderer pads some lines up to their missing label.
            for line in drawn.lines() {
                out.push_str(line.trim_end());
                out.push('\n');
            }
            out.push('\n');
        }
        match (problems.len(), self.texts.first()) {
            (0 | 1, _) | (_, None) => {
                out.truncate(out.trim_end().len());
            }
            (n, Some(file)) => out.push_str(&format!("{n} problems in `{}`", file.name)),
        }
        out
    }

    fn group<'a>(&'a self, problem: &'a Diagnostic) -> Group<'a> {
        let mut group = Group::with_title(Level::ERROR.primary_title(problem.title.as_str()));
        let (here, elsewhere): (Vec<_>, Vec<_>) =
            problem.context.iter().partition(|(span, _)| span.text == problem.span.text);
        group = group.element(self.snippet(Some((problem.span, &problem.label)), &here));
        for context in elsewhere {
            group = group.element(self.snippet(None, &[context]));
        }
        for hint in &problem.hints {
            group = group.element(Level::HELP.with_name(Some("hint")).message(hint.as_str()));
        }
        group
    }

    /// The lines of one text that `primary` and `context` touch.
    fn snippet<'a>(
        &'a self,
        primary: Option<(Span, &'a str)>,
        context: &[&'a (Span, String)],
    ) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
        let spans = || primary.iter().map(|(span, _)| *span).chain(context.iter().map(|(span, _)| *span));
        let (name, text) = spans()
            .next()
            .and_then(|span| self.texts.get(span.text as usize))
            .map_or(("", ""), |text| (text.name.as_str(), text.text.as_str()));
        let clipped = |span: Span| clip(text, span);
        // Only the lines in question are handed over: the renderer walks all that it is given.
        let first = spans().map(|span| clipped(span).start).min().unwrap_or(0);
        let last = spans().map(|span| clipped(span).end).max().unwrap_or(0);
        let from = text[..first].rfind('\n').map_or(0, |newline| newline + 1);
        let to = text[last..].find('\n').map_or(text.len(), |newline| last + newline);
        let line = 1 + text.as_bytes()[..from].iter().filter(|byte| **byte == b'\n').count();
        let local = |span: Span| {
            let range = clipped(span);
            range.start - from..range.end - from
        };
        let mut snippet = Snippet::source(&text[from..to]).path(name).line_start(line);
        if let Some((span, label)) = primary {
            let annotation = AnnotationKind::Primary.span(local(span));
            snippet = snippet.annotation(if label.is_empty() { annotation } else { annotation.label(label) });
        }
        for (span, label) in context {
            snippet = snippet.annotation(AnnotationKind::Context.span(local(*span)).label(label.as_str()));
        }
        snippet
    }
}

/// The bytes of `span` on its first line, on character boundaries, within the text.
fn clip(text: &str, span: Span) -> Range<usize> {
    let boundary = |mut at: usize| {
        at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let start = boundary(span.start as usize);
    let end = boundary(span.end as usize).max(start);
    let line = text[start..end].find('\n').map_or(end, |newline| start + newline);
    start..line.max(start)
}

/// The candidate that `word` was probably meant to be.
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    let word = plain(word);
    let allowed = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (distance(&word, &plain(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= allowed && *distance < candidate.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `did you mean ...?`, if something is close.
pub fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    closest(word, candidates).map(|candidate| format!("did you mean `{candidate}`?"))
}

/// Edits (insertion, deletion, replacement, swap of neighbours) between two words.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    // Three rows of the table: a swap looks two rows back.
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, right) in b.iter().enumerate() {
            let mut best = (above[j + 1] + 1).min(row[j] + 1).min(above[j] + usize::from(left != right));
            if i > 0 && j > 0 && *left == b[j - 1] && a[i - 1] == *right {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

/// `` `a`, `b` or `c` ``.
pub fn one_of<'a>(names: impl IntoIterator<Item = &'a str>, last: &str) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    match names.split_last() {
        Some((end, [])) => end.clone(),
        Some((end, start)) => format!("{} {last} {end}", start.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions_are_close_and_only_close() {
        let names = ["rate", "target", "trigger", "poison_rate"];
        assert_eq!(closest("raet", names), Some("rate"));
        assert_eq!(closest("Target", names), Some("target"));
        assert_eq!(closest("poison-rate", names), Some("poison_rate"));
        assert_eq!(closest("epochs", names), None);
        assert_eq!(closest("a", ["b"]), None);
    }

    #[test]
    fn every_span_can_be_drawn() {
        let text = "é = 1\r\n\tb = \"日本\"\n";
        let texts = Arc::new(vec![Text { name: "x.toml".into(), text: text.into() }]);
        for start in 0..text.len() + 3 {
            for end in 0..text.len() + 3 {
                let mut problems = Diagnostics::new(texts.clone());
                let span = Span { text: 0, start: start as u32, end: end as u32 };
                problems.push(Diagnostic::new("wrong", span).label("here").context(Span::default(), "there"));
                assert!(problems.render(false).contains("x.toml:"));
            }
        }
    }

    #[test]
    fn all_problems_are_drawn_in_order_and_once() {
        let texts = Arc::new(vec![Text { name: "x.toml".into(), text: "a = 1\nb = 2\n".into() }]);
        let mut problems = Diagnostics::new(texts);
        problems.push(Diagnostic::new("second", Span { text: 0, start: 10, end: 11 }).hint("do this"));
        problems.push(Diagnostic::new("first", Span { text: 0, start: 4, end: 5 }).label("expected 3"));
        problems.push(Diagnostic::new("first", Span { text: 0, start: 4, end: 5 }));
        let drawn = problems.render(false);
        let expected = "\
error: first
 --> x.toml:1:5
  |
1 | a = 1
  |     ^ expected 3

error: second
 --> x.toml:2:5
  |
2 | b = 2
  |     ^
  |
  = hint: do this

2 problems in `x.toml`";
        assert_eq!(drawn, expected);
    }
}
