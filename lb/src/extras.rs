// SPDX-License-Identifier: Apache-2.0
//! Extras on a Service: annotations under `weft.dev/`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::fault::Fault;
use crate::kubernetes::ANNOTATION_TOPOLOGY_MODE;
use crate::shape::Mismatch;
use crate::{IgnoredField, Service, fault};

const PREFIX: &str = "weft.dev/";

/// Every extra that has a name; see [`Extras`] for those that something acts upon here.
const KNOWN: &[&str] = &[
    "algorithm",
    "dns-aliases",
    "dns-external",
    "dns-views",
    "fault",
    "forwarding",
    "health-check",
    "outlier-detection",
    "slow-start",
    "weights",
];
/// Those of them without effect yet.
const WITHOUT_EFFECT: &[&str] = &["health-check", "outlier-detection"];

/// Annotations of others that change how a proxy treats a Service: named, because someone relies on them.
const FOREIGN_PREFIXES: &[&str] = &["service.kubernetes.io/", "service.alpha.kubernetes.io/"];

/// Largest weight: products with it fit 32 bits.
const MAX_WEIGHT: u32 = 10_000;
/// More named backends or Services than one person means to write by hand.
const MAX_WEIGHTS: usize = 256;
/// Longest slow start: beyond that somebody mixed up the unit.
const MAX_DURATION: Duration = Duration::from_secs(3_600);

/// What the annotations of a Service ask for beyond Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Extras {
    /// `weft.dev/algorithm`.
    pub algorithm: Algorithm,
    /// `weft.dev/fault`; without effect where the configuration does not allow it.
    pub fault: Option<Fault>,
    /// `weft.dev/forwarding`.
    pub forwarding: Forwarding,
    /// `weft.dev/slow-start`: for how long a backend that comes up gets less than its share.
    pub slow_start: Option<Duration>,
    /// `weft.dev/weights`: names of backends (pod, hostname or address) or of Services of the namespace, with 0 to
    /// 10,000 each; empty: all alike.
    pub weights: Vec<(String, u32)>,
}

/// How a backend is chosen for a new connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// Of two random ones that with fewer open connections of this node.
    LeastConnections,
    /// By a table that maps the hash of the connection to a backend, the same on every node.
    Maglev,
    /// Any, by weight.
    #[default]
    Random,
}

/// How packets from outside reach a backend of another node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Forwarding {
    /// As they are; the backend's node answers the client itself.
    Dsr,
    /// With the node's address as source.
    #[default]
    Snat,
}

impl Extras {
    /// Reads the annotations of a Service. What is wrong is named, and there `last` stands.
    pub(crate) fn parse(annotations: &BTreeMap<String, String>, last: &Self) -> (Self, Vec<Mismatch>) {
        let (mut extras, mut wrong) = (Self::default(), Vec::new());
        for (key, text) in annotations {
            let Some(name) = key.strip_prefix(PREFIX) else { continue };
            let read = match name {
                "algorithm" => algorithm(text).map(|found| extras.algorithm = found),
                "fault" => Fault::parse(text).map(|found| extras.fault = Some(found)),
                "forwarding" => forwarding(text).map(|found| extras.forwarding = found),
                "slow-start" => duration(text).map(|found| extras.slow_start = Some(found)),
                "weights" => weights(text).map(|found| extras.weights = found),
                // The zone and the checker read their own.
                "dns-aliases" | "dns-external" | "dns-views" | "health-check" | "outlier-detection" => Ok(()),
                _ => Err(format!("no such extra; under weft.dev/ there are: {}", KNOWN.join(", "))),
            };
            let Err(reason) = read else { continue };
            wrong.push(Mismatch { field: path(key), reason });
            match name {
                "algorithm" => extras.algorithm = last.algorithm,
                "fault" => extras.fault.clone_from(&last.fault),
                "forwarding" => extras.forwarding = last.forwarding,
                "slow-start" => extras.slow_start = last.slow_start,
                "weights" => extras.weights.clone_from(&last.weights),
                _ => {}
            }
        }
        (extras, wrong)
    }
}

/// Checks the annotations of an object that somebody applies, and names those without effect. A name under our prefix
/// that we do not know is an error, since a typing mistake there would otherwise go unnoticed. Extras belong on Services.
pub(crate) fn check(
    annotations: &BTreeMap<String, String>,
    is_service: bool,
    ignored: &mut Vec<IgnoredField>,
) -> Result<(), Mismatch> {
    if is_service && let Some(first) = Extras::parse(annotations, &Extras::default()).1.into_iter().next() {
        return Err(first);
    }
    for key in annotations.keys() {
        match key.strip_prefix(PREFIX) {
            Some(_) if !is_service => {
                let reason = "extras under weft.dev/ belong on a Service".to_owned();
                return Err(Mismatch { field: path(key), reason });
            }
            Some(extra) if WITHOUT_EFFECT.contains(&extra) => ignored.push(IgnoredField { path: path(key) }),
            Some(_) => {}
            // What it asks for comes in the hints of the EndpointSlices.
            None if key == ANNOTATION_TOPOLOGY_MODE => {}
            None if FOREIGN_PREFIXES.iter().any(|prefix| key.starts_with(prefix)) => {
                ignored.push(IgnoredField { path: path(key) });
            }
            None => {}
        }
    }
    Ok(())
}

pub(crate) fn path(key: &str) -> String {
    format!("metadata.annotations[{key:?}]")
}

/// The annotation of a Service that asks for faults, which not every configuration allows.
#[must_use]
pub fn fault_field(service: &Service) -> Option<IgnoredField> {
    let asks = service.metadata.annotations.contains_key(fault::ANNOTATION);
    asks.then(|| IgnoredField { path: path(fault::ANNOTATION) })
}

fn algorithm(text: &str) -> Result<Algorithm, String> {
    match text {
        "least-connections" => Ok(Algorithm::LeastConnections),
        "maglev" => Ok(Algorithm::Maglev),
        "random" => Ok(Algorithm::Random),
        "ewma" => Err("ewma is not available yet; use least-connections".to_owned()),
        _ => Err(format!("{text:?} is not one of random, maglev, least-connections")),
    }
}

fn forwarding(text: &str) -> Result<Forwarding, String> {
    match text {
        "dsr" => Ok(Forwarding::Dsr),
        "snat" => Ok(Forwarding::Snat),
        _ => Err(format!("{text:?} is not one of snat, dsr")),
    }
}

fn weights(text: &str) -> Result<Vec<(String, u32)>, String> {
    let mut weights: Vec<(String, u32)> = Vec::new();
    for item in text.split(',').map(str::trim) {
        let Some((name, weight)) = item.rsplit_once('=') else {
            return Err(format!("{item:?} is not NAME=WEIGHT"));
        };
        let (name, weight) = (name.trim(), weight.trim());
        let Some(weight) = weight.parse().ok().filter(|weight| *weight <= MAX_WEIGHT) else {
            return Err(format!("{weight:?}, the weight of {name:?}, is not in 0..={MAX_WEIGHT}"));
        };
        if name.is_empty() || weights.iter().any(|(known, _)| known == name) {
            return Err(format!("{name:?} is missing or given twice"));
        }
        weights.push((name.to_owned(), weight));
    }
    if weights.len() > MAX_WEIGHTS {
        return Err(format!("{} names; at most {MAX_WEIGHTS} are allowed", weights.len()));
    }
    if weights.iter().all(|(_, weight)| *weight == 0) {
        return Err("all weights are 0: nothing would get a connection".to_owned());
    }
    Ok(weights)
}

fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _ => return Err(format!("{text:?} is not a duration such as 500ms, 30s or 2m")),
    };
    let duration = number.parse::<u32>().ok().map(|n| Duration::from_millis(u64::from(n) * unit_ms));
    match duration {
        Some(duration) if !duration.is_zero() && duration <= MAX_DURATION => Ok(duration),
        _ => Err(format!("{text:?} is not between 1ms and 60m")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FaultKind;

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| (format!("{PREFIX}{key}"), (*value).to_owned())).collect()
    }

    #[test]
    fn every_extra_reads_back() {
        let given = annotations(&[
            ("algorithm", "maglev"),
            ("fault", "drop,percent=10,client=app=web"),
            ("forwarding", "dsr"),
            ("slow-start", "30s"),
            ("weights", "web-1=90, web-2=10"),
        ]);
        let (extras, wrong) = Extras::parse(&given, &Extras::default());
        assert!(wrong.is_empty());
        let fault = Fault {
            kind: FaultKind::Drop,
            percent: 10,
            clients: [("app".into(), Some("web".into()))].into(),
        };
        let expected = Extras {
            algorithm: Algorithm::Maglev,
            fault: Some(fault),
            forwarding: Forwarding::Dsr,
            slow_start: Some(Duration::from_secs(30)),
            weights: vec![("web-1".into(), 90), ("web-2".into(), 10)],
        };
        assert_eq!(extras, expected);
    }

    #[test]
    fn what_is_wrong_leaves_the_last_good_value() {
        let fault = Fault::parse("reset,percent=1").ok();
        let last = Extras { fault, forwarding: Forwarding::Dsr, ..Extras::default() };
        let given = annotations(&[
            ("algorithm", "maglev"),
            ("fault", "delay=1s"),
            ("forwarding", "magic"),
            ("weights", "a=1,a=2"),
        ]);
        let (extras, wrong) = Extras::parse(&given, &last);
        assert_eq!(extras.fault, last.fault);
        assert_eq!((extras.forwarding, extras.algorithm), (Forwarding::Dsr, Algorithm::Maglev));
        let fields: Vec<&str> = wrong.iter().map(|w| w.field.as_str()).collect();
        let named = ["fault", "forwarding", "weights"];
        assert_eq!(fields, named.map(|name| format!("metadata.annotations[\"weft.dev/{name}\"]")));
        // Taken away is not wrong.
        assert_eq!(Extras::parse(&annotations(&[]), &last).0, Extras::default());
    }

    #[test]
    fn numbers_out_of_range_and_half_sentences_are_wrong() {
        for text in ["", "a", "a=", "=1", "a=10001", "a=-1", "a=0,b=0"] {
            assert!(weights(text).is_err(), "{text}");
        }
        for text in ["", "30", "0s", "61m", "99999999999s", "1h", "s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
