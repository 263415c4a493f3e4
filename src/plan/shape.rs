//! JSON schema -> [`Shape`]: what schemars says of a parameter, in a form that is quick to check against.
//!
//! Only what schemars emits for our parameter types is understood: plain types with ranges, unit-variant enums,
//! lists, tuples, maps, nested structs, and `Option` of those. Anything else becomes [`Form::Any`] and is left to the
//! stage's own `Deserialize`.

use serde_json::Value as Json;

/// What a value must look like.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// The type and its range.
    pub form: Form,
    /// Whether it may be absent although it has no default.
    pub is_optional: bool,
    /// The doc comment.
    pub doc: String,
}

/// A type and its range.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// Not understood here.
    Any,
    /// `true` or `false`.
    Boolean,
    /// A whole number within bounds, both inclusive.
    Integer(Option<i128>, Option<i128>),
    /// A number within bounds.
    Number(Option<Bound>, Option<Bound>),
    /// Text of at least so many characters.
    String(usize),
    /// One of some words.
    Choice(Vec<Choice>),
    /// A list of one shape, and how long it may be.
    List(Box<Shape>, usize, Option<usize>),
    /// A list with a shape for each position.
    Tuple(Vec<Shape>),
    /// A table with free keys.
    Map(Box<Shape>),
    /// A table with these keys.
    Table(Vec<Field>),
}

/// One end of a range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// The number.
    pub value: f64,
    /// Whether the number itself is allowed.
    pub inclusive: bool,
}

/// An allowed word.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The word.
    pub value: String,
    /// Its doc comment.
    pub doc: String,
}

/// A key of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// The key.
    pub name: String,
    /// Its value.
    pub shape: Shape,
    /// Whether it must be written.
    pub is_required: bool,
    /// The value if it is not written.
    pub default: Option<Json>,
}

/// The fields of a stage's parameters.
pub fn root_fields(shape: &Shape) -> &[Field] {
    match &shape.form {
        Form::Table(fields) => fields,
        _ => &[],
    }
}

impl Shape {
    /// Reads a schema.
    pub fn of(schema: &Json) -> Shape {
        let doc = text(schema, "description");
        let (form, is_optional) = form(schema);
        Shape { form, is_optional, doc }
    }

    /// In words, for "expected ...": `a number between 0 and 1`.
    pub fn phrase(&self) -> String {
        match &self.form {
            Form::Any => "another value".into(),
            Form::Boolean => "`true` or `false`".into(),
            Form::Integer(low, high) => {
                let bound = |value: i128| Bound { value: value as f64, inclusive: true };
                format!("a whole number{}", range(low.map(bound), high.map(bound)))
            }
            Form::Number(low, high) => format!("a number{}", range(*low, *high)),
            Form::String(0) => "a string".into(),
            Form::String(1) => "a string that is not empty".into(),
            Form::String(n) => format!("a string of at least {n} characters"),
            Form::Choice(choices) => {
                crate::config::diagnostic::one_of(choices.iter().map(|choice| choice.value.as_str()), "or")
            }
            Form::List(item, low, high) => {
                let length = match (low, high) {
                    (0, None) => String::new(),
                    (n, None) => format!("at least {n} of them"),
                    (n, Some(m)) if n == m => format!("exactly {n} of them"),
                    (n, Some(m)) => format!("{n} to {m} of them"),
                };
                let each = item.phrase();
                if length.is_empty() {
                    format!("a list, each {each}")
                } else {
                    format!("a list, each {each}, {length}")
                }
            }
            Form::Tuple(items) => {
                let items: Vec<String> = items.iter().map(Shape::phrase).collect();
                format!("a list of {}: {}", items.len(), items.join(", "))
            }
            Form::Map(item) => format!("a table, each value {}", item.phrase()),
            Form::Table(fields) => {
                format!(
                    "a table with {}",
                    crate::config::diagnostic::one_of(fields.iter().map(|f| f.name.as_str()), "and")
                )
            }
        }
    }
}

fn range(low: Option<Bound>, high: Option<Bound>) -> String {
    let number = |value: f64| format!("{value}");
    let from = |bound: Bound| match bound.inclusive {
        true => format!("at least {}", number(bound.value)),
        false => format!("above {}", number(bound.value)),
    };
    let to = |bound: Bound| match bound.inclusive {
        true => format!("at most {}", number(bound.value)),
        false => format!("below {}", number(bound.value)),
    };
    match (low, high) {
        (None, None) => String::new(),
        (Some(low), None) => format!(", {}", from(low)),
        (None, Some(high)) => format!(", {}", to(high)),
        (Some(low), Some(high)) if low.inclusive && high.inclusive => {
            format!(" between {} and {}", number(low.value), number(high.value))
        }
        (Some(low), Some(high)) => format!(", {} and {}", from(low), to(high)),
    }
}

fn text(schema: &Json, key: &str) -> String {
    let text = schema.get(key).and_then(Json::as_str).unwrap_or_default();
    // Doc comments are wrapped at the width of the source.
    text.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect::<Vec<_>>().join("\n\n")
}

fn form(schema: &Json) -> (Form, bool) {
    for key in ["anyOf", "oneOf"] {
        let Some(options) = schema.get(key).and_then(Json::as_array) else { continue };
        let is_null = |option: &&Json| option.get("type").and_then(Json::as_str) == Some("null");
        let (nulls, others): (Vec<&Json>, Vec<&Json>) = options.iter().partition(is_null);
        if let [only] = others.as_slice() {
            return (form(only).0, !nulls.is_empty());
        }
        let choices: Option<Vec<Vec<Choice>>> = others.iter().map(|option| choices(option)).collect();
        return match choices {
            Some(choices) => (Form::Choice(choices.concat()), !nulls.is_empty()),
            None => (Form::Any, !nulls.is_empty()),
        };
    }
    let (kind, is_optional) = match schema.get("type") {
        Some(Json::String(kind)) => (kind.as_str(), false),
        Some(Json::Array(kinds)) => {
            let names: Vec<&str> = kinds.iter().filter_map(Json::as_str).filter(|kind| *kind != "null").collect();
            match names.as_slice() {
                [only] => (*only, kinds.len() > 1),
                _ => return (Form::Any, false),
            }
        }
        _ => match choices(schema) {
            Some(choices) => return (Form::Choice(choices), false),
            None => return (Form::Any, false),
        },
    };
    (typed(kind, schema), is_optional)
}

fn typed(kind: &str, schema: &Json) -> Form {
    match kind {
        "boolean" => Form::Boolean,
        "integer" => {
            let whole = |key: &str| schema.get(key).and_then(whole);
            let low = whole("minimum").or(whole("exclusiveMinimum").map(|bound| bound + 1));
            let high = whole("maximum").or(whole("exclusiveMaximum").map(|bound| bound - 1));
            Form::Integer(low, high)
        }
        "number" => {
            let bound =
                |key: &str, inclusive| schema.get(key).and_then(Json::as_f64).map(|value| Bound { value, inclusive });
            Form::Number(
                bound("minimum", true).or(bound("exclusiveMinimum", false)),
                bound("maximum", true).or(bound("exclusiveMaximum", false)),
            )
        }
        "string" => match choices(schema) {
            Some(choices) => Form::Choice(choices),
            None => Form::String(length(schema, "minLength").unwrap_or(0)),
        },
        "array" => {
            if let Some(items) = schema.get("prefixItems").and_then(Json::as_array) {
                return Form::Tuple(items.iter().map(Shape::of).collect());
            }
            let item = schema
                .get("items")
                .map_or(Shape { form: Form::Any, is_optional: false, doc: String::new() }, Shape::of);
            Form::List(Box::new(item), length(schema, "minItems").unwrap_or(0), length(schema, "maxItems"))
        }
        "object" => object(schema),
        _ => Form::Any,
    }
}

fn whole(value: &Json) -> Option<i128> {
    match (value.as_i64(), value.as_u64(), value.as_f64()) {
        (Some(number), _, _) => Some(number.into()),
        (_, Some(number), _) => Some(number.into()),
        (_, _, Some(number)) => Some(number as i128),
        _ => None,
    }
}

fn length(schema: &Json, key: &str) -> Option<usize> {
    schema.get(key).and_then(Json::as_u64).and_then(|n| usize::try_from(n).ok())
}

fn object(schema: &Json) -> Form {
    let Some(properties) = schema.get("properties").and_then(Json::as_object) else {
        return match schema.get("additionalProperties") {
            Some(Json::Object(_)) => Form::Map(Box::new(Shape::of(&schema["additionalProperties"]))),
            // A struct without fields.
            Some(Json::Bool(false)) => Form::Table(Vec::new()),
            _ => Form::Any,
        };
    };
    let required: Vec<&str> =
        schema.get("required").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str).collect();
    let fields = properties.iter().map(|(name, property)| Field {
        name: name.clone(),
        shape: Shape::of(property),
        is_required: required.contains(&name.as_str()),
        default: property.get("default").cloned(),
    });
    Form::Table(fields.collect())
}

/// The words of an enum's schema, or of one variant with its documentation.
fn choices(schema: &Json) -> Option<Vec<Choice>> {
    let doc = text(schema, "description");
    if let Some(value) = schema.get("const").and_then(Json::as_str) {
        return Some(vec![Choice { value: value.into(), doc }]);
    }
    let words = schema.get("enum")?.as_array()?;
    let words = words.iter().filter(|word| !word.is_null());
    words.map(|word| Some(Choice { value: word.as_str()?.into(), doc: String::new() })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn schemas_in_words() {
        let check = |schema: Json, phrase: &str, is_optional: bool| {
            let shape = Shape::of(&schema);
            assert_eq!((shape.phrase().as_str(), shape.is_optional), (phrase, is_optional), "{schema}");
        };
        check(json!({"type": "boolean"}), "`true` or `false`", false);
        check(json!({"type": "integer", "minimum": 1}), "a whole number, at least 1", false);
        check(json!({"type": ["integer", "null"], "minimum": 0, "maximum": 9}), "a whole number between 0 and 9", true);
        check(json!({"type": "number", "exclusiveMinimum": 0}), "a number, above 0", false);
        check(
            json!({"type": "number", "minimum": 0, "exclusiveMaximum": 1}),
            "a number, at least 0 and below 1",
            false,
        );
        check(json!({"type": "string"}), "a string", false);
        check(json!({"type": "string", "enum": ["a", "b", "c"]}), "`a`, `b` or `c`", false);
        check(json!({"oneOf": [{"const": "a", "description": "A."}, {"enum": ["b"]}]}), "`a` or `b`", false);
        check(json!({"anyOf": [{"type": "number"}, {"type": "null"}]}), "a number", true);
        check(
            json!({"type": "array", "items": {"type": "boolean"}, "minItems": 1}),
            "a list, each `true` or `false`, at least 1 of them",
            false,
        );
        check(
            json!({"type": "array", "prefixItems": [{"type": "number"}, {"type": "string"}]}),
            "a list of 2: a number, a string",
            false,
        );
        check(
            json!({"type": "object", "additionalProperties": {"type": "number"}}),
            "a table, each value a number",
            false,
        );
        check(json!({"type": "object", "properties": {"a": true, "b": true}}), "a table with `a` and `b`", false);
        check(json!(true), "another value", false);
    }
}
