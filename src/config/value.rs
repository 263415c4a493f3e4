//! TOML values that remember where they were written.
//!
//! The parser's own tree borrows from the text and sorts keys; this one owns its strings and keeps the order of the
//! file, so that overlays from other texts can be merged into it.

use super::diagnostic::Span;
use serde_json::Number;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A key and its place.
#[derive(Clone, Debug)]
pub struct Key {
    /// The key, unquoted.
    pub name: String,
    /// Where it stands.
    pub span: Span,
}

/// A value and its place.
#[derive(Clone, Debug)]
pub struct Item {
    /// The value.
    pub value: Value,
    /// Where it was written.
    pub span: Span,
    /// Where it was put to use, if it came from the matrix through `"${key}"`.
    pub used: Option<Span>,
}

/// A value.
#[derive(Clone, Debug)]
pub enum Value {
    /// Text.
    String(String),
    /// Wide enough for what TOML can write in 64 bits, signed or not.
    Integer(i128),
    /// A floating-point number, `inf` and `nan` included.
    Float(f64),
    /// True or false.
    Boolean(bool),
    /// A date or a time, which no stage takes.
    Datetime(String),
    /// A list.
    Array(Vec<Item>),
    /// A table.
    Table(Table),
}

/// Keys and values in the order of the file.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// The entries; keys are unique.
    pub entries: Vec<(Key, Item)>,
}

impl Table {
    /// The entry called `name`.
    pub fn get(&self, name: &str) -> Option<&(Key, Item)> {
        self.entries.iter().find(|(key, _)| key.name == name)
    }

    /// The value called `name`, to change it.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Item> {
        self.entries.iter_mut().find(|(key, _)| key.name == name).map(|(_, item)| item)
    }

    /// Takes the entry called `name` out.
    pub fn take(&mut self, name: &str) -> Option<(Key, Item)> {
        let position = self.entries.iter().position(|(key, _)| key.name == name)?;
        Some(self.entries.remove(position))
    }

    /// The keys, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(key, _)| key.name.as_str())
    }
}

impl Item {
    /// The table, if it is one.
    pub fn as_table(&self) -> Option<&Table> {
        match &self.value {
            Value::Table(table) => Some(table),
            _ => None,
        }
    }

    /// The string, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The value at a path such as `["trigger", "size"]`, or the deepest table on the way to it that was written.
    pub fn find(table: &Table, path: &[&str]) -> Option<Span> {
        let (first, rest) = path.split_first()?;
        let (_, item) = table.get(first)?;
        match &item.value {
            Value::Table(inner) if !rest.is_empty() => Item::find(inner, rest).or(Some(item.span)),
            _ => Some(item.span),
        }
    }

    /// A few words on the value for messages: `1.5`, `"abc"`, `a list`.
    pub fn brief(&self) -> String {
        match &self.value {
            Value::String(text) if text.chars().count() > 40 => {
                format!("\"{}...\"", text.chars().take(37).collect::<String>().escape_debug())
            }
            Value::String(text) => format!("\"{}\"", text.escape_debug()),
            Value::Integer(number) => number.to_string(),
            Value::Float(number) => format!("{number:?}"),
            Value::Boolean(value) => value.to_string(),
            Value::Datetime(text) => text.clone(),
            Value::Array(_) => "a list".into(),
            Value::Table(_) => "a table".into(),
        }
    }

    /// What sort of value it is, with its article.
    pub fn sort(&self) -> &'static str {
        match &self.value {
            Value::String(_) => "a string",
            Value::Integer(_) => "a whole number",
            Value::Float(_) => "a floating-point number",
            Value::Boolean(_) => "a boolean",
            Value::Datetime(_) => "a date or time",
            Value::Array(_) => "a list",
            Value::Table(_) => "a table",
        }
    }

    /// The value as JSON; none if JSON cannot hold it (`inf`, `nan`, an integer beyond 64 bits).
    pub fn to_json(&self) -> Option<serde_json::Value> {
        use serde_json::Value as Json;
        Some(match &self.value {
            Value::String(text) | Value::Datetime(text) => Json::String(text.clone()),
            Value::Integer(number) => Json::Number(integer(*number)?),
            Value::Float(number) => Json::Number(Number::from_f64(*number)?),
            Value::Boolean(value) => Json::Bool(*value),
            Value::Array(items) => Json::Array(items.iter().map(Item::to_json).collect::<Option<_>>()?),
            Value::Table(table) => Json::Object(
                table
                    .entries
                    .iter()
                    .map(|(key, item)| Some((key.name.clone(), item.to_json()?)))
                    .collect::<Option<_>>()?,
            ),
        })
    }
}

/// An integer as a JSON number, if 64 bits hold it.
pub fn integer(number: i128) -> Option<Number> {
    match (i64::try_from(number), u64::try_from(number)) {
        (Ok(signed), _) => Some(signed.into()),
        (_, Ok(unsigned)) => Some(unsigned.into()),
        _ => None,
    }
}

/// The parser's table, owned and in the order of the file; spans point into the text number `text`, `offset` bytes on.
pub fn table(text: u32, offset: usize, table: DeTable<'_>) -> Table {
    let mut entries: Vec<(Key, Item)> = table
        .into_iter()
        .map(|(key, value)| {
            let span = span(text, offset, &key);
            (Key { name: key.into_inner().into_owned(), span }, item(text, offset, value))
        })
        .collect();
    entries.sort_by_key(|(key, _)| key.span);
    Table { entries }
}

/// The parser's value, owned.
pub fn item(text: u32, offset: usize, value: Spanned<DeValue<'_>>) -> Item {
    let span = span(text, offset, &value);
    let value = match value.into_inner() {
        DeValue::String(string) => Value::String(string.into_owned()),
        // What does not fit is out of every range; the sign is all that matters then.
        DeValue::Integer(number) => Value::Integer(
            i128::from_str_radix(number.as_str(), number.radix()).unwrap_or(if number.as_str().starts_with('-') {
                i128::MIN
            } else {
                i128::MAX
            }),
        ),
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(value) => Value::Boolean(value),
        DeValue::Datetime(datetime) => Value::Datetime(datetime.to_string()),
        DeValue::Array(items) => Value::Array(items.into_iter().map(|inner| item(text, offset, inner)).collect()),
        DeValue::Table(inner) => Value::Table(table(text, offset, inner)),
    };
    Item { value, span, used: None }
}

fn span<T>(text: u32, offset: usize, spanned: &Spanned<T>) -> Span {
    let range = spanned.span();
    Span::new(text, range.start + offset..range.end + offset)
}
