// SPDX-License-Identifier: Apache-2.0
//! Changes an input at random: its bytes, its lines, or a value of the JSON inside it.

use std::collections::BTreeSet;

use mutatis::Session;
use serde_json::{Value, json};

/// Inputs grow no further, in bytes: what a long input finds, a short one finds too, and faster.
const INPUT_BYTES_MAX: usize = 16 * 1024;

/// Changes to one input at most.
const CHANGES_MAX: usize = 4;

/// Texts that have broken programs before; those of the corpus come on top.
const TOKENS: [&str; 14] = [
    "",
    "..",
    "/",
    "0",
    "-1",
    "4294967296",
    "18446744073709551615",
    "::ffff:10.0.0.1",
    "::",
    "0.0.0.0/0",
    "ff02::1",
    "\u{0}",
    "\u{fffd}é",
    "eth0",
];

/// A seeded source of inputs.
#[derive(Debug)]
pub struct Mutator {
    session: Session,
    tokens: Vec<String>,
    values: Vec<Value>,
}

impl Mutator {
    /// Words and values of the corpus are used in its mutations.
    pub fn new(seed: u64, corpus: &[Vec<u8>]) -> Self {
        let (mut tokens, mut values) = (BTreeSet::from(TOKENS.map(str::to_owned)), Vec::new());
        for input in corpus {
            let mut start = 0;
            while let Some((from, to, value)) = next_json(input, start) {
                gather(&value, &mut tokens, &mut values);
                debug_assert!(from < to);
                start = to;
            }
        }
        values.extend([
            json!(null),
            json!(true),
            json!(0),
            json!(-1),
            json!(1.5),
            json!(u64::MAX),
            json!(i64::MIN),
        ]);
        values.extend([json!([]), json!({}), json!("")]);
        Self { session: Session::new().seed(seed), tokens: tokens.into_iter().collect(), values }
    }

    /// A new input, made from those of the pool.
    pub fn mutate(&mut self, pool: &[Vec<u8>]) -> Vec<u8> {
        let mut input = self.choose(pool).cloned().unwrap_or_default();
        for _ in 0..=self.index(CHANGES_MAX) {
            match self.index(10) {
                0..5 => input = self.edit_json(input),
                5 => self.edit_bytes(&mut input),
                6 => self.insert_token(&mut input),
                7 => self.cut(&mut input),
                8 => self.edit_lines(&mut input),
                _ => self.splice(&mut input, pool),
            }
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn edit_json(&mut self, mut input: Vec<u8>) -> Vec<u8> {
        let start = self.index(input.len());
        let Some((from, to, mut value)) = next_json(&input, start).or_else(|| next_json(&input, 0)) else {
            self.edit_bytes(&mut input);
            return input;
        };
        let node = self.index(nodes(&value));
        self.edit_node(&mut value, &mut node.clone());
        [&input[..from], value.to_string().as_bytes(), &input[to..]].concat()
    }

    /// Goes to the node of that number, in depth first, and changes it.
    fn edit_node(&mut self, value: &mut Value, node: &mut usize) -> bool {
        if *node == 0 {
            self.edit_value(value);
            return true;
        }
        *node -= 1;
        match value {
            Value::Array(list) => list.iter_mut().any(|inner| self.edit_node(inner, node)),
            Value::Object(map) => map.iter_mut().any(|(_, inner)| self.edit_node(inner, node)),
            Value::Bool(_) | Value::Null | Value::Number(_) | Value::String(_) => false,
        }
    }

    fn edit_value(&mut self, value: &mut Value) {
        match (self.index(4), &mut *value) {
            (0, Value::Array(list)) if !list.is_empty() => {
                list.remove(self.index(list.len()));
            }
            (1, Value::Array(list)) if !list.is_empty() => list.push(list[self.index(list.len())].clone()),
            (2, Value::Array(list)) => list.push(self.value()),
            (0, Value::Object(map)) if !map.is_empty() => {
                let key = map.keys().nth(self.index(map.len())).cloned().unwrap_or_default();
                map.remove(&key);
            }
            (1, Value::Object(map)) if !map.is_empty() => {
                let key = map.keys().nth(self.index(map.len())).cloned().unwrap_or_default();
                let (moved, name) = (map.remove(&key).unwrap_or_default(), self.token());
                map.insert(name, moved);
            }
            (2, Value::Object(map)) => {
                let (name, inner) = (self.token(), self.value());
                map.insert(name, inner);
            }
            (0, Value::String(text)) => *text = self.token(),
            (1 | 2, Value::String(text)) => {
                let _ = self.session.mutate(text);
            }
            (0 | 1, Value::Number(number)) => {
                let mut changed = number.as_u64().unwrap_or_default();
                let _ = self.session.mutate(&mut changed);
                *value = json!(changed);
            }
            (2, Value::Number(number)) => {
                let near = number.as_i64().unwrap_or_default();
                *value = json!(near.wrapping_add([-1, 1, 255, 256][self.index(4)]));
            }
            (3, Value::Array(_) | Value::Object(_)) if self.index(4) == 0 => *value = json!([value.take()]),
            _ => *value = self.value(),
        }
    }

    fn edit_bytes(&mut self, input: &mut Vec<u8>) {
        // Exhausted is the only error, and an empty input may stay empty.
        let _ = self.session.mutate(input);
    }

    fn insert_token(&mut self, input: &mut Vec<u8>) {
        let (at, token) = (self.index(input.len() + 1), self.token());
        input.splice(at..at, token.into_bytes());
    }

    fn cut(&mut self, input: &mut Vec<u8>) {
        let from = self.index(input.len());
        let to = from + self.index(input.len() - from + 1);
        input.drain(from..to);
    }

    /// A line twice, or two lines in the other order, or one less.
    fn edit_lines(&mut self, input: &mut Vec<u8>) {
        let mut lines: Vec<&[u8]> = input.split_inclusive(|byte| *byte == b'\n').collect();
        if lines.is_empty() {
            return;
        }
        let (one, other) = (self.index(lines.len()), self.index(lines.len()));
        match self.index(3) {
            0 => lines.insert(other, lines[one]),
            1 => lines.swap(one, other),
            _ => drop(lines.remove(one)),
        }
        *input = lines.concat();
    }

    /// The beginning of this one and the end of another.
    fn splice(&mut self, input: &mut Vec<u8>, pool: &[Vec<u8>]) {
        let Some(other) = self.choose(pool) else { return };
        input.truncate(self.index(input.len() + 1));
        input.extend_from_slice(&other[self.index(other.len() + 1)..]);
    }

    fn token(&mut self) -> String {
        let at = self.index(self.tokens.len());
        self.tokens[at].clone()
    }

    fn value(&mut self) -> Value {
        let at = self.index(self.values.len());
        self.values[at].clone()
    }

    fn choose<'a>(&mut self, pool: &'a [Vec<u8>]) -> Option<&'a Vec<u8>> {
        pool.get(self.index(pool.len()))
    }

    /// Below `length`; 0 where there is nothing to choose.
    fn index(&mut self, length: usize) -> usize {
        let number: u32 = self.session.generate().unwrap_or_default();
        (number as usize).checked_rem(length).unwrap_or_default()
    }
}

/// The first JSON object or list at or after `start`: where it begins, where it ends, what it is.
fn next_json(input: &[u8], start: usize) -> Option<(usize, usize, Value)> {
    let mut from = start;
    loop {
        from += input.get(from..)?.iter().position(|byte| matches!(byte, b'{' | b'['))?;
        let mut values = serde_json::Deserializer::from_slice(&input[from..]).into_iter::<Value>();
        if let Some(Ok(value)) = values.next() {
            return Some((from, from + values.byte_offset(), value));
        }
        from += 1;
    }
}

fn nodes(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(nodes).sum::<usize>(),
        Value::Object(map) => map.values().map(nodes).sum(),
        Value::Bool(_) | Value::Null | Value::Number(_) | Value::String(_) => 0,
    }
}

fn gather(value: &Value, tokens: &mut BTreeSet<String>, values: &mut Vec<Value>) {
    values.push(value.clone());
    match value {
        Value::Array(list) => list.iter().for_each(|inner| gather(inner, tokens, values)),
        Value::Object(map) => {
            for (key, inner) in map {
                tokens.insert(key.clone());
                gather(inner, tokens, values);
            }
        }
        Value::String(text) => {
            tokens.insert(text.clone());
        }
        Value::Bool(_) | Value::Null | Value::Number(_) => {}
    }
}
