// SPDX-License-Identifier: Apache-2.0
//! Who asks, and who may see a name: the annotation `weft.dev/dns-views`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use crate::syntax::{is_dns_label, is_label_key, is_label_value};

/// What a term may be, for whoever wrote another one.
const TERMS: &str = "there are LABEL, !LABEL, LABEL=VALUE and namespace=NAME, `,` for and, `;` for or";

/// The pod that asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Name in it.
    pub pod: Arc<str>,
    /// What views look at. Also of pods of other nodes: they ask here where their own node's server is away, and `!LABEL` admits
    /// whoever has no labels.
    pub labels: Arc<BTreeMap<String, String>>,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.pod)
    }
}

/// Who may see a name: clients for whom one of the rules holds. Displays as it is written.
///
/// Rules stand between semicolons, the terms of one rule between commas and all hold together:
/// `namespace=NAME`, `LABEL=VALUE`, `LABEL` (there is such a label), `!LABEL` (there is none). A client that is no known pod
/// sees what has no views.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Views {
    rules: Box<[Box<[Term]>]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    Has(Box<str>),
    Is(Box<str>, Box<str>),
    Lacks(Box<str>),
    Namespace(Box<str>),
}

/// Why a text is no views.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("rule {rule} of {text:?}: {reason}; write for instance `namespace=shop; app=web,tier`")]
pub struct ViewsError {
    text: String,
    rule: usize,
    reason: String,
}

impl Views {
    /// Reads the annotation.
    ///
    /// # Errors
    /// A rule without a term, a term without a name, an operator that there is not, what no label, value or namespace can be;
    /// says which one.
    pub fn parse(text: &str) -> Result<Self, ViewsError> {
        let rule = |(index, rule): (usize, &str)| {
            let error = |reason: String| ViewsError { text: text.to_owned(), rule: index + 1, reason };
            rule.split(',').map(|term| Term::parse(term.trim()).map_err(error)).collect()
        };
        Ok(Self {
            rules: text
                .trim_end_matches([';', ' '])
                .split(';')
                .enumerate()
                .map(rule)
                .collect::<Result<_, _>>()?,
        })
    }

    /// No rules: what they are of is seen by nobody.
    #[must_use]
    pub fn nobody() -> Self {
        Self { rules: Box::new([]) }
    }

    /// Whether `client` may see it.
    #[must_use]
    pub fn admit(&self, client: Option<&Client>) -> bool {
        client.is_some_and(|client| self.rules.iter().any(|rule| rule.iter().all(|term| term.holds(client))))
    }
}

impl Term {
    fn parse(text: &str) -> Result<Self, String> {
        if let Some(operator) = operator_of_others(text) {
            return Err(format!("there is no operator `{operator}`; {TERMS}"));
        }
        let term = Self::read(text)?;
        let (name, value) = match &term {
            Self::Namespace(name) if !is_dns_label(name) => {
                return Err(format!("no namespace can be {name:?}; write 1 to 63 of a-z, 0-9 and -"));
            }
            Self::Namespace(_) => return Ok(term),
            Self::Is(name, value) => (name, &**value),
            Self::Has(name) | Self::Lacks(name) => (name, ""),
        };
        if !is_label_key(name) {
            return Err(format!(
                "no label can be {name:?} (up to 63 of A-Z, a-z, 0-9, '.', '_' and '-', with a DNS name and `/` in front or \
                 not); {TERMS}"
            ));
        }
        if !is_label_value(value) {
            return Err(format!(
                "no label can have the value {value:?} (up to 63 of A-Z, a-z, 0-9, '.', '_' and '-'); {TERMS}"
            ));
        }
        Ok(term)
    }

    fn read(text: &str) -> Result<Self, &'static str> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name.trim(), Some(value.trim())),
            None => (text, None),
        };
        match (name, value) {
            ("", None) => Err("is empty"),
            ("", Some(_)) => Err("a value without a label in front of its `=`"),
            ("namespace", None | Some("")) => Err("a namespace without a name"),
            ("namespace", Some(value)) => Ok(Self::Namespace(value.into())),
            (name, Some(value)) if !name.starts_with('!') => Ok(Self::Is(name.into(), value.into())),
            (_, Some(_)) => Err("a label is absent (`!LABEL`) or has a value (`LABEL=VALUE`), not both"),
            (name, None) => match name.strip_prefix('!') {
                Some("") => Err("`!` without a label"),
                Some(name) => Ok(Self::Lacks(name.into())),
                None => Ok(Self::Has(name.into())),
            },
        }
    }

    fn holds(&self, client: &Client) -> bool {
        match self {
            Self::Has(label) => client.labels.contains_key(&**label),
            Self::Is(label, value) => client.labels.get(&**label).is_some_and(|has| **has == **value),
            Self::Lacks(label) => !client.labels.contains_key(&**label),
            Self::Namespace(name) => *client.namespace == **name,
        }
    }
}

/// Of selectors elsewhere (Kubernetes, Prometheus), where the term has one.
fn operator_of_others(term: &str) -> Option<&'static str> {
    let word = term.split_whitespace().nth(1).and_then(|word| word.split('(').next());
    let sign = ["!=", "==", "=~", "!~", "<", ">", "&&", "||"].into_iter().find(|sign| term.contains(sign));
    sign.or_else(|| ["in", "notin"].into_iter().find(|operator| word == Some(operator)))
}

impl fmt::Display for Views {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, rule) in self.rules.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { "; " })?;
            for (index, term) in rule.iter().enumerate() {
                f.write_str(if index == 0 { "" } else { "," })?;
                match term {
                    Term::Has(label) => f.write_str(label)?,
                    Term::Is(label, value) => write!(f, "{label}={value}")?,
                    Term::Lacks(label) => write!(f, "!{label}")?,
                    Term::Namespace(name) => write!(f, "namespace={name}")?,
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(namespace: &str, labels: &[(&str, &str)]) -> Client {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Client { namespace: namespace.into(), pod: "p".into(), labels: Arc::new(labels) }
    }

    #[test]
    fn one_rule_is_enough_and_its_terms_hold_together() {
        let views = Views::parse("namespace=shop; app=web, tier,!old ;").unwrap();
        assert_eq!(views.to_string(), "namespace=shop; app=web,tier,!old");
        assert_eq!(Views::parse(&views.to_string()).as_ref(), Ok(&views));
        assert!(views.admit(Some(&client("shop", &[]))));
        assert!(views.admit(Some(&client("x", &[("app", "web"), ("tier", "")]))));
        assert!(!views.admit(Some(&client("x", &[("app", "web")]))));
        assert!(!views.admit(Some(&client("x", &[("app", "web"), ("tier", "1"), ("old", "")]))));
        assert!(!views.admit(Some(&client("x", &[("app", "db"), ("tier", "1")]))));
        assert!(!views.admit(None), "nobody knows who asks");
    }

    #[test]
    fn labels_may_have_a_prefix_and_no_value() {
        for text in [
            "app.kubernetes.io/name=web.v1_2-x",
            "!example.org/old",
            "empty=",
            "in",
            "In=notin,namespace=a-1",
        ] {
            assert_eq!(Views::parse(text).map(|views| views.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("", "rule 1 of \"\": is empty"),
            ("a;;b", "rule 2"),
            ("a;b,", "is empty"),
            ("=x", "without a label"),
            ("namespace", "a namespace without a name"),
            ("!a=b", "not both"),
            ("!", "`!` without a label"),
            (
                "namespace!=shop",
                "rule 1 of \"namespace!=shop\": there is no operator `!=`; there are LABEL, !LABEL",
            ),
            (
                "tier; app==client",
                "rule 2 of \"tier; app==client\": there is no operator `==`; there are LABEL",
            ),
            (
                "app in (a,b)",
                "there is no operator `in`; there are LABEL, !LABEL, LABEL=VALUE and namespace=NAME",
            ),
            ("app notin(a)", "there is no operator `notin`"),
            ("app=~w.*", "there is no operator `=~`"),
            ("a && b", "there is no operator `&&`"),
            ("namespace=Shop_X", "no namespace can be \"Shop_X\"; write 1 to 63 of a-z, 0-9 and -"),
            ("namespace=a.b", "no namespace can be \"a.b\""),
            ("app web", "no label can be \"app web\""),
            ("!app*", "no label can be \"app*\""),
            ("a/b/c", "no label can be \"a/b/c\""),
            ("app=web*", "no label can have the value \"web*\""),
            ("app=a b", "no label can have the value \"a b\""),
        ] {
            let error = Views::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
