//! `runner describe STAGE`: what a stage is, reads, makes and takes, all from the source that parses it.

use crate::error::{Error, Result};
use crate::plan::catalogue::{self, Info};
use crate::plan::shape::{Field, Form, Shape};
use crate::stage::{Arity, Port};
use serde_json::{Value, json};

/// Columns of text.
const WIDTH: usize = 100;

/// The stage called `name`; dashes count as underscores.
///
/// # Errors
/// There is none; the hint names the closest.
pub fn find(name: &str) -> Result<&'static Info> {
    catalogue::find(name)
        .ok_or_else(|| Error::user(format!("there is no stage `{name}`")).hint(catalogue::suggest(name)))
}

/// A page of text on a stage.
pub fn text(info: &Info) -> String {
    let mut out = format!("{} (version {})\n", info.entry.name, info.entry.version);
    for paragraph in info.params.doc.split("\n\n").filter(|paragraph| !paragraph.is_empty()) {
        out.push('\n');
        wrap(&mut out, 0, paragraph);
    }
    ports(&mut out, "inputs", &info.inputs, |port| arity(port.arity));
    ports(&mut out, "outputs", &info.outputs, |_| "");
    if info.fields().is_empty() {
        out.push_str("\nno parameters\n");
    } else {
        out.push_str("\nparameters\n");
        for field in info.fields() {
            parameter(&mut out, "", field);
        }
    }
    out
}

fn ports(out: &mut String, title: &str, ports: &[Port], note: impl Fn(&Port) -> &'static str) {
    if ports.is_empty() {
        out.push_str(&format!("\nno {title}\n"));
        return;
    }
    out.push_str(&format!("\n{title}\n"));
    for port in ports {
        let note = note(port);
        let comma = if note.is_empty() { "" } else { ", " };
        out.push_str(&format!("  {}: {}{comma}{note}\n", port.name, port.kind));
        wrap(out, 6, port.doc);
    }
}

fn arity(arity: Arity) -> &'static str {
    match arity {
        Arity::One => "",
        Arity::Optional => "optional",
        Arity::Many => "one or more",
        Arity::Any => "any number",
    }
}

fn parameter(out: &mut String, prefix: &str, field: &Field) {
    let name = format!("{prefix}{}", field.name);
    if let Form::Table(fields) = &field.shape.form {
        let note = if field.shape.is_optional { " (optional table)" } else { " (table)" };
        out.push_str(&format!("  {name}{note}\n"));
        wrap(out, 6, &field.shape.doc);
        for inner in fields {
            // The defaults of the table as a whole win over those of its fields.
            let default = field.default.as_ref().and_then(|table| table.get(&inner.name)).or(inner.default.as_ref());
            parameter(out, &format!("{name}."), &Field { default: default.cloned(), ..inner.clone() });
        }
        return;
    }
    let kind = match &field.shape.form {
        Form::Choice(_) => "one of the words below".to_string(),
        _ => field.shape.phrase(),
    };
    let default = match &field.default {
        _ if field.is_required => "required".to_string(),
        None | Some(Value::Null) => "optional".to_string(),
        Some(value) => format!("default {value}"),
    };
    out.push_str(&format!("  {name}: {kind}; {default}\n"));
    wrap(out, 6, &field.shape.doc);
    if let Form::Choice(choices) = &field.shape.form {
        for choice in choices {
            let colon = if choice.doc.is_empty() { "" } else { ": " };
            wrap(out, 6, &format!("- {}{colon}{}", choice.value, choice.doc));
        }
    }
}

/// Appends `text`, wrapped and indented.
fn wrap(out: &mut String, indent: usize, text: &str) {
    let mut column = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > WIDTH {
            out.push('\n');
            column = 0;
        }
        if column == 0 {
            out.push_str(&" ".repeat(indent));
            column = indent;
        } else {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += length;
    }
    if column > 0 {
        out.push('\n');
    }
}

/// The same as an object: `stage`, `version`, `description`, `inputs`, `outputs`, `parameters`, and the `schema`.
pub fn json(info: &Info) -> Value {
    let port = |port: &Port| {
        let count = match port.arity {
            Arity::One => "one",
            Arity::Optional => "optional",
            Arity::Many => "many",
            Arity::Any => "any",
        };
        json!({"name": port.name, "kind": port.kind.name(), "count": count, "description": port.doc})
    };
    json!({
        "stage": info.entry.name,
        "version": info.entry.version,
        "description": info.params.doc,
        "inputs": info.inputs.iter().map(port).collect::<Vec<_>>(),
        "outputs": info.outputs.iter().map(port).collect::<Vec<_>>(),
        "parameters": info.fields().iter().map(field).collect::<Vec<_>>(),
        "schema": info.schema,
    })
}

fn field(field: &Field) -> Value {
    let mut row = json!({
        "name": field.name,
        "type": type_name(&field.shape),
        "required": field.is_required,
        "default": field.default,
        "expected": field.shape.phrase(),
        "description": field.shape.doc,
    });
    match &field.shape.form {
        Form::Choice(choices) => {
            let choices = choices.iter().map(|choice| json!({"value": choice.value, "description": choice.doc}));
            row["values"] = choices.collect();
        }
        Form::Table(fields) => row["parameters"] = fields.iter().map(self::field).collect(),
        _ => {}
    }
    row
}

fn type_name(shape: &Shape) -> &'static str {
    match shape.form {
        Form::Any => "any",
        Form::Boolean => "boolean",
        Form::Integer(..) => "integer",
        Form::Number(..) => "number",
        Form::String(_) | Form::Choice(_) => "string",
        Form::List(..) | Form::Tuple(_) => "list",
        Form::Map(_) | Form::Table(_) => "table",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_about_a_stage_is_told() {
        let info = find("test/echo").expect("the stage exists");
        let page = text(info);
        for part in [
            "test/echo (version 1)\n\nRepeats a value",
            "  tables: table, any number\n",
            "  output: table\n",
            "  value: a number; default 0.0\n      The value of the row.\n",
            "  end: one of the words below; default \"well\"\n",
            "      - abort: With an abort of the process",
            "  share: a number between 0 and 1; default 1.0\n",
            "  limit: a number, above 0; optional\n",
            "  items: a list, each a whole number",
            "  range (table)\n",
            "  range.parts: a whole number between 1 and 1000000000; default 1\n",
        ] {
            assert!(page.contains(part), "{part:?} is missing in\n{page}");
        }
        assert!(
            text(find("test/sink").expect("the stage exists")).contains("title: a string that is not empty; required")
        );
        assert_eq!(json(info)["parameters"][3]["values"][0]["value"], "well");
    }

    #[test]
    fn an_unknown_stage_has_a_hint() {
        let error = find("test/ecko").err().expect("no such stage");
        assert_eq!(error.hint_text(), Some("did you mean `test/echo`?"));
    }
}
