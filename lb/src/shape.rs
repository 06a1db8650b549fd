// SPDX-License-Identifier: Apache-2.0
//! Walks a JSON value along a description of what it should look like, so that a wrong type or range is reported
//! with the path a person can find in the manifest, and a field nobody acts upon is named.

use serde_json::Value;

use crate::IgnoredField;

/// What a field may hold.
#[derive(Clone, Copy)]
pub(crate) enum Shape {
    /// `true` or `false`.
    Bool,
    /// A whole number in this range.
    Int(i64, i64),
    /// A list.
    List(&'static Self),
    /// An object with these fields; others are named as ignored.
    Object(&'static [Field]),
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Like `Object`, where others are none of our business.
    Open(&'static [Field]),
    /// A port number or the name of one.
    Port,
    /// A string.
    Text,
    /// An object of strings.
    TextMap,
}

/// One field of an object: name, and what it may hold.
pub(crate) type Field = (&'static str, Shape);

/// Where a value is not as described: path and reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mismatch {
    pub(crate) field: String,
    pub(crate) reason: String,
}

/// Drops members that are `null`: as in Kubernetes, `null` is the same as not given.
pub(crate) fn strip_nulls(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(strip_nulls),
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(strip_nulls);
        }
        _ => {}
    }
}

/// Compares `value` at `path` with `shape`; paths of ignored fields are added in the order of the object.
pub(crate) fn check(
    value: &Value,
    shape: Shape,
    path: &str,
    ignored: &mut Vec<IgnoredField>,
) -> Result<(), Mismatch> {
    let wrong = |expected: &str| {
        Err(Mismatch { field: or_root(path), reason: format!("{} is not {expected}", describe(value)) })
    };
    match shape {
        Shape::Bool if value.is_boolean() => Ok(()),
        Shape::Bool => wrong("true or false"),
        Shape::Int(low, high) => match value.as_i64() {
            Some(number) if (low..=high).contains(&number) => Ok(()),
            _ if value.is_number() => wrong(&format!("in {low}..={high}")),
            _ => wrong(&format!("a number in {low}..={high}")),
        },
        Shape::List(item) => match value {
            Value::Array(items) => {
                let mut items = items.iter().enumerate();
                items.try_for_each(|(index, value)| check(value, *item, &format!("{path}[{index}]"), ignored))
            }
            _ => wrong("a list"),
        },
        Shape::Object(fields) => check_object(value, fields, path, Some(ignored)),
        Shape::OneOf(words) => match value.as_str() {
            Some(word) if words.contains(&word) => Ok(()),
            _ => wrong(&format!("one of {}", words.join(", "))),
        },
        Shape::Open(fields) => check_object(value, fields, path, None),
        Shape::Port if value.is_string() => Ok(()),
        Shape::Port => check(value, Shape::Int(1, 65_535), path, ignored),
        Shape::Text if value.is_string() => Ok(()),
        Shape::Text => wrong("a string (put it in quotes)"),
        Shape::TextMap => match value {
            Value::Object(members) => members
                .iter()
                .try_for_each(|(key, value)| check(value, Shape::Text, &format!("{path}[{key:?}]"), ignored)),
            _ => wrong("a map of strings"),
        },
    }
}

fn check_object(
    value: &Value,
    fields: &'static [Field],
    path: &str,
    ignored: Option<&mut Vec<IgnoredField>>,
) -> Result<(), Mismatch> {
    let Value::Object(members) = value else {
        return Err(Mismatch {
            field: or_root(path),
            reason: format!("{} is not an object", describe(value)),
        });
    };
    let mut silent = Vec::new();
    let report = ignored.is_some();
    let ignored = ignored.unwrap_or(&mut silent);
    for (name, member) in members {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match fields.iter().find(|(known, _)| known == name) {
            Some((_, shape)) => check(member, *shape, &path, ignored)?,
            None if report => ignored.push(IgnoredField { path }),
            None => {}
        }
    }
    Ok(())
}

fn or_root(path: &str) -> String {
    if path.is_empty() { "(the whole object)".to_owned() } else { path.to_owned() }
}

/// The value as a person would call it: short ones as they are, others by their type.
fn describe(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Null => "null".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) => format!("{:?}", text.chars().take(MAX_QUOTED).collect::<String>()),
    }
}

/// Characters of a wrong value in a message: enough to find it, too few to flood a log.
const MAX_QUOTED: usize = 80;
