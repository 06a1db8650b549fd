// SPDX-License-Identifier: Apache-2.0
//! Object files: YAML with several documents, or JSON, into objects that remember where they stand, so that a
//! complaint names file, line and field.

mod locate;

use std::fmt;
use std::io::Read;
use std::path::Path;

use anyhow::Context;
use serde_json::Value;

/// Largest file read: some hundred thousand objects; more than that is a mistake in the name.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// One object of a file.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    pub(crate) object: Value,
    source: Source,
}

/// Where an object was read from.
#[derive(Clone, Debug)]
struct Source {
    file: String,
    text: String,
    /// Line of the file at which `text` begins, from 1.
    first_line: usize,
    /// Where the object lies in the document: empty, or `items[3]` in a List.
    inside: String,
}

/// A file that cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ManifestError {
    file: String,
    line: usize,
    field: Option<String>,
    reason: String,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file, self.line)?;
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.reason)
    }
}

impl std::error::Error for ManifestError {}

/// Reads a file, or stdin where it is `-`.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Document>> {
    let mut text = String::new();
    let (name, read) = if path == Path::new("-") {
        ("stdin".to_owned(), std::io::stdin().lock().take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
    } else {
        let name = path.display().to_string();
        let file = std::fs::File::open(path).with_context(|| format!("cannot open {name}"))?;
        (name, file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
    };
    read.with_context(|| format!("cannot read {name}"))?;
    anyhow::ensure!(
        text.len() as u64 <= FILE_BYTES_MAX,
        "{name} is larger than {FILE_BYTES_MAX} bytes; split it into several files"
    );
    let documents = parse(&name, &text)?;
    anyhow::ensure!(!documents.is_empty(), "{name}: no objects in this file");
    Ok(documents)
}

/// The objects of a text, in order; Lists are taken apart, empty documents are skipped.
pub(crate) fn parse(file: &str, text: &str) -> Result<Vec<Document>, ManifestError> {
    let mut documents = Vec::new();
    for (first_line, part) in split(text) {
        let source = Source { file: file.to_owned(), text: part, first_line, inside: String::new() };
        let value = if source.text.trim_start().starts_with('{') { json(&source) } else { yaml(&source) }?;
        if value.is_null() {
            continue;
        }
        collect(value, source, &mut documents)?;
    }
    Ok(documents)
}

impl Document {
    pub(crate) fn kind(&self) -> &str {
        self.object["kind"].as_str().unwrap_or_default()
    }

    pub(crate) fn namespace(&self) -> &str {
        match self.metadata("namespace") {
            "" => crate::args::DEFAULT_NAMESPACE,
            namespace => namespace,
        }
    }

    pub(crate) fn metadata(&self, field: &str) -> &str {
        self.object["metadata"][field].as_str().unwrap_or_default()
    }

    /// A complaint about a field of this object, such as `spec.ports[0].port`, at the line where it stands.
    pub(crate) fn error(&self, field: &str, reason: impl Into<String>) -> ManifestError {
        self.source.error(field, reason)
    }
}

impl Source {
    fn error(&self, field: &str, reason: impl Into<String>) -> ManifestError {
        let inside = match (self.inside.as_str(), field) {
            (inside, "") => inside.to_owned(),
            ("", field) => field.to_owned(),
            (inside, field) => format!("{inside}.{field}"),
        };
        ManifestError {
            file: self.file.clone(),
            line: self.first_line + locate::line_of(&self.text, &inside),
            field: Some(inside).filter(|field| !field.is_empty()),
            reason: reason.into(),
        }
    }

    fn syntax(&self, line: usize, reason: impl Into<String>) -> ManifestError {
        ManifestError {
            file: self.file.clone(),
            line: self.first_line + line.saturating_sub(1),
            field: None,
            reason: reason.into(),
        }
    }
}

/// Cuts a text at its document markers. In YAML a line that starts with `---` or `...` is a marker wherever it
/// stands, also inside a block scalar, so lines are enough.
fn split(text: &str) -> Vec<(usize, String)> {
    let mut parts = vec![(1, String::new())];
    for (index, line) in text.lines().enumerate() {
        let is_marker = |marker: &str| {
            line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t']))
        };
        if is_marker("---") || is_marker("...") {
            // What follows the marker on its line belongs to the next document, at the same column.
            parts.push((index + 1, format!("   {}\n", &line[3..])));
        } else if let Some((_, part)) = parts.last_mut() {
            // Directives (`%YAML 1.2`) say nothing that we need.
            part.push_str(if line.starts_with('%') { "" } else { line });
            part.push('\n');
        }
    }
    parts.retain(|(_, part)| !part.trim().is_empty());
    parts
}

fn yaml(source: &Source) -> Result<Value, ManifestError> {
    let broken = |error: serde_norway::Error| {
        let line = error.location().map_or(1, |at| at.line());
        source.syntax(line, format!("not valid YAML: {error}"))
    };
    // By way of YAML's own value, which refuses a key that stands twice.
    let value: serde_norway::Value = serde_norway::from_str(&source.text).map_err(broken)?;
    serde_json::to_value(value).map_err(|error| source.error("", format!("not usable as an object: {error}")))
}

fn json(source: &Source) -> Result<Value, ManifestError> {
    serde_json::from_str(&source.text)
        .map_err(|error| source.syntax(error.line(), format!("not valid JSON: {error}")))
}

fn collect(object: Value, source: Source, documents: &mut Vec<Document>) -> Result<(), ManifestError> {
    if !object.is_object() {
        return Err(source.error("", "expected an object with apiVersion, kind and metadata"));
    }
    if object["kind"] == "List" {
        let Some(items) = object["items"].as_array() else {
            return Err(source.error("items", "a List needs a sequence of objects here"));
        };
        for (index, item) in items.iter().enumerate() {
            let inside = match source.inside.as_str() {
                "" => format!("items[{index}]"),
                outer => format!("{outer}.items[{index}]"),
            };
            collect(item.clone(), Source { inside, ..source.clone() }, documents)?;
        }
        return Ok(());
    }
    for (field, value) in [("kind", &object["kind"]), ("metadata.name", &object["metadata"]["name"])] {
        match value {
            Value::String(text) if !text.is_empty() => {}
            Value::Null => return Err(source.error(field, "missing")),
            _ => return Err(source.error(field, "expected a text that is not empty")),
        }
    }
    documents.push(Document { object, source });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "\
# two services
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  ports:
  - name: http
    port: 80
  - port: 70000
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
";

    fn complaint(text: &str) -> String {
        parse("f.yaml", text).unwrap_err().to_string()
    }

    #[test]
    fn several_documents_keep_their_order_and_place() {
        let documents = parse("f.yaml", TWO).unwrap();
        let names: Vec<_> = documents.iter().map(|one| (one.namespace(), one.metadata("name"))).collect();
        assert_eq!(names, [("default", "web"), ("shop", "db")]);
        let error = documents[0].error("spec.ports[1].port", "must be 1 to 65535");
        assert_eq!(error.to_string(), "f.yaml:10: spec.ports[1].port: must be 1 to 65535");
        assert_eq!(
            documents[1].error("metadata.namespace", "x").to_string(),
            "f.yaml:14: metadata.namespace: x"
        );
    }

    #[test]
    fn empty_documents_comments_and_markers_are_skipped() {
        let text =
            "%YAML 1.2\n---\n# nothing\n---\n--- # note\nkind: Service\nmetadata: {name: a}\n...\n---\n";
        let documents = parse("f", text).unwrap();
        assert_eq!(documents.len(), 1);
        assert_eq!(documents[0].error("kind", "x").to_string(), "f:6: kind: x");
        assert!(parse("f", "").unwrap().is_empty());
    }

    #[test]
    fn a_list_is_taken_apart_and_fields_name_the_item() {
        let text = "kind: List\nitems:\n- kind: Service\n  metadata: {name: a}\n- kind: Service\n  metadata:\n    name: b\n";
        let documents = parse("f", text).unwrap();
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[1].error("metadata.name", "x").to_string(), "f:7: items[1].metadata.name: x");
    }

    #[test]
    fn json_is_taken_with_its_lines() {
        let text = "{\n  \"kind\": \"Service\",\n  \"metadata\": {\n    \"name\": \"a\"\n  }\n}\n";
        let documents = parse("f.json", text).unwrap();
        assert_eq!(documents[0].error("metadata.name", "x").to_string(), "f.json:4: metadata.name: x");
        let error = complaint("{\n  \"kind\": \"Service\",\n}\n");
        assert!(error.starts_with("f.yaml:3: not valid JSON: "), "{error}");
    }

    #[test]
    fn broken_yaml_names_the_line_of_the_file_not_of_the_document() {
        let error =
            complaint("kind: Service\nmetadata: {name: a}\n---\nkind: Service\nmetadata: [\n---\nkind: x\n");
        assert!(
            error.starts_with("f.yaml:5: not valid YAML") || error.starts_with("f.yaml:6: not"),
            "{error}"
        );
        let error = complaint("kind: Service\nkind: Service\n");
        assert!(error.contains("duplicate entry"), "{error}");
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert_eq!(complaint("kind: Service\n"), "f.yaml:1: metadata.name: missing");
        assert_eq!(complaint("\nmetadata: {name: a}\n"), "f.yaml:2: kind: missing");
        assert_eq!(
            complaint("kind: Service\nmetadata:\n  name: 3\n"),
            "f.yaml:3: metadata.name: expected a text that is not empty"
        );
        assert!(complaint("- a\n- b\n").contains("expected an object"));
        assert!(complaint("kind: List\nitems: 3\n").starts_with("f.yaml:2: items: "));
    }
}
