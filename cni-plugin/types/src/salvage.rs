// SPDX-License-Identifier: Apache-2.0
//! What can still be read of a stdin that does not decode: DEL has to work with a damaged config.

/// The texts of two keys of the outermost object, where they could be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Salvage {
    /// `name`
    pub name: Option<String>,
    /// `socket`
    pub socket: Option<String>,
}

impl Salvage {
    /// Reads as far as the bytes make sense: cut off, with rubbish behind, with values of the wrong type. What lies
    /// deeper (an interface's name in prevResult) is never taken for the network's.
    pub fn of(bytes: &[u8]) -> Self {
        let mut found = Self::default();
        let (mut at, mut depth) = (0, 0_usize);
        while let Some(byte) = bytes.get(at) {
            match byte {
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth = depth.saturating_sub(1),
                b'"' => {
                    let Some((text, end)) = string(bytes, at) else { break };
                    at = end;
                    if depth == 1
                        && let Some(start) = value_start(bytes, end)
                        && let Some((value, end)) = string(bytes, start)
                    {
                        found.take(text.as_deref(), value);
                        at = end;
                    }
                    continue;
                }
                _ => {}
            }
            at += 1;
        }
        found
    }

    fn take(&mut self, key: Option<&str>, value: Option<String>) {
        let slot = match key {
            Some("name") => &mut self.name,
            Some("socket") => &mut self.socket,
            _ => return,
        };
        if let Some(value) = value {
            *slot = Some(value);
        }
    }
}

/// The string that starts at `start`, where it is one (its text, if that is valid), and where it ends.
fn string(bytes: &[u8], start: usize) -> Option<(Option<String>, usize)> {
    if bytes.get(start) != Some(&b'"') {
        return None;
    }
    let mut at = start + 1;
    loop {
        match bytes.get(at)? {
            b'"' => break,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    let text = serde_json::from_slice(bytes.get(start..=at)?).ok();
    Some((text, at + 1))
}

/// Where the value starts, if what follows a string makes it a key.
fn value_start(bytes: &[u8], end: usize) -> Option<usize> {
    let skip = |from: usize| {
        let rest = bytes.get(from..).unwrap_or_default();
        from + rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count()
    };
    let colon = skip(end);
    (bytes.get(colon) == Some(&b':')).then(|| skip(colon + 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn salvage(text: &str) -> (Option<String>, Option<String>) {
        let Salvage { name, socket } = Salvage::of(text.as_bytes());
        (name, socket)
    }

    #[test]
    fn a_config_that_was_cut_off_still_says_which_network_it_is() {
        let cut = r#"{"args":{"cni":{"name":"wrong"}},"cniVersion":"1.0.0","name":"weft","socket":"/run/x.sock","prevResult":{"interfaces":[{"name":"eth"#;
        assert_eq!(salvage(cut), (Some("weft".into()), Some("/run/x.sock".into())));
    }

    #[test]
    fn what_lies_deeper_or_is_no_text_is_not_taken() {
        assert_eq!(salvage(r#"{"prevResult":{"name":"eth0"},"list":[{"name":"x"}]"#), (None, None));
        assert_eq!(salvage(r#"{"name": 7, "socket": null"#), (None, None));
        assert_eq!(salvage(r#"{"key":"name","socket" : "/a" "#), (None, Some("/a".into())));
        assert_eq!(salvage(r#"{"a\"b":"name","name":"we\u0066t"}"#), (Some("weft".into()), None));
        assert_eq!(salvage("[\"name\":\"x\"]").0, Some("x".into()));
        assert_eq!(salvage(""), (None, None));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in any::<Vec<u8>>(), text in r#"[{}\[\]":\\nam, ]{0,40}"#) {
            Salvage::of(&bytes);
            Salvage::of(text.as_bytes());
        }

        #[test]
        fn of_a_whole_config_and_of_every_start_of_it_nothing_else_is_read(
            name in ".{0,12}", other in ".{0,12}", cut in any::<proptest::sample::Index>(),
        ) {
            let config = json!({
                "args": {"name": &other}, "k": [&other, {"name": &other}], "name": &name, "z": {"name": &other},
            });
            let text = config.to_string();
            prop_assert_eq!(Salvage::of(text.as_bytes()).name, Some(name.clone()));
            let part = &text.as_bytes()[..cut.index(text.len())];
            prop_assert!(Salvage::of(part).name.is_none_or(|found| found == name));
        }
    }
}
