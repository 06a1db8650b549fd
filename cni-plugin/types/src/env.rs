// SPDX-License-Identifier: Apache-2.0
//! The CNI variables: which verb, which attachment. The caller hands in a look-up; nothing is read from here.

use std::ffi::OsString;

use crate::error::{CniError, Code};
use crate::names::{is_container_id, is_ifname};

/// A verb with the variables that it needs, all of them checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Make an attachment.
    Add(Target),
    /// Compare an attachment with what it should be.
    Check(Target),
    /// Give up an attachment.
    Del(DelTarget),
    /// Give up every attachment that the runtime does not name.
    Gc,
    /// Can ADD work now?
    Status,
    /// Which versions are spoken.
    Version,
}

/// The attachment of ADD and CHECK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME.
    pub ifname: String,
    /// CNI_NETNS, a path.
    pub netns: String,
    /// CNI_ARGS as it came; empty when unset.
    pub args: String,
}

/// The attachment of DEL: its netns may be gone, and nothing but its name is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DelTarget {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME.
    pub ifname: String,
    /// CNI_NETNS, where the runtime still has it.
    pub netns: Option<String>,
}

/// Reads the call from the environment that `lookup` stands for. An empty variable counts as unset. Errors: code 4,
/// with every missing and every invalid variable named at once.
pub fn parse_call(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Call, CniError> {
    let mut vars = Variables { lookup, missing: Vec::new(), invalid: Vec::new() };
    let command = vars.required("CNI_COMMAND");
    let call = match command.as_str() {
        "ADD" => Call::Add(vars.target()),
        "CHECK" => Call::Check(vars.target()),
        "DEL" => Call::Del(DelTarget {
            container_id: vars.container_id(),
            ifname: vars.ifname(),
            // Not even its text matters to DEL, so nothing about it is an error.
            netns: (vars.lookup)("CNI_NETNS").and_then(|v| v.into_string().ok()).filter(|v| !v.is_empty()),
        }),
        "GC" => {
            vars.required("CNI_PATH");
            Call::Gc
        }
        "STATUS" => Call::Status,
        "VERSION" => Call::Version,
        "" => return Err(vars.error()),
        other => {
            vars.invalid
                .push(format!("CNI_COMMAND is {other:?}, not one of ADD, CHECK, DEL, GC, STATUS, VERSION"));
            return Err(vars.error());
        }
    };
    if vars.missing.is_empty() && vars.invalid.is_empty() { Ok(call) } else { Err(vars.error()) }
}

/// Collects what is wrong, so that the operator repairs it in one go.
struct Variables<F> {
    lookup: F,
    missing: Vec<&'static str>,
    invalid: Vec<String>,
}

impl<F: Fn(&str) -> Option<OsString>> Variables<F> {
    fn target(&mut self) -> Target {
        Target {
            container_id: self.container_id(),
            ifname: self.ifname(),
            netns: self.required("CNI_NETNS"),
            args: self.optional("CNI_ARGS"),
        }
    }

    fn container_id(&mut self) -> String {
        let value = self.required("CNI_CONTAINERID");
        if !value.is_empty() && !is_container_id(&value) {
            self.invalid.push(format!(
                "CNI_CONTAINERID is {value:?}: it must start with a letter or digit and hold only those and _ . -"
            ));
        }
        value
    }

    fn ifname(&mut self) -> String {
        let value = self.required("CNI_IFNAME");
        if !value.is_empty() && !is_ifname(&value) {
            self.invalid.push(format!(
                "CNI_IFNAME is {value:?}: at most 15 bytes, not . or .., no slash, colon, percent sign or blank"
            ));
        }
        value
    }

    fn required(&mut self, name: &'static str) -> String {
        let value = self.optional(name);
        if value.is_empty() && !self.invalid.iter().any(|text| text.starts_with(name)) {
            self.missing.push(name);
        }
        value
    }

    fn optional(&mut self, name: &'static str) -> String {
        match (self.lookup)(name).unwrap_or_default().into_string() {
            Ok(value) => value,
            Err(_) => {
                self.invalid.push(format!("{name} is not UTF-8"));
                String::new()
            }
        }
    }

    fn error(self) -> CniError {
        let mut parts = Vec::new();
        if !self.missing.is_empty() {
            parts.push(format!("missing CNI variables: {}", self.missing.join(", ")));
        }
        parts.extend(self.invalid.into_iter().map(|text| format!("invalid CNI variable: {text}")));
        CniError::new(Code::INVALID_ENVIRONMENT, parts.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::ffi::OsStringExt as _;

    use proptest::prelude::*;

    use super::*;

    fn call(vars: &[(&str, &str)]) -> Result<Call, CniError> {
        let vars: BTreeMap<_, _> = vars.iter().copied().collect();
        parse_call(|name| vars.get(name).map(OsString::from))
    }

    #[test]
    fn add_and_check_need_four_variables() {
        for verb in ["ADD", "CHECK"] {
            let error = call(&[("CNI_COMMAND", verb)]).unwrap_err();
            assert_eq!(error.code, Code::INVALID_ENVIRONMENT);
            assert_eq!(error.msg, "missing CNI variables: CNI_CONTAINERID, CNI_IFNAME, CNI_NETNS");
        }
        let vars = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", "/run/netns/x"),
        ];
        let Call::Add(target) = call(&vars).unwrap() else { panic!("not ADD") };
        assert_eq!(target.netns, "/run/netns/x");
        assert_eq!(target.args, "");
    }

    #[test]
    fn del_needs_no_netns() {
        let vars =
            [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "")];
        let expected = DelTarget { container_id: "c".into(), ifname: "eth0".into(), netns: None };
        assert_eq!(call(&vars).unwrap(), Call::Del(expected));
    }

    #[test]
    fn gc_needs_a_path_and_status_and_version_need_nothing() {
        assert_eq!(call(&[("CNI_COMMAND", "GC")]).unwrap_err().msg, "missing CNI variables: CNI_PATH");
        assert_eq!(call(&[("CNI_COMMAND", "GC"), ("CNI_PATH", "/opt/cni/bin")]).unwrap(), Call::Gc);
        assert_eq!(call(&[("CNI_COMMAND", "STATUS")]).unwrap(), Call::Status);
        assert_eq!(call(&[("CNI_COMMAND", "VERSION")]).unwrap(), Call::Version);
    }

    #[test]
    fn everything_wrong_is_named_at_once() {
        let vars = [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "../x"), ("CNI_IFNAME", "a/b")];
        let error = call(&vars).unwrap_err();
        for part in
            ["missing CNI variables: CNI_NETNS", "CNI_CONTAINERID is \"../x\"", "CNI_IFNAME is \"a/b\""]
        {
            assert!(error.msg.contains(part), "{}", error.msg);
        }
        assert_eq!(call(&[]).unwrap_err().msg, "missing CNI variables: CNI_COMMAND");
        assert!(call(&[("CNI_COMMAND", "add")]).unwrap_err().msg.contains("CNI_COMMAND is \"add\""));
    }

    #[test]
    fn bytes_that_are_no_text_are_invalid_not_missing() {
        let error =
            parse_call(|name| (name == "CNI_COMMAND").then(|| OsString::from_vec(vec![0xff]))).unwrap_err();
        assert_eq!(error.msg, "invalid CNI variable: CNI_COMMAND is not UTF-8");
    }

    proptest! {
        #[test]
        fn no_environment_panics(
            command in prop_oneof![Just("ADD".into()), Just("DEL".into()), Just("CHECK".into()), any::<String>()],
            values in proptest::collection::vec(any::<Vec<u8>>(), 5),
        ) {
            let names = ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS", "CNI_PATH"];
            let result = parse_call(|name| {
                if name == "CNI_COMMAND" {
                    return Some(OsString::from(&command));
                }
                let index = names.iter().position(|known| *known == name)?;
                Some(OsString::from_vec(values[index].clone()))
            });
            match result {
                Ok(Call::Add(t) | Call::Check(t)) => {
                    prop_assert!(is_container_id(&t.container_id) && is_ifname(&t.ifname) && !t.netns.is_empty());
                }
                Ok(Call::Del(t)) => prop_assert!(is_container_id(&t.container_id) && is_ifname(&t.ifname)),
                Ok(_) => {}
                Err(error) => prop_assert_eq!(error.code, Code::INVALID_ENVIRONMENT),
            }
        }
    }
}
