// SPDX-License-Identifier: Apache-2.0
//! The line of a field: a walk over indentation, good for block YAML and for JSON with one field per line. Where
//! the text is denser (flow style), the line of the innermost enclosing field that has a line of its own is given.

/// One step of a field path: `spec`, `ports`, `[1]`.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

/// Something that starts at a column: a key with its value, or the dash (in JSON the brace) of a sequence's element.
struct Item<'a> {
    line: usize,
    column: usize,
    text: &'a str,
}

const ELEMENT: &str = "-";

/// Line (from 0) of the field at `path`, or of the deepest part of the path that can be found.
pub(super) fn line_of(text: &str, path: &str) -> usize {
    let items = items(text);
    let mut line = items.first().map_or(0, |item| item.line);
    let mut block = &items[..];
    for step in steps(path) {
        let Some((at, inner)) = find(block, &step) else { break };
        line = at;
        block = inner;
    }
    line
}

/// The item that a step means, among the children of a block, and what lies inside it.
fn find<'a, 'b>(block: &'b [Item<'a>], step: &Step) -> Option<(usize, &'b [Item<'a>])> {
    let column = block.first()?.column;
    let children = (0..block.len()).filter(|index| block[*index].column == column);
    let start = match step {
        Step::Key(key) => children.into_iter().find(|index| key_of(block[*index].text) == Some(key.as_str())),
        Step::Index(n) => children.into_iter().filter(|index| block[*index].text == ELEMENT).nth(*n),
    }?;
    let rest = &block[start + 1..];
    // A sequence may stand at the column of its key: `ports:` over `- port: 80`.
    let belongs = |item: &Item<'_>| {
        item.column > column
            || (item.column == column && item.text == ELEMENT && block[start].text != ELEMENT)
    };
    let end = rest.iter().position(|item| !belongs(item)).unwrap_or(rest.len());
    Some((block[start].line, &rest[..end]))
}

fn items(text: &str) -> Vec<Item<'_>> {
    let mut items = Vec::new();
    for (line, full) in text.lines().enumerate() {
        let mut rest = full.trim_start_matches(' ');
        while let Some(after) = rest.strip_prefix("- ") {
            items.push(Item { line, column: full.len() - rest.len(), text: ELEMENT });
            rest = after.trim_start_matches(' ');
        }
        let column = full.len() - rest.len();
        match rest.trim_end() {
            "" | "}" | "]" | "}," | "]," | "{}" | "[]" => {}
            // The brace of the document itself is no element of anything.
            "{" if items.is_empty() => {}
            ELEMENT | "{" => items.push(Item { line, column, text: ELEMENT }),
            comment if comment.starts_with('#') => {}
            text => items.push(Item { line, column, text }),
        }
    }
    items
}

/// The key at the start of an item, without its quotes.
fn key_of(text: &str) -> Option<&str> {
    if let Some(quote) = text.chars().next().filter(|first| matches!(first, '"' | '\'')) {
        return text[1..].split_once(quote).map(|(key, _)| key);
    }
    let end = text.find(": ").or_else(|| text.strip_suffix(':').map(str::len))?;
    Some(text[..end].trim_end())
}

/// Takes a path apart: `spec.ports[1].port`, `metadata.annotations["weft.dev/weights"]`.
fn steps(path: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(inside) = rest.strip_prefix("[\"") {
            let (key, after) = inside.split_once("\"]").unwrap_or((inside, ""));
            steps.push(Step::Key(key.to_owned()));
            rest = after;
        } else if let Some(inside) = rest.strip_prefix('[') {
            let (index, after) = inside.split_once(']').unwrap_or((inside, ""));
            steps.push(index.parse().map_or_else(|_| Step::Key(index.to_owned()), Step::Index));
            rest = after;
        } else {
            let start = rest.strip_prefix('.').unwrap_or(rest);
            let end = start.find(['.', '[']).unwrap_or(start.len());
            // Nothing between two dots: no such field, and the walk ends here.
            steps.push(Step::Key(start[..end].to_owned()));
            rest = &start[end..];
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    const YAML: &str = "\
kind: Service
metadata:
  name: web
  annotations:
    weft.dev/algorithm: maglev
spec:
  selector: {app: web}
  ports:
  # the first port
  - name: http
    port: 80
  -
    port: 81
  clusterIP: 10.96.0.1
";

    #[test]
    fn fields_of_block_yaml_have_their_line() {
        for (path, line) in [
            ("", 0),
            ("kind", 0),
            ("metadata.name", 2),
            ("metadata.annotations[\"weft.dev/algorithm\"]", 4),
            ("spec", 5),
            ("spec.selector", 6),
            ("spec.ports", 7),
            ("spec.ports[0]", 9),
            ("spec.ports[0].name", 9),
            ("spec.ports[0].port", 10),
            ("spec.ports[1]", 11),
            ("spec.ports[1].port", 12),
            ("spec.clusterIP", 13),
        ] {
            assert_eq!(line_of(YAML, path), line, "{path}");
        }
    }

    #[test]
    fn a_field_without_a_line_gives_the_line_around_it() {
        assert_eq!(line_of(YAML, "spec.selector.app"), 6);
        assert_eq!(line_of(YAML, "spec.ports[7].port"), 7);
        assert_eq!(line_of(YAML, "status"), 0);
        assert_eq!(line_of("", "spec"), 0);
    }

    #[test]
    fn json_with_one_field_per_line_works_too() {
        let text = "{\n  \"spec\": {\n    \"ports\": [\n      {\n        \"port\": 80\n      },\n      {\n        \"port\": 81\n      }\n    ]\n  }\n}\n";
        assert_eq!(line_of(text, "spec.ports[0].port"), 4);
        assert_eq!(line_of(text, "spec.ports[1].port"), 7);
    }

    #[test]
    fn strange_paths_and_texts_do_not_panic() {
        for path in [".", "..", "[", "[\"", "[x]", "a..b", "a[", "é[0]"] {
            for text in ["", "-", "- - -", "\"", "'", ": :", "é: ü", "{", "a:\n- b"] {
                line_of(text, path);
            }
        }
    }
}
