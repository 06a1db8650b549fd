// SPDX-License-Identifier: Apache-2.0
//! Names that stand for others, by who asks: links (`db` of a pod) and rewrites.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::custom::{SpecError, of};
use crate::entry::label;
use crate::folded::Apex;
use crate::syntax::{is_dns_label, is_plain_label};
use crate::{Client, Folded, Name, NameError, Views};

/// A link: who asks for `name` gets what `to` stands for. `{"name": "db", "to": "prod/postgres", "clients": "app=shop"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkSpec {
    /// As programs ask for it: one label (`db`), and the search path of the pod does not matter; with a final dot the whole
    /// name.
    pub name: String,
    /// A Service (`NAMESPACE/NAME`) or a domain name with a dot in it.
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
    /// Of a rewrite of all names below one of which `target` is another: those below `target` are where they are to be.
    inner: Option<Apex>,
}

/// Rewrites in a row: more than anyone means to chain.
const STEPS_MAX: usize = 8;

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
        let text = spec.name.as_str();
        let is_whole = text.ends_with('.');
        if !is_whole && name.labels() != 1 {
            let reason =
                format!("{text:?} is not one label; write one (`db`), or the whole name as `{text}.`");
            return Err(of("name")(reason));
        }
        if !text.trim_end_matches('.').split('.').all(is_plain_label) {
            let reason =
                format!("{text:?} has other than letters, digits, '-' and '_'; write a name such as `db`");
            return Err(of("name")(reason));
        }
        if !spec.to.is_empty() && !spec.to.contains(['.', '/']) {
            let to = &spec.to;
            let reason =
                format!("{to:?} says no namespace; write NAMESPACE/{to}, or a domain name with a dot in it");
            return Err(of("to")(reason));
        }
        let key = if is_whole { name.as_wire() } else { name.until_label(name.labels()) };
        let rule = rule(&spec.to, spec.clients.as_deref(), origin)?;
        self.links.entry(key.into()).or_default().push(rule);
        Ok(())
    }

    /// Adds a rewrite for the zone `origin`.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn add_rewrite(&mut self, spec: &RewriteSpec, origin: &Name) -> Result<(), SpecError> {
        let text = spec.from.strip_prefix("*.").unwrap_or(&spec.from);
        if text.contains('*') {
            let reason = format!(
                "{:?} has `*` where it does not count: it is the whole first label (`*.old.example`, all names below) or \
                 nowhere",
                spec.from
            );
            return Err(of("from")(reason));
        }
        let from = Name::parse(text).map_err(of("from"))?;
        if from == Name::root() {
            return Err(of("from")("is the root, and with it everything"));
        }
        let mut rule = rule(&spec.to, spec.clients.as_deref(), origin)?;
        if rule.target == from {
            return Err(of("to")("is the name itself"));
        }
        let is_below = spec.from.starts_with("*.");
        rule.inner = (is_below && rule.target.is_at_or_below(&from)).then(|| Apex::new(&rule.target));
        let (clients, to) = (rule.clients.clone(), rule.target.to_lower());
        let key: Box<[u8]> = from.to_lower().as_wire().into();
        let map = if is_below { &mut self.below } else { &mut self.exact };
        let rules = map.entry(key.clone()).or_default();
        rules.push(rule);
        let first = if is_below { Folded::join(b"\x01x", &key) } else { Some(Folded::from(&from)) };
        let next = if is_below { Folded::join(b"\x01x", to.as_wire()) } else { Some(Folded::from(&to)) };
        let leads_on = next.is_some_and(|next| self.rewritten(&next, |_| true).is_some());
        if leads_on && first.is_some_and(|first| self.has_no_end(&first, clients.as_ref())) {
            let map = if is_below { &mut self.below } else { &mut self.exact };
            let rest = map.get_mut(&key).and_then(|rules| {
                rules.pop();
                rules.len().checked_sub(1)
            });
            if rest.is_none() {
                map.remove(&key);
            }
            return Err(of("to")("leads in a circle with the rewrites before it"));
        }
        Ok(())
    }

    /// Whether a name is rewritten again and again by rules that count for all of `clients`, or, where these are everybody, for
    /// all whom some rule is for.
    fn has_no_end(&self, name: &Folded, clients: Option<&Views>) -> bool {
        let mut all = vec![clients];
        if clients.is_none() {
            for rule in self.exact.values().chain(self.below.values()).flatten() {
                if !all.contains(&rule.clients.as_ref()) {
                    all.push(rule.clients.as_ref());
                }
            }
        }
        all.into_iter().any(|clients| self.has_no_end_for(name.clone(), clients))
    }

    fn has_no_end_for(&self, mut name: Folded, clients: Option<&Views>) -> bool {
        for _ in 0..=STEPS_MAX {
            let counts = |rule: &Rule| rule.clients.is_none() || rule.clients.as_ref() == clients;
            name = match self.rewritten(&name, counts) {
                None => return false,
                Some(Target::Below(next)) => *next,
                Some(Target::Name(next)) => Folded::from(next),
            };
        }
        true
    }

    /// What the client calls by this name.
    pub(crate) fn link(&self, name: &Folded, client: Option<&Client>, services: &Apex) -> Option<&Name> {
        if self.links.is_empty() {
            return None;
        }
        let whole = name.until_label(name.labels());
        let relative = client.and_then(|client| relative(name, client, services)).unwrap_or(whole);
        let keys = [relative, whole, name.as_wire()];
        let usable = usable_by(client);
        keys.into_iter().find_map(|key| chosen(self.links.get(key)?, &usable))
    }

    /// What the name is to be for this client.
    pub(crate) fn rewrite(&self, name: &Folded, client: Option<&Client>) -> Option<Target<'_>> {
        self.rewritten(name, usable_by(client))
    }

    fn rewritten(&self, name: &Folded, usable: impl Fn(&Rule) -> bool) -> Option<Target<'_>> {
        if let Some(target) = self.exact.get(name.as_wire()).and_then(|rules| chosen(rules, &usable)) {
            return Some(Target::Name(target));
        }
        if self.below.is_empty() {
            return None;
        }
        let usable = |rule: &Rule| {
            let is_there = rule.inner.as_ref().is_some_and(|inner| name.labels_below(inner).is_some());
            !is_there && usable(rule)
        };
        for front in 1..=name.labels() {
            if let Some(target) =
                self.below.get(name.from_label(front)).and_then(|rules| chosen(rules, usable))
            {
                return Folded::join(name.until_label(front), target.to_lower().as_wire())
                    .map(|name| Target::Below(Box::new(name)));
            }
        }
        None
    }
}

fn rule(to: &str, clients: Option<&str>, origin: &Name) -> Result<Rule, SpecError> {
    if to.contains('*') {
        let reason = format!(
            "{to:?} has a `*`, which stands for nothing there: write the name without it; what stood in front of the old one \
             comes in front of this one"
        );
        return Err(of("to")(reason));
    }
    let target = match to.split_once('/') {
        None => Name::parse(to).map_err(of("to")),
        Some((namespace, service)) => service_name(namespace, service, origin).map_err(|reason| {
            of("to")(format!("{reason}; write NAMESPACE/NAME of a Service, or a domain name"))
        }),
    }?;
    if target == Name::root() {
        return Err(of("to")("is the root"));
    }
    let clients = clients.map(Views::parse).transpose().map_err(of("clients"))?;
    Ok(Rule { clients, target, inner: None })
}

fn service_name(namespace: &str, service: &str, origin: &Name) -> Result<Name, String> {
    for text in [namespace, service] {
        let text = label(text).map_err(|error| error.to_string())?;
        if !is_dns_label(&text.to_ascii_lowercase()) {
            return Err(format!(
                "{text:?} is no name of a namespace or Service (a-z, 0-9 and - between them)"
            ));
        }
    }
    let name = || origin.child("svc")?.child(namespace)?.child(service);
    name().map_err(|error: NameError| error.to_string())
}

fn usable_by(client: Option<&Client>) -> impl Fn(&Rule) -> bool {
    move |rule| rule.clients.as_ref().is_none_or(|views| views.admit(client))
}

fn chosen(rules: &[Rule], usable: impl Fn(&Rule) -> bool) -> Option<&Name> {
    rules.iter().find(|rule| usable(rule)).map(|rule| &rule.target)
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
        for (name, to, expected) in [
            ("x.y", "a/b", "name: \"x.y\" is not one label; write one (`db`), or the whole name as `x.y.`"),
            ("*", "a/b", "name: \"*\" has other than letters"),
            ("*.x.", "a/b", "name: \"*.x.\" has other than letters"),
            ("d b", "a/b", "name: \"d b\" has other than letters"),
            ("db", "a/b.c", "to: \"b.c\" has a dot in it and is not one label; write NAMESPACE/NAME"),
            ("db", "a/b/c", "to: \"b/c\" is no name of a namespace or Service"),
            ("db", "a/", "to: \"\" is no name of a namespace or Service"),
            ("db", "/b", "to: \"\" is no name of a namespace or Service"),
            ("db", "a/b_c", "to: \"b_c\" is no name of a namespace or Service"),
            ("db", "web", "to: \"web\" says no namespace; write NAMESPACE/web, or a domain name"),
            (
                "db",
                "*.b.org",
                "to: \"*.b.org\" has a `*`, which stands for nothing there: write the name without it",
            ),
        ] {
            let error = link(name, to, None);
            assert!(error.starts_with(expected), "{name} {to}: {error}");
        }
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
        for (from, to, expected) in [
            (
                "a.*.x",
                "b.org",
                "from: \"a.*.x\" has `*` where it does not count: it is the whole first label",
            ),
            ("*a.x", "b.org", "from: \"*a.x\" has `*` where"),
            ("*.*.x", "b.org", "from: \"*.*.x\" has `*` where"),
            ("*", "b.org", "from: \"*\" has `*` where"),
            (
                "*.a.org",
                "*.b.org",
                "to: \"*.b.org\" has a `*`, which stands for nothing there: write the name without",
            ),
            ("a.org", "x/y/z", "to: \"y/z\" is no name of a namespace or Service"),
        ] {
            let error = rewrite(from, to);
            assert!(error.starts_with(expected), "{from} {to}: {error}");
        }
    }

    #[test]
    fn rewrites_that_lead_to_each_other_are_refused() {
        let origin = Name::parse("cluster.local").unwrap();
        let add = |rules: &mut Rules, (from, to, clients): (&str, &str, Option<&str>)| {
            let [from, to] = [from, to].map(str::to_owned);
            rules.add_rewrite(&RewriteSpec { from, to, clients: clients.map(str::to_owned) }, &origin)
        };
        for (first, second) in [
            (("a.org", "b.org", None), ("b.org", "A.org", None)),
            (("*.a.org", "b.org", None), ("*.b.org", "a.org", None)),
            (("*.a.org", "c.b.org", None), ("*.b.org", "a.org", None)),
            (("a.org", "b.org", None), ("b.org", "a.org", Some("app=web"))),
            (("b.org", "a.org", Some("app=web")), ("a.org", "b.org", None)),
        ] {
            let mut rules = Rules::default();
            add(&mut rules, first).unwrap();
            let before = rules.clone();
            let error = add(&mut rules, second).unwrap_err().to_string();
            assert_eq!(error, "to: leads in a circle with the rewrites before it", "{second:?}");
            assert_eq!(rules, before, "what is refused leaves no trace");
        }
        for (first, second) in [
            (("a.org", "b.org", Some("app=web")), ("b.org", "a.org", Some("app=db"))),
            (("*.a.org", "x.a.org", None), ("x.a.org", "b.org", None)),
            (("*.a.b.org", "b.org", None), ("*.c.org", "a.b.org", None)),
        ] {
            let mut rules = Rules::default();
            add(&mut rules, first).unwrap();
            add(&mut rules, second).unwrap();
        }
    }
}
