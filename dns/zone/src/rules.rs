// SPDX-License-Identifier: Apache-2.0
//! Names that stand for others, by who asks: links (`db` of a pod) and rewrites.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::custom::{SpecError, of};
use crate::entry::label;
use crate::folded::Apex;
use crate::{Client, Folded, Name, Views};

/// A link: who asks for `name` gets what `to` stands for. `{"name": "db", "to": "prod/postgres", "clients": "app=shop"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkSpec {
    /// As programs ask for it: `db`, and the search path of the pod does not matter; with a final dot the whole name.
    pub name: String,
    /// A Service (`NAMESPACE/NAME`) or a domain name.
    pub to: String,
    /// Who gets it, as in `weft.dev/dns-views`; everybody without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<String>,
}

/// A rewrite: `{"from": "*.old.example.com", "to": "new.example.com"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewriteSpec {
    /// A domain name; with `*.` in front all names below it, whose own labels then stand in front of `to`.
    pub from: String,
    /// A Service (`NAMESPACE/NAME`) or a domain name.
    pub to: String,
    /// For whom, as in `weft.dev/dns-views`; for everybody without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<String>,
}

/// All links and rewrites. Of several for one name the first that the client may use counts; links come before rewrites.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// By labels in wire form: without an end when relative.
    links: BTreeMap<Box<[u8]>, Vec<Rule>>,
    /// By name in wire form.
    exact: BTreeMap<Box<[u8]>, Vec<Rule>>,
    /// By the name that all of them lie below, in wire form.
    below: BTreeMap<Box<[u8]>, Vec<Rule>>,
}

#[derive(Clone, Debug, PartialEq)]
struct Rule {
    clients: Option<Views>,
    target: Name,
}

/// Where a question is to go instead.
pub(crate) enum Target<'r> {
    Below(Box<Folded>),
    Name(&'r Name),
}

impl Rules {
    /// Adds a link for the zone `origin`.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn add_link(&mut self, spec: &LinkSpec, origin: &Name) -> Result<(), SpecError> {
        let name = Folded::from(&Name::parse(&spec.name).map_err(of("name"))?);
        if name.labels() == 0 {
            return Err(of("name")("is the root"));
        }
        let key = if spec.name.ends_with('.') { name.as_wire() } else { name.until_label(name.labels()) };
        let rule = rule(&spec.to, spec.clients.as_deref(), origin)?;
        self.links.entry(key.into()).or_default().push(rule);
        Ok(())
    }

    /// Adds a rewrite for the zone `origin`.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn add_rewrite(&mut self, spec: &RewriteSpec, origin: &Name) -> Result<(), SpecError> {
        let (text, map) = match spec.from.strip_prefix("*.") {
            Some(text) => (text, &mut self.below),
            None => (spec.from.as_str(), &mut self.exact),
        };
        let from = Name::parse(text).map_err(of("from"))?;
        if from == Name::root() {
            return Err(of("from")("is the root, and with it everything"));
        }
        let rule = rule(&spec.to, spec.clients.as_deref(), origin)?;
        if rule.target == from {
            return Err(of("to")("is the name itself"));
        }
        map.entry(from.to_lower().as_wire().into()).or_default().push(rule);
        Ok(())
    }

    /// What the client calls by this name.
    pub(crate) fn link(&self, name: &Folded, client: Option<&Client>, services: &Apex) -> Option<&Name> {
        if self.links.is_empty() {
            return None;
        }
        let whole = name.until_label(name.labels());
        let relative = client.and_then(|client| relative(name, client, services)).unwrap_or(whole);
        let keys = [relative, whole, name.as_wire()];
        keys.into_iter().find_map(|key| chosen(self.links.get(key)?, client))
    }

    /// What the name is to be for this client.
    pub(crate) fn rewrite(&self, name: &Folded, client: Option<&Client>) -> Option<Target<'_>> {
        if let Some(target) = self.exact.get(name.as_wire()).and_then(|rules| chosen(rules, client)) {
            return Some(Target::Name(target));
        }
        if self.below.is_empty() {
            return None;
        }
        for front in 1..=name.labels() {
            if let Some(target) =
                self.below.get(name.from_label(front)).and_then(|rules| chosen(rules, client))
            {
                return Folded::join(name.until_label(front), target.to_lower().as_wire())
                    .map(|name| Target::Below(Box::new(name)));
            }
        }
        None
    }
}

fn rule(to: &str, clients: Option<&str>, origin: &Name) -> Result<Rule, SpecError> {
    let target = match to.split_once('/') {
        None => Name::parse(to),
        Some((namespace, service)) => {
            let service = || origin.child("svc")?.child(label(namespace)?)?.child(label(service)?);
            service()
        }
    };
    let target = target.map_err(of("to"))?;
    if target == Name::root() {
        return Err(of("to")("is the root"));
    }
    let clients = clients.map(Views::parse).transpose().map_err(of("clients"))?;
    Ok(Rule { clients, target })
}

fn chosen<'r>(rules: &'r [Rule], client: Option<&Client>) -> Option<&'r Name> {
    let usable = |rule: &&Rule| rule.clients.as_ref().is_none_or(|views| views.admit(client));
    rules.iter().find(usable).map(|rule| &rule.target)
}

/// The labels that the program asked for, where the pod's search path put the first domain behind it.
fn relative<'n>(name: &'n Folded, client: &Client, services: &Apex) -> Option<&'n [u8]> {
    let front = name.labels_below(services)?.checked_sub(1)?;
    name.label(front).eq_ignore_ascii_case(client.namespace.as_bytes()).then(|| name.until_label(front))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wrong_field_is_named() {
        let origin = Name::parse("cluster.local").unwrap();
        let link = |name: &str, to: &str, clients: Option<&str>| {
            let [name, to] = [name, to].map(str::to_owned);
            let spec = LinkSpec { name, to, clients: clients.map(str::to_owned) };
            Rules::default().add_link(&spec, &origin).unwrap_err().to_string()
        };
        assert_eq!(link("", "a", None), "name: is the root");
        assert_eq!(link("db", "", None), "to: is the root");
        assert_eq!(link("db", "a/b.c", None), "to: \"b.c\" has a dot in it and is not one label");
        assert!(link("db", "a/b", Some(";")).starts_with("clients: rule 1"));
        let rewrite = |from: &str, to: &str| {
            let [from, to] = [from, to].map(str::to_owned);
            Rules::default()
                .add_rewrite(&RewriteSpec { from, to, clients: None }, &origin)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(rewrite("*.", "a"), "from: is the root, and with it everything");
        assert_eq!(rewrite("a.b", "A.b."), "to: is the name itself");
    }
}
