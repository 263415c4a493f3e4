//! Tables as text: for a terminal, for a paper, for other programs.
//!
//! CSV and JSON are exact and complete. The others are for people: rounded as the columns say, hidden columns left
//! out unless asked for, notes below. Nothing here prints; the caller does.

use crate::artifact::Table;
use crate::artifact::table::{Cell, Column};
use crate::error::Result;
use serde_json::Value;

/// What a table is rendered as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Aligned columns for a terminal or a log.
    Terminal,
    /// RFC 4180, exact values, all columns, names as header.
    Csv,
    /// A GitHub-flavoured Markdown table.
    Markdown,
    /// A `tabular` with the rules of booktabs.
    Latex,
    /// The table as it is stored: columns with units and definitions, rows, notes.
    Json,
}

/// How a table for people looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Characters in a line of the terminal. A wider table is printed in blocks that repeat the leading columns.
    pub width: usize,
    /// Whether the terminal's header is bold.
    pub bold: bool,
    /// Whether hidden columns are shown, and the definitions of all columns with them.
    pub all: bool,
}

impl Default for Style {
    fn default() -> Style {
        Style { width: 100, bold: false, all: false }
    }
}

/// The table as text, ending in a newline.
///
/// # Errors
/// If it cannot be encoded as JSON.
pub fn render(table: &Table, format: Format, style: &Style) -> Result<String> {
    Ok(match format {
        Format::Terminal => terminal(table, style),
        Format::Csv => table.to_csv(),
        Format::Markdown => markdown(table, style),
        Format::Latex => latex(table, style),
        Format::Json => serde_json::to_string_pretty(table)? + "\n",
    })
}

/// One table of several, each from one point of a matrix: the point's keys become leading columns, columns of the
/// same name and unit become one, and notes that are the same are kept once.
pub fn join(parts: &[(Vec<(String, Value)>, Table)]) -> Table {
    let mut keys: Vec<&str> = Vec::new();
    let mut columns: Vec<Column> = Vec::new();
    let mut notes: Vec<String> = Vec::new();
    let remember = |notes: &mut Vec<String>, note: String| {
        if !notes.contains(&note) {
            notes.push(note);
        }
    };
    for (point, table) in parts {
        for (key, _) in point {
            if !keys.contains(&key.as_str()) {
                keys.push(key);
            }
        }
        for column in &table.columns {
            match columns.iter().find(|c| same(c, column)) {
                None => columns.push(column.clone()),
                Some(first) if first.definition != column.definition && !column.definition.is_empty() => {
                    remember(&mut notes, format!("{} in some rows: {}", column.name, column.definition));
                }
                Some(_) => {}
            }
        }
        for note in &table.notes {
            remember(&mut notes, note.clone());
        }
    }
    // A table may have a column that is called like a key: the key then says where it comes from.
    let taken = |key: &str| columns.iter().any(|c| c.name == key);
    let key_name = |key: &&str| if taken(key) { format!("matrix.{key}") } else { key.to_string() };
    let key_columns = keys.iter().map(|key| Column::new(&key_name(key), "value of this key of the matrix"));
    let mut joined = Table::new(key_columns.chain(columns.iter().cloned()).collect());
    joined.notes = notes;
    for (point, table) in parts {
        let places: Vec<Option<usize>> =
            columns.iter().map(|c| table.columns.iter().position(|own| same(own, c))).collect();
        for row in &table.rows {
            let of_key = |key: &&str| point.iter().find(|(k, _)| k == key).map_or(Cell::None, |(_, v)| cell(v));
            let of_column = |place: &Option<usize>| place.and_then(|i| row.get(i)).cloned().unwrap_or(Cell::None);
            joined.push(keys.iter().map(of_key).chain(places.iter().map(of_column)).collect());
        }
    }
    joined
}

fn same(a: &Column, b: &Column) -> bool {
    a.name == b.name && a.unit == b.unit
}

/// A value of the matrix as a cell.
pub(super) fn cell(value: &Value) -> Cell {
    match value {
        Value::Null => Cell::None,
        Value::Bool(value) => Cell::Bool(*value),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => Cell::Int(whole),
            None => number.as_f64().into(),
        },
        Value::String(text) => Cell::Text(text.clone()),
        other => Cell::Text(other.to_string()),
    }
}

/// A column as it is shown: its cells as text, numbers split at the decimal point so that they can be aligned.
struct Shown {
    name: String,
    unit: String,
    definition: String,
    is_number: bool,
    cells: Vec<Text>,
    /// The longest part before, and after, the decimal point (which counts as after).
    widths: (usize, usize),
}

/// A cell's text: all of a text, or the part of a number before its point, and the rest.
#[derive(Clone, Debug, PartialEq)]
struct Text {
    whole: String,
    rest: String,
}

impl Shown {
    fn of(table: &Table, style: &Style) -> Vec<Shown> {
        let visible = table.columns.iter().enumerate().filter(|(_, column)| style.all || !column.hidden);
        visible.map(|(i, column)| Shown::column(column, table.rows.iter().filter_map(|row| row.get(i)))).collect()
    }

    fn column<'a>(column: &Column, cells: impl Iterator<Item = &'a Cell>) -> Shown {
        let cells: Vec<&Cell> = cells.collect();
        let is_number =
            cells.iter().all(|c| c.number().is_some() || **c == Cell::None) && cells.iter().any(|c| **c != Cell::None);
        let cells: Vec<Text> = cells.into_iter().map(|cell| text(cell, column.digits)).collect();
        let longest = |part: fn(&Text) -> &str| cells.iter().map(|c| length(part(c))).max().unwrap_or(0);
        let widths = (longest(|c| &c.whole), longest(|c| &c.rest));
        let (name, unit) = (column.name.clone(), column.unit.clone());
        Shown { name, unit, definition: column.definition.clone(), is_number, cells, widths }
    }

    fn width(&self) -> usize {
        self.widths.0 + self.widths.1
    }

    /// The name as words, and the unit behind it: `clean accuracy (%)`.
    fn title(&self) -> String {
        let name = self.name.replace('_', " ");
        if self.unit.is_empty() { name } else { format!("{name} ({})", self.unit) }
    }
}

fn text(cell: &Cell, digits: Option<usize>) -> Text {
    let whole = |text: String| Text { whole: text, rest: String::new() };
    match cell {
        Cell::None => whole("–".into()),
        Cell::Bool(true) => whole("yes".into()),
        Cell::Bool(false) => whole("no".into()),
        Cell::Int(value) => whole(value.to_string()),
        Cell::Float(value) => {
            let number = match digits {
                Some(digits) => format!("{value:.digits$}"),
                None => significant(*value),
            };
            // No minus before a number that is rounded to zero.
            let is_zero = number.chars().all(|c| matches!(c, '-' | '0' | '.'));
            let number = if is_zero { number.trim_start_matches('-').to_string() } else { number };
            match number.split_once('.') {
                Some((before, after)) => Text { whole: before.to_string(), rest: format!(".{after}") },
                None => whole(number),
            }
        }
        Cell::Text(text) => whole(text.split_whitespace().collect::<Vec<_>>().join(" ")),
    }
}

/// Up to six significant digits, without zeros at the end.
fn significant(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 || (1e-4..1e15).contains(&size) {
        let before = if size >= 1.0 { libm::floor(libm::log10(size)) as usize + 1 } else { 1 };
        let digits = if size >= 1.0 { 6usize.saturating_sub(before) } else { 6 };
        let text = format!("{value:.digits$}");
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
    } else {
        format!("{value:.3e}")
    }
}

fn length(text: &str) -> usize {
    text.chars().count()
}

/// Between two columns of the terminal.
const BETWEEN: usize = 2;
/// A text longer than this is cut in the terminal if the table does not fit otherwise.
const LONGEST_TEXT: usize = 28;

fn terminal(table: &Table, style: &Style) -> String {
    let mut columns = Shown::of(table, style);
    let headers: Vec<Vec<String>> = columns.iter().map(header).collect();
    let total = |columns: &[Shown]| (0..columns.len()).map(|i| span(&columns[i], &headers[i]) + BETWEEN).sum::<usize>();
    if total(&columns) > style.width + BETWEEN {
        columns.iter_mut().filter(|c| !c.is_number).for_each(|column| {
            column.cells.iter_mut().for_each(|cell| cell.whole = cut(&cell.whole, LONGEST_TEXT));
            column.widths.0 = column.cells.iter().map(|c| length(&c.whole)).max().unwrap_or(0);
        });
    }
    let mut lines = Vec::new();
    for block in blocks(&columns, &headers, style.width) {
        if !lines.is_empty() {
            lines.push(String::new());
        }
        print_block(&mut lines, &block, &columns, &headers, style);
    }
    if table.rows.is_empty() {
        lines.push("(no rows)".into());
    }
    let mut notes = table.notes.clone();
    if style.all {
        let defined = columns.iter().filter(|c| !c.definition.is_empty());
        notes.extend(defined.map(|c| format!("{}: {}", c.name, c.definition)));
    }
    if !notes.is_empty() {
        lines.push(String::new());
    }
    for note in &notes {
        lines.extend(wrap(note, style.width));
    }
    lines.join("\n") + "\n"
}

fn print_block(out: &mut Vec<String>, block: &[usize], columns: &[Shown], headers: &[Vec<String>], style: &Style) {
    let join = |cells: Vec<String>| cells.join(&" ".repeat(BETWEEN)).trim_end().to_string();
    let pad = |text: &str, i: usize| {
        let fill = " ".repeat(span(&columns[i], &headers[i]).saturating_sub(length(text)));
        if columns[i].is_number { format!("{fill}{text}") } else { format!("{text}{fill}") }
    };
    let height = block.iter().map(|&i| headers[i].len()).max().unwrap_or(0);
    for line in 0..height {
        // Short headers stand at the bottom, on the rule.
        let of = |&i: &usize| (line + headers[i].len()).checked_sub(height).and_then(|at| headers[i].get(at));
        let text = join(block.iter().map(|i| pad(of(i).map_or("", String::as_str), *i)).collect());
        out.push(if style.bold { format!("\x1b[1m{text}\x1b[0m") } else { text });
    }
    out.push(join(block.iter().map(|&i| "─".repeat(span(&columns[i], &headers[i]))).collect()));
    let n_rows = block.iter().map(|&i| columns[i].cells.len()).max().unwrap_or(0);
    for row in 0..n_rows {
        let of = |&i: &usize| {
            let (column, cell) = (&columns[i], &columns[i].cells[row]);
            let point = column.widths.1.saturating_sub(length(&cell.rest));
            pad(&format!("{}{}{}", cell.whole, cell.rest, " ".repeat(if column.is_number { point } else { 0 })), i)
        };
        out.push(join(block.iter().map(of).collect()));
    }
}

/// A column's width in the terminal.
fn span(column: &Shown, header: &[String]) -> usize {
    header.iter().map(|line| length(line)).max().unwrap_or(0).max(column.width())
}

/// The header's lines: words of the name on as few lines as the width of the data allows, the unit last.
fn header(column: &Shown) -> Vec<String> {
    let words: Vec<&str> = column.name.split('_').filter(|word| !word.is_empty()).collect();
    let longest = words.iter().map(|word| length(word)).max().unwrap_or(0);
    let room = longest.max(column.width()).max(8);
    let mut lines: Vec<String> = Vec::new();
    let unit = if column.unit.is_empty() { None } else { Some(format!("({})", column.unit)) };
    for word in words.into_iter().chain(unit.as_deref()) {
        match lines.last_mut() {
            Some(line) if length(line) + 1 + length(word) <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_string()),
        }
    }
    lines
}

/// Columns by block: as many as fit, every block beginning with the columns that tell the rows apart.
fn blocks(columns: &[Shown], headers: &[Vec<String>], width: usize) -> Vec<Vec<usize>> {
    let cost = |i: usize| span(&columns[i], &headers[i]) + BETWEEN;
    let n_keys = n_keys(columns);
    let keys = (0..n_keys).map(cost).sum::<usize>();
    // Keys that leave no room for anything else are not repeated.
    let (first, kept) = if keys * 3 > width * 2 { (0, 0) } else { (n_keys, n_keys) };
    let mut blocks: Vec<Vec<usize>> = vec![(0..kept).collect()];
    let mut used = (0..kept).map(cost).sum::<usize>();
    let start = used;
    for i in first..columns.len() {
        let full = used + cost(i) > width + BETWEEN;
        if full && blocks.last().is_some_and(|block| block.len() > kept) {
            blocks.push((0..kept).collect());
            used = start;
        }
        if let Some(block) = blocks.last_mut() {
            block.push(i);
        }
        used += cost(i);
    }
    blocks
}

/// How many leading columns tell the rows apart: all up to the end of the first run of texts, or else the first.
fn n_keys(columns: &[Shown]) -> usize {
    match columns.iter().position(|c| !c.is_number) {
        Some(first) => first + columns[first..].iter().take_while(|c| !c.is_number).count(),
        None => columns.len().min(1),
    }
}

fn cut(text: &str, limit: usize) -> String {
    if length(text) <= limit { text.to_string() } else { text.chars().take(limit - 1).chain(['…']).collect() }
}

/// Lines of a note, the second and later ones indented.
fn wrap(note: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in note.split_whitespace() {
        match lines.last_mut() {
            Some(line) if length(line) + 1 + length(word) <= width => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) => lines.push(format!("  {word}")),
            None => lines.push(word.to_string()),
        }
    }
    lines
}

fn markdown(table: &Table, style: &Style) -> String {
    let columns = Shown::of(table, style);
    let row = |cells: Vec<String>| format!("| {} |", cells.join(" | "));
    let mut lines = vec![row(columns.iter().map(|c| escape_markdown(&c.title())).collect())];
    lines.push(row(columns.iter().map(|c| if c.is_number { "---:" } else { "---" }.to_string()).collect()));
    for i in 0..table.rows.len() {
        let of = |c: &Shown| escape_markdown(&format!("{}{}", c.cells[i].whole, c.cells[i].rest));
        lines.push(row(columns.iter().map(of).collect()));
    }
    for note in notes(table, &columns, style) {
        lines.push(String::new());
        lines.push(escape_markdown(&note));
    }
    lines.join("\n") + "\n"
}

fn escape_markdown(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '|' | '\\' | '*' | '`' | '<' => escaped.extend(['\\', c]),
            '\n' | '\r' => escaped.push(' '),
            other => escaped.push(other),
        }
    }
    escaped
}

fn latex(table: &Table, style: &Style) -> String {
    let columns = Shown::of(table, style);
    let row = |cells: Vec<String>| format!("  {} \\\\", cells.join(" & "));
    let alignment: String = columns.iter().map(|c| if c.is_number { 'r' } else { 'l' }).collect();
    let mut lines = vec!["% needs \\usepackage{booktabs}".to_string(), format!("\\begin{{tabular}}{{{alignment}}}")];
    lines.push("  \\toprule".into());
    lines.push(row(columns.iter().map(|c| escape_latex(&c.title())).collect()));
    lines.push("  \\midrule".into());
    for i in 0..table.rows.len() {
        let of = |column: &Shown| latex_cell(column, &column.cells[i]);
        lines.push(row(columns.iter().map(of).collect()));
    }
    lines.push("  \\bottomrule".into());
    lines.push("\\end{tabular}".into());
    let comment = |note: String| note.lines().map(|line| format!("% {line}")).collect::<Vec<_>>();
    lines.extend(notes(table, &columns, style).into_iter().flat_map(comment));
    lines.join("\n") + "\n"
}

/// Numbers of a right-aligned column are filled up with invisible digits, so that their points stand in line.
fn latex_cell(column: &Shown, text: &Text) -> String {
    if !column.is_number {
        return escape_latex(&text.whole);
    }
    let missing: String = match (length(&text.rest), column.widths.1) {
        (has, needs) if has >= needs => String::new(),
        (0, needs) => format!(".{}", "0".repeat(needs - 1)),
        (has, needs) => "0".repeat(needs - has),
    };
    let number = match text.whole.as_str() {
        "–" => "--".to_string(),
        whole => format!("{}{}", whole.replace('-', "$-$"), text.rest.replace('-', "$-$")),
    };
    if missing.is_empty() { number } else { format!("{number}\\phantom{{{missing}}}") }
}

fn escape_latex(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => escaped.extend(['\\', c]),
            '\\' => escaped.push_str("\\textbackslash{}"),
            '~' => escaped.push_str("\\textasciitilde{}"),
            '^' => escaped.push_str("\\textasciicircum{}"),
            '<' => escaped.push_str("$<$"),
            '>' => escaped.push_str("$>$"),
            '|' => escaped.push_str("$|$"),
            '−' => escaped.push_str("$-$"),
            '×' => escaped.push_str("$\\times$"),
            '→' => escaped.push_str("$\\rightarrow$"),
            '–' => escaped.push_str("--"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// What is said under a table: its notes and, when everything is asked for, the columns' definitions.
fn notes(table: &Table, columns: &[Shown], style: &Style) -> Vec<String> {
    let defined = columns.iter().filter(|c| style.all && !c.definition.is_empty());
    table.notes.iter().cloned().chain(defined.map(|c| format!("{}: {}", c.title(), c.definition))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn scores() -> Table {
        let percent = |name: &str, definition: &str| Column::new(name, definition).unit("%").digits(2);
        let mut table = Table::new(vec![
            Column::new("model", "the stage"),
            percent("clean_accuracy", "clean test images classified as their class"),
            percent("attack_success", "triggered images of other classes classified as the target"),
            percent("der", ""),
            Column::new("loss", ""),
            Column::new("n", "").hidden(),
            Column::new("oracle", ""),
        ]);
        let row = |name: &str, scores: [f64; 2], der: Option<f64>, loss: f64, n: usize| -> Vec<Cell> {
            vec![name.into(), scores[0].into(), scores[1].into(), der.into(), loss.into(), n.into(), (n > 5).into()]
        };
        table.push(row("model", [67.128, 100.0], None, 1.25, 1));
        table.push(row("fine_tuned 100% | a", [65.9, 3.456], Some(-0.001), 12.0, 10));
        table.notes =
            vec!["Attack success does not count images of the target class; the target is 0 (airplane).".into()];
        table
    }

    fn check(format: Format, style: Style, expected: &str) {
        let got = render(&scores(), format, &style).unwrap();
        assert_eq!(got, expected, "\nexpected:\n{expected}\ngot:\n{got}");
    }

    #[test]
    fn terminal() {
        check(
            Format::Terminal,
            Style { width: 72, ..Style::default() },
            include_str!("../../tests/golden/tables/terminal.txt"),
        );
    }

    #[test]
    fn markdown() {
        check(Format::Markdown, Style::default(), include_str!("../../tests/golden/tables/markdown.md"));
    }

    #[test]
    fn latex() {
        check(Format::Latex, Style::default(), include_str!("../../tests/golden/tables/latex.tex"));
    }

    #[test]
    fn wide_tables_are_printed_in_blocks() {
        let style = Style { width: 46, all: true, bold: true };
        check(Format::Terminal, style, include_str!("../../tests/golden/tables/blocks.txt"));
    }

    #[test]
    fn csv_and_json_are_exact_and_complete() {
        check(Format::Csv, Style::default(), include_str!("../../tests/golden/tables/exact.csv"));
        let json = render(&scores(), Format::Json, &Style::default()).unwrap();
        assert_eq!(serde_json::from_str::<Table>(&json).unwrap(), scores());
    }

    #[test]
    fn numbers_without_digits_keep_six() {
        let check = |value: f64, expected: &str| assert_eq!(significant(value), expected);
        check(0.0, "0");
        check(1.25, "1.25");
        check(1234.5678, "1234.57");
        check(123456789.0, "123456789");
        check(0.1 + 0.2, "0.3");
        check(-0.00012345, "-0.000123");
        check(1e-7, "1.000e-7");
        check(2.5e20, "2.500e20");
    }

    #[test]
    fn points_of_a_matrix_become_columns() {
        let small = |name: &str, value: f64, note: &str| {
            let mut table = Table::new(vec![Column::new("model", ""), Column::new(name, "").unit("%")]);
            table.push(vec!["m".into(), value.into()]);
            table.notes = vec!["shared".into(), note.into()];
            table
        };
        let point = |rate: f64, seed: u64| vec![("rate".to_string(), json!(rate)), ("seed".to_string(), json!(seed))];
        let parts = [
            (point(0.1, 0), small("accuracy", 60.0, "a")),
            (point(0.2, 1), small("success", 99.0, "b")),
            (vec![("model".to_string(), json!([1]))], small("accuracy", 50.0, "a")),
        ];
        let joined = join(&parts);
        assert_eq!(
            joined.to_csv(),
            "rate,seed,matrix.model,model,accuracy,success\n0.1,0,,m,60,\n0.2,1,,m,,99\n,,[1],m,50,\n"
        );
        assert_eq!(joined.notes, ["shared", "a", "b"]);
        assert_eq!(joined.columns[4].unit, "%");
    }

    #[test]
    fn empty_tables_say_so() {
        let table = Table::new(vec![Column::new("model", "")]);
        let text = render(&table, Format::Terminal, &Style::default()).unwrap();
        assert_eq!(text, "model\n─────\n(no rows)\n");
        assert_eq!(join(&[]), Table::default());
    }
}
