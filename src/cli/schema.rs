//! `runner schema`: one JSON Schema for pipeline files, for editors.
//!
//! `stage` decides which other keys a stage takes. That is said with `if`/`then`, not `oneOf`: a validator then names
//! the wrong key instead of listing every stage that does not fit.

use crate::plan::catalogue::{self, Info};
use crate::stage::{Arity, Port};
use serde_json::{Map, Value, json};

/// What `"${key}"` looks like; it stands for a value of any type.
const TEMPLATE: &str = "\\$\\{[A-Za-z0-9_-]+\\}";

/// The schema, draft 2020-12.
pub fn json() -> Value {
    let infos: Vec<&Info> = catalogue::visible().collect();
    let names: Vec<&str> = infos.iter().map(|info| info.entry.name).collect();
    let mut definitions = Map::new();
    definitions.insert("stage".into(), stage(&infos, &names));
    definitions.insert("reference".into(), reference());
    for info in &infos {
        definitions.insert(info.entry.name.into(), stage_definition(info));
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "runner pipeline",
        "description": "Stages, what they read from each other, and their parameters.",
        "type": "object",
        "required": ["name", "stages"],
        "additionalProperties": false,
        "properties": {
            "name": {"description": "Results are filed under this name.", "type": "string", "pattern": "^[A-Za-z0-9_-][A-Za-z0-9._-]*$"},
            "description": {"description": "What the pipeline is for.", "type": "string"},
            "seed": {"description": "Stages that draw derive their random streams from it.", "type": "integer", "minimum": 0, "default": 0},
            "stages": {
                "description": "The stages, by name.",
                "type": "object",
                "minProperties": 1,
                "propertyNames": {"pattern": "^[A-Za-z0-9_-]+$"},
                "additionalProperties": {"$ref": "#/$defs/stage"},
            },
            "profile": {
                "description": "Changes that `--profile NAME` makes: `\"stages.X\" = { ... }`.",
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "properties": {"seed": {"type": "integer", "minimum": 0}, "matrix": matrix(), "stages": {"type": "object"}, "tracking": tracking()},
                    "patternProperties": {"^(stages|matrix|tracking)\\.": true},
                    "additionalProperties": false,
                },
            },
            "matrix": matrix(),
            "tracking": tracking(),
        },
        "$defs": definitions,
    })
}

fn matrix() -> Value {
    json!({
        "description": "Keys with lists of values; every combination is computed. `${key}` in a string stands for the value; the key `seed` sets the seed.",
        "type": "object",
        "propertyNames": {"pattern": "^[A-Za-z0-9_-]+$"},
        "additionalProperties": {"type": "array", "minItems": 1, "items": {"type": ["string", "number", "boolean"]}},
    })
}

fn tracking() -> Value {
    let text = |description: &str| json!({"description": description, "type": "string", "minLength": 1});
    json!({
        "description": "Where runs are told to, besides the terminal. Relative paths start at the pipeline's folder. Changing it runs nothing again.",
        "type": "object",
        "properties": {
            "tensorboard": text("A folder for TensorBoard's event files."),
            "wandb": text("A folder in which `wandb/` holds Weights & Biases offline runs, for `wandb sync`."),
            "jsonl": text("A file of JSON lines; it is appended to."),
            "project": text("The Weights & Biases project; the pipeline's name if left out."),
        },
        "additionalProperties": false,
    })
}

/// A stage of which only `stage` is known yet.
fn stage(infos: &[&Info], names: &[&str]) -> Value {
    let cases = infos.iter().map(|info| {
        // `~1` is a slash within a JSON pointer.
        let pointer = format!("#/$defs/{}", info.entry.name.replace('/', "~1"));
        json!({
            "if": {"properties": {"stage": {"const": info.entry.name}}, "required": ["stage"]},
            "then": {"$ref": pointer},
        })
    });
    json!({
        "type": "object",
        "required": ["stage"],
        "properties": {
            "stage": {
                "description": "What the stage is, `family/name`.",
                "anyOf": [{"enum": names}, {"type": "string", "pattern": TEMPLATE}],
            },
            "from": {"description": "Inputs: port = \"stage\".", "type": "object", "additionalProperties": {"$ref": "#/$defs/reference"}},
            "seed": seed(),
        },
        "allOf": cases.collect::<Vec<_>>(),
    })
}

fn reference() -> Value {
    let one = json!({"type": "string", "minLength": 1});
    json!({
        "description": "`stage`, `stage.port`, or all points of the matrix with `stage[*]`.",
        "anyOf": [one, {"type": "array", "items": one}],
    })
}

fn seed() -> Value {
    json!({
        "description": "A seed of its own, instead of the pipeline's.",
        "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": TEMPLATE}],
    })
}

fn stage_definition(info: &Info) -> Value {
    let mut properties = Map::new();
    properties.insert("stage".into(), json!({"const": info.entry.name, "description": info.params.doc}));
    properties.insert("from".into(), from(&info.inputs));
    properties.insert("seed".into(), seed());
    let parameters = info.schema.get("properties").and_then(Value::as_object);
    for (name, schema) in parameters.into_iter().flatten() {
        properties.insert(name.clone(), or_template(schema));
    }
    let mut required = vec![Value::from("stage")];
    if info.inputs.iter().any(is_needed) {
        required.push("from".into());
    }
    required.extend(info.schema.get("required").and_then(Value::as_array).into_iter().flatten().cloned());
    json!({
        "title": info.entry.name,
        "description": info.params.doc,
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": false,
    })
}

fn is_needed(port: &Port) -> bool {
    matches!(port.arity, Arity::One | Arity::Many)
}

fn from(ports: &[Port]) -> Value {
    let property = |port: &Port| {
        let schema = match port.arity {
            Arity::One | Arity::Optional => json!({"description": port.doc, "type": "string", "minLength": 1}),
            Arity::Many | Arity::Any => json!({"description": port.doc, "$ref": "#/$defs/reference"}),
        };
        (port.name.to_string(), schema)
    };
    json!({
        "description": "Inputs: port = \"stage\".",
        "type": "object",
        "properties": ports.iter().map(property).collect::<Map<_, _>>(),
        "required": ports.iter().filter(|port| is_needed(port)).map(|port| port.name).collect::<Vec<_>>(),
        "additionalProperties": false,
    })
}

/// The schema of a parameter, or a `"${key}"` in its place. Documentation stays outside, where editors look for it.
fn or_template(schema: &Value) -> Value {
    let Some(object) = schema.as_object() else { return schema.clone() };
    let mut outer = Map::new();
    let mut inner = object.clone();
    for key in ["title", "description", "default"] {
        if let Some(value) = inner.shift_remove(key) {
            outer.insert(key.into(), value);
        }
    }
    if let Some(Value::Object(properties)) = inner.get_mut("properties") {
        for property in properties.values_mut() {
            *property = or_template(property);
        }
        outer.extend(inner);
        return Value::Object(outer);
    }
    outer.insert("anyOf".into(), json!([inner, {"type": "string", "pattern": TEMPLATE}]));
    Value::Object(outer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_visible_stage_is_chosen_by_its_name() {
        let schema = json();
        let cases = schema["$defs"]["stage"]["allOf"].as_array().map_or(0, Vec::len);
        assert_eq!(cases, catalogue::visible().count());
        for info in catalogue::visible() {
            assert_eq!(schema["$defs"][info.entry.name]["properties"]["stage"]["const"], info.entry.name);
        }
    }

    #[test]
    fn a_parameter_may_come_from_the_matrix() {
        let info = catalogue::find("test/echo").expect("the stage exists");
        let definition = stage_definition(info);
        let share = &definition["properties"]["share"];
        assert_eq!(share["description"], "A share that does nothing.");
        assert_eq!(share["anyOf"][0]["maximum"], 1);
        assert_eq!(share["anyOf"][1]["pattern"], TEMPLATE);
        assert_eq!(definition["properties"]["range"]["properties"]["parts"]["anyOf"][0]["minimum"], 1);
        assert_eq!(definition["additionalProperties"], false);
    }
}
