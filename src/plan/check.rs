//! Parameters against their shapes: every problem of every value, each at the value's own place.

use super::catalogue::Info;
use super::shape::{Choice, Field, Form, Shape};
use crate::config::diagnostic::{Diagnostic, Diagnostics, Span, did_you_mean, one_of};
use crate::config::value::{Item, Key, Table, Value, integer};
use serde_json::{Map, Number, Value as Json};

/// The parameters of one stage as JSON, incomplete as they were written; none if anything is wrong with them.
///
/// `name` is the stage's name in the pipeline, where problems point that have no place of their own.
pub fn params(info: &Info, name: &Key, table: &Table, problems: &mut Diagnostics) -> Option<Map<String, Json>> {
    let mut checker = Checker { info, stage: &name.name, problems };
    checker.table(info.fields(), table, name.span, None)
}

/// The way from the stage to a value, innermost first.
struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

/// `observe.epochs[2]`, counted from 1 as people do.
fn spell(path: &Path<'_>) -> String {
    let before = path.parent.map(spell);
    match (&path.step, before) {
        (Step::Key(key), None) => (*key).to_string(),
        (Step::Key(key), Some(before)) => format!("{before}.{key}"),
        (Step::Index(index), before) => format!("{}[{}]", before.unwrap_or_default(), index + 1),
    }
}

struct Checker<'a> {
    info: &'a Info,
    stage: &'a str,
    problems: &'a mut Diagnostics,
}

impl Checker<'_> {
    fn table(
        &mut self,
        fields: &[Field],
        table: &Table,
        place: Span,
        path: Option<&Path<'_>>,
    ) -> Option<Map<String, Json>> {
        let mut out = Map::new();
        let mut is_sound = true;
        for (key, item) in &table.entries {
            match fields.iter().find(|field| field.name == key.name) {
                Some(field) => match self.value(&field.shape, item, &Path { parent: path, step: Step::Key(&key.name) })
                {
                    Some(value) => _ = out.insert(key.name.clone(), value),
                    None => is_sound = false,
                },
                None => {
                    is_sound = false;
                    self.unknown(fields, key, path);
                }
            }
        }
        for field in fields.iter().filter(|field| field.is_required && table.get(&field.name).is_none()) {
            is_sound = false;
            self.missing(field, place, path);
        }
        is_sound.then_some(out)
    }

    fn unknown(&mut self, fields: &[Field], key: &Key, path: Option<&Path<'_>>) {
        let name = spell(&Path { parent: path, step: Step::Key(&key.name) });
        let title = format!("unknown parameter `{}` for `{}`", name.escape_debug(), self.info.entry.name);
        let names = || fields.iter().map(|field| field.name.as_str());
        let reserved: &[&str] = if path.is_none() { &["from", "seed", "stage"] } else { &[] };
        let label = match fields.len() {
            0 => "expected no parameters".to_string(),
            1..=8 => format!("expected {}", one_of(names(), "or")),
            _ => format!("expected another of its {} parameters", fields.len()),
        };
        let port = self.info.inputs.iter().find(|port| path.is_none() && port.name == key.name);
        let hint = match port {
            Some(port) => format!("`{0}` is an input: write `from = {{ {0} = \"...\" }}`", port.name),
            None => did_you_mean(&key.name, names().chain(reserved.iter().copied()))
                .unwrap_or_else(|| format!("`runner describe {}` explains its parameters", self.info.entry.name)),
        };
        self.problems.push(Diagnostic::new(title, key.span).label(label).hint(hint));
    }

    fn missing(&mut self, field: &Field, place: Span, path: Option<&Path<'_>>) {
        let name = spell(&Path { parent: path, step: Step::Key(&field.name) });
        let doc = super::catalogue::first_sentence(&field.shape.doc);
        self.problems.push(
            Diagnostic::new(format!("stage `{}` lacks the parameter `{name}`", self.stage), place)
                .label(format!("expected `{name}`: {}", field.shape.phrase()))
                .hint_if((!doc.is_empty()).then(|| format!("`{name}`: {}", doc.trim_end_matches('.')))),
        );
    }

    fn value(&mut self, shape: &Shape, item: &Item, path: &Path<'_>) -> Option<Json> {
        match (&shape.form, &item.value) {
            (Form::Boolean, Value::Boolean(value)) => Some(Json::Bool(*value)),
            (Form::Integer(low, high), Value::Integer(number)) => {
                let is_within = low.is_none_or(|low| *number >= low) && high.is_none_or(|high| *number <= high);
                match integer(*number).filter(|_| is_within) {
                    Some(number) => Some(Json::Number(number)),
                    None => self.out_of_range(shape, item, path),
                }
            }
            (Form::Number(..), Value::Integer(number)) => self.number(shape, *number as f64, item, path),
            (Form::Number(..), Value::Float(number)) => self.number(shape, *number, item, path),
            (Form::String(least), Value::String(text)) => {
                if text.chars().count() < *least {
                    self.out_of_range(shape, item, path)
                } else {
                    Some(Json::String(text.clone()))
                }
            }
            (Form::Choice(choices), Value::String(text)) => {
                if choices.iter().any(|choice| choice.value == *text) {
                    return Some(Json::String(text.clone()));
                }
                self.no_choice(choices, shape, text, item, path)
            }
            (Form::List(each, low, high), Value::Array(items)) => {
                let is_within = items.len() >= *low && high.is_none_or(|high| items.len() <= high);
                if !is_within {
                    return self.wrong_length(shape, items.len(), item, path);
                }
                self.list(items, |_| Some(each.as_ref()), path)
            }
            (Form::Tuple(shapes), Value::Array(items)) => {
                if items.len() != shapes.len() {
                    return self.wrong_length(shape, items.len(), item, path);
                }
                self.list(items, |index| shapes.get(index), path)
            }
            (Form::Map(each), Value::Table(table)) => {
                let entries: Vec<Option<(String, Json)>> = table
                    .entries
                    .iter()
                    .map(|(key, item)| {
                        let path = Path { parent: Some(path), step: Step::Key(&key.name) };
                        Some((key.name.clone(), self.value(each, item, &path)?))
                    })
                    .collect();
                entries.into_iter().collect::<Option<Map<_, _>>>().map(Json::Object)
            }
            (Form::Table(fields), Value::Table(table)) => {
                self.table(fields, table, item.span, Some(path)).map(Json::Object)
            }
            (Form::Any, _) => item.to_json().or_else(|| self.out_of_range(shape, item, path)),
            _ => self.wrong_type(shape, item, path),
        }
    }

    fn number(&mut self, shape: &Shape, number: f64, item: &Item, path: &Path<'_>) -> Option<Json> {
        let Form::Number(low, high) = &shape.form else { return None };
        let above = |bound: f64, inclusive: bool| if inclusive { number >= bound } else { number > bound };
        let below = |bound: f64, inclusive: bool| if inclusive { number <= bound } else { number < bound };
        let is_within =
            low.is_none_or(|b| above(b.value, b.inclusive)) && high.is_none_or(|b| below(b.value, b.inclusive));
        match Number::from_f64(number) {
            Some(number) if is_within => Some(Json::Number(number)),
            Some(_) => self.out_of_range(shape, item, path),
            None => {
                let title = format!("`{}` of stage `{}` is {}", spell(path), self.stage, item.brief());
                self.report(title, "a finite number".into(), item, None)
            }
        }
    }

    fn list<'s>(
        &mut self,
        items: &[Item],
        shape: impl Fn(usize) -> Option<&'s Shape>,
        path: &Path<'_>,
    ) -> Option<Json> {
        // Every item is looked at, also after a bad one.
        let values: Vec<Option<Json>> = items
            .iter()
            .enumerate()
            .map(|(index, item)| {
                self.value(shape(index)?, item, &Path { parent: Some(path), step: Step::Index(index) })
            })
            .collect();
        values.into_iter().collect::<Option<Vec<Json>>>().map(Json::Array)
    }

    fn wrong_type(&mut self, shape: &Shape, item: &Item, path: &Path<'_>) -> Option<Json> {
        // A bad `${...}` stays in its string and was told already.
        if item.as_str().is_some_and(|text| self.problems.is_unresolved(text, item.span)) {
            return None;
        }
        let hint = match (&shape.form, &item.value) {
            (Form::Integer(..), Value::Float(number)) if number.fract() == 0.0 && number.abs() < 1e15 => {
                Some(format!("write `{number:.0}`, without a decimal point"))
            }
            (Form::Table(fields), Value::String(text)) => fields.iter().find_map(|field| match &field.shape.form {
                Form::Choice(choices) if choices.iter().any(|choice| choice.value == *text) => {
                    let key = spell(path);
                    let key = key.rsplit('.').next().unwrap_or_default();
                    Some(format!("write `{key} = {{ {} = \"{text}\" }}`", field.name))
                }
                _ => None,
            }),
            (Form::List(..), _) if !matches!(item.value, Value::Table(_)) => {
                Some(format!("a list takes brackets: `[{}]`", self.problems.excerpt(item.span)))
            }
            (Form::Number(..) | Form::Integer(..) | Form::Boolean, Value::String(text))
                if text.parse::<f64>().is_ok() || text == "true" || text == "false" =>
            {
                Some(format!("without quotes: `{text}`"))
            }
            (Form::Choice(_) | Form::String(_), Value::Integer(_) | Value::Boolean(_)) => {
                Some(format!("strings take quotes: `\"{}\"`", item.brief()))
            }
            _ => None,
        };
        let title = format!("`{}` of stage `{}` is {}", spell(path), self.stage, item.sort());
        self.report(title, shape.phrase(), item, hint)
    }

    fn out_of_range(&mut self, shape: &Shape, item: &Item, path: &Path<'_>) -> Option<Json> {
        let title = format!("`{}` of stage `{}` is out of range: {}", spell(path), self.stage, item.brief());
        self.report(title, shape.phrase(), item, None)
    }

    fn wrong_length(&mut self, shape: &Shape, length: usize, item: &Item, path: &Path<'_>) -> Option<Json> {
        let plural = if length == 1 { "" } else { "s" };
        let title = format!("`{}` of stage `{}` has {length} value{plural}", spell(path), self.stage);
        self.report(title, shape.phrase(), item, None)
    }

    fn no_choice(
        &mut self,
        choices: &[Choice],
        shape: &Shape,
        text: &str,
        item: &Item,
        path: &Path<'_>,
    ) -> Option<Json> {
        if self.problems.is_unresolved(text, item.span) {
            return None;
        }
        let hint = did_you_mean(text, choices.iter().map(|choice| choice.value.as_str()));
        let title = format!("`{}` of stage `{}` cannot be {}", spell(path), self.stage, item.brief());
        self.report(title, shape.phrase(), item, hint)
    }

    fn report(&mut self, title: String, expected: String, item: &Item, hint: Option<String>) -> Option<Json> {
        let problem = Diagnostic::new(title, item.span).label(format!("expected {expected}")).hint_if(hint);
        self.problems.push(match item.used {
            Some(used) => problem.context(used, "used here"),
            None => problem,
        });
        None
    }
}
