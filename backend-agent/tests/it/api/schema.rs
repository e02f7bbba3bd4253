//! A small JSON Schema validator: exactly the keywords that our description uses, and an error for any other, so that
//! nothing goes unchecked.

use regex::Regex;
use serde_json::Value;
use viworks_common::time::Timestamp;

/// Checks `value` against `schema`, whose references are looked up in `document`; says where it differs.
pub(super) fn check(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    at(document, schema, value, "$")
}

fn at(document: &Value, schema: &Value, value: &Value, place: &str) -> Result<(), String> {
    let wrong = |what: String| Err(format!("{place}: {what}: {value}"));
    let Some(schema) = schema.as_object() else {
        return wrong("the schema is no object".to_owned());
    };
    for (keyword, operand) in schema {
        match keyword.as_str() {
            "$ref" => {
                let pointer = operand.as_str().unwrap().trim_start_matches('#');
                let Some(target) = document.pointer(pointer) else {
                    return wrong(format!("{pointer} is not there"));
                };
                at(document, target, value, place)?;
            }
            "oneOf" => {
                let attempts: Vec<_> = operand
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|choice| at(document, choice, value, place))
                    .collect();
                if attempts.iter().filter(|attempt| attempt.is_ok()).count() != 1 {
                    return wrong(format!("not exactly one of the choices: {attempts:?}"));
                }
            }
            "anyOf" => {
                let choices = operand.as_array().unwrap().iter();
                let attempts: Vec<_> = choices
                    .map(|choice| at(document, choice, value, place))
                    .collect();
                if attempts.iter().all(Result::is_err) {
                    return wrong(format!("none of the choices: {attempts:?}"));
                }
            }
            "type" => {
                let types = operand
                    .as_array()
                    .cloned()
                    .unwrap_or_else(|| vec![operand.clone()]);
                if !types.iter().any(|name| is(value, name.as_str().unwrap())) {
                    return wrong(format!("not of type {operand}"));
                }
            }
            "enum" if !operand.as_array().unwrap().contains(value) => {
                return wrong(format!("none of {operand}"));
            }
            "required" => {
                for name in operand.as_array().unwrap() {
                    if value.is_object() && value.get(name.as_str().unwrap()).is_none() {
                        return wrong(format!("lacks {name}"));
                    }
                }
            }
            "properties" => {
                for (name, property) in operand.as_object().unwrap() {
                    if let Some(member) = value.get(name) {
                        at(document, property, member, &format!("{place}.{name}"))?;
                    }
                }
            }
            "additionalProperties" => {
                for (name, member) in value.as_object().into_iter().flatten() {
                    let known = schema
                        .get("properties")
                        .is_some_and(|properties| properties.get(name).is_some());
                    if known {
                        continue;
                    }
                    if operand == false {
                        return wrong(format!("has {name}"));
                    }
                    if operand.is_object() {
                        at(document, operand, member, &format!("{place}.{name}"))?;
                    }
                }
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    at(document, operand, item, &format!("{place}[{index}]"))?;
                }
            }
            "propertyNames" => {
                for name in value
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(name, _)| name)
                {
                    at(document, operand, &Value::from(name.as_str()), place)?;
                }
            }
            "maxProperties" => {
                let most = operand.as_u64().unwrap();
                if value
                    .as_object()
                    .is_some_and(|members| members.len() as u64 > most)
                {
                    return wrong(format!("more than {most} members"));
                }
            }
            "minimum" if value.as_f64() < operand.as_f64() && value.is_number() => {
                return wrong(format!("below {operand}"));
            }
            "maximum" if value.as_f64() > operand.as_f64() => {
                return wrong(format!("above {operand}"));
            }
            "minLength" | "maxLength" => {
                let length = value.as_str().map(|text| text.chars().count() as u64);
                let bound = operand.as_u64().unwrap();
                let fits = length.is_none_or(|length| {
                    if keyword == "minLength" {
                        length >= bound
                    } else {
                        length <= bound
                    }
                });
                if !fits {
                    return wrong(format!("{keyword} is {bound}"));
                }
            }
            "minItems" => {
                let least = operand.as_u64().unwrap();
                if value
                    .as_array()
                    .is_some_and(|items| (items.len() as u64) < least)
                {
                    return wrong(format!("fewer than {least} items"));
                }
            }
            "pattern" => {
                let pattern = operand.as_str().unwrap_or_default();
                let pattern = Regex::new(pattern).map_err(|error| error.to_string())?;
                if value.as_str().is_some_and(|text| !pattern.is_match(text)) {
                    return wrong(format!("does not match {pattern}"));
                }
            }
            "format" => format(operand.as_str().unwrap(), value).or_else(wrong)?,
            "enum" | "minimum" | "maximum" | "description" => {}
            other => return wrong(format!("the keyword {other} is not known here")),
        }
    }
    Ok(())
}

fn is(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        _ => false,
    }
}

fn format(name: &str, value: &Value) -> Result<(), String> {
    let text = value.as_str();
    let fits = match name {
        "uuid" => text.is_none_or(|text| uuid::Uuid::parse_str(text).is_ok()),
        "date-time" => text.is_none_or(|text| Timestamp::parse(text).is_ok()),
        "int32" | "int64" | "double" | "float" => true,
        _ => return Err(format!("the format {name} is not known here")),
    };
    fits.then_some(()).ok_or_else(|| format!("no {name}"))
}

#[test]
fn the_validator_refuses_what_a_schema_does_not_allow() {
    use serde_json::json;

    let document = json!({"components": {"schemas": {"Word": {"type": "string", "enum": ["a"]}}}});
    let word = json!({"$ref": "#/components/schemas/Word"});
    let object = json!({
        "type": "object", "required": ["w"], "properties": {"w": word}, "additionalProperties": false,
    });
    assert!(check(&document, &object, &json!({"w": "a"})).is_ok());
    for (schema, value) in [
        (&object, json!({})),
        (&object, json!({"w": "b"})),
        (&object, json!({"w": "a", "x": 1})),
        (&object, json!([])),
        (&json!({"type": "integer", "minimum": 1}), json!(0)),
        (&json!({"type": "integer"}), json!(1.5)),
        (&json!({"type": "array", "items": word}), json!(["b"])),
        (&json!({"oneOf": [word, {"type": "string"}]}), json!("a")),
        (&json!({"anyOf": [word, {"type": "object"}]}), json!("b")),
        (&json!({"format": "uuid"}), json!("x")),
        (&json!({"maxLength": 1}), json!("xx")),
        (&json!({"colour": "red"}), json!(1)),
        (&json!({"$ref": "#/nowhere"}), json!(1)),
    ] {
        assert!(
            check(&document, schema, &value).is_err(),
            "{schema} {value}"
        );
    }
}
