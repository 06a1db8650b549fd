// SPDX-License-Identifier: Apache-2.0
//! Faults that somebody injects into connections to a Service, to see how its clients bear them: `weft.dev/fault`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ebpf_abi::service::{
    SERVICE_FAULT_CLIENTS, SERVICE_FAULT_DROP, SERVICE_FAULT_RESET, SERVICE_SOURCE_RANGES,
};
use ebpf_abi::{SCOPE_DSR, SCOPE_INTERNAL};
use ipnet::IpNet;
use serde::Serialize;

use crate::frontends::FrontendWish;
use crate::{NodeView, Problem, ServiceName};

/// The annotation.
pub(crate) const ANNOTATION: &str = "weft.dev/fault";
/// More labels than tell pods apart.
const MAX_CLIENT_LABELS: usize = 16;

/// A fault to be injected into some of the connections that begin, and into some of the flows and datagrams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// What happens.
    pub kind: FaultKind,
    /// To how many of a hundred, 1 to 100.
    pub percent: u8,
    /// Only to those of pods, of any namespace, that have all of these labels, with this value where there is one. Empty:
    /// to everybody's.
    pub clients: BTreeMap<String, Option<String>>,
}

/// What happens to a connection with a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FaultKind {
    /// Nothing answers.
    Drop,
    /// It is refused.
    Reset,
}

impl Fault {
    /// From `reset|drop[,percent=N][,client=LABEL[=VALUE]]…`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (mut kind, mut percent, mut clients) = (None, None, BTreeMap::new());
        for item in text.split(',').map(str::trim) {
            let found = match item.split_once('=') {
                None if item == "drop" => FaultKind::Drop,
                None if item == "reset" => FaultKind::Reset,
                Some(("delay", time)) => return Err(no_delay(time)),
                Some(("percent", number)) => {
                    let number = number.parse().ok().filter(|percent| (1..=100).contains(percent));
                    let number = number.ok_or_else(|| format!("{item:?}: percent is not in 1..=100"))?;
                    if percent.replace(number).is_some() {
                        return Err("more than one percent".to_owned());
                    }
                    continue;
                }
                Some(("client", label)) => {
                    let (key, value) = label.split_once('=').map_or((label, None), |(k, v)| (k, Some(v)));
                    if key.is_empty() {
                        return Err(format!("{item:?} is not client=LABEL or client=LABEL=VALUE"));
                    }
                    if clients.insert(key.to_owned(), value.map(str::to_owned)).is_some() {
                        return Err(format!("client={key} is given twice"));
                    }
                    continue;
                }
                _ => {
                    return Err(format!(
                        "{item:?} is not one of reset, drop, percent=N, client=LABEL, client=LABEL=VALUE"
                    ));
                }
            };
            if kind.replace(found).is_some() {
                return Err("more than one of reset and drop".to_owned());
            }
        }
        if clients.len() > MAX_CLIENT_LABELS {
            return Err(format!(
                "{} labels of clients; at most {MAX_CLIENT_LABELS} are allowed",
                clients.len()
            ));
        }
        let kind = kind.ok_or_else(|| "one of reset and drop is needed".to_owned())?;
        Ok(Self { kind, percent: percent.unwrap_or(100), clients })
    }

    /// Whether it befalls a pod with these labels.
    #[must_use]
    pub fn is_for(&self, labels: &BTreeMap<String, String>) -> bool {
        let has = |(key, value): (&String, &Option<String>)| {
            labels.get(key).is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
        };
        self.clients.iter().all(has)
    }
}

/// As it is written.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            FaultKind::Drop => "drop",
            FaultKind::Reset => "reset",
        })?;
        write!(f, ",percent={}", self.percent)?;
        for (key, value) in &self.clients {
            write!(f, ",client={key}")?;
            if let Some(value) = value {
                write!(f, "={value}")?;
            }
        }
        Ok(())
    }
}

fn no_delay(time: &str) -> String {
    format!(
        "delay={time} is not served yet: what is sent later has to wait in an fq queue with earliest departure times, and \
         the datapath sets up none; use reset or drop"
    )
}

/// A fault as frontends of this node have it.
#[derive(Debug)]
pub(crate) struct Injection {
    flags: u32,
    percent: u8,
    /// `None`: everybody.
    clients: Option<Vec<IpNet>>,
}

impl Injection {
    /// Where this node's configuration does not allow it, that is a problem of the Service, and all is as without.
    pub(crate) fn new(
        fault: &Fault,
        name: &ServiceName,
        view: &NodeView,
        problems: &mut Vec<Problem>,
    ) -> Option<Self> {
        if !view.fault_injection_enabled {
            problems.push(Problem {
                object: format!("Service {name}"),
                field: crate::extras::path(ANNOTATION),
                reason: format!("{fault} has no effect: the option fault-injection is off"),
            });
            return None;
        }
        let mut flags = match fault.kind {
            FaultKind::Drop => SERVICE_FAULT_DROP,
            FaultKind::Reset => SERVICE_FAULT_RESET,
        };
        let clients = (!fault.clients.is_empty()).then(|| {
            flags |= SERVICE_FAULT_CLIENTS;
            let pods = view.pods.iter().filter(|(_, labels)| fault.is_for(labels));
            pods.map(|(ip, _): (&IpAddr, _)| IpNet::from(*ip)).collect()
        });
        Some(Self { flags, percent: fault.percent, clients })
    }

    /// Pods' labels are known where the pods are: there they ask at the frontends of the inside. What was wrapped for direct
    /// server return has met its fate at the node that was asked.
    pub(crate) fn inject(&self, scope: u8, wish: &mut FrontendWish) {
        match &self.clients {
            _ if scope == SCOPE_DSR => return,
            Some(_) if scope != SCOPE_INTERNAL => return,
            // A frontend has one list of addresses, and who may ask goes before.
            Some(_) if wish.flags & SERVICE_SOURCE_RANGES != 0 => return,
            Some(clients) => wish.ranges.clone_from(clients),
            None => {}
        }
        wish.flags |= self.flags;
        wish.fault_percent = self.percent;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_written_alike() {
        for (text, whole) in [
            ("reset", "reset,percent=100"),
            ("percent=10, drop", "drop,percent=10"),
            ("drop,client=app=web,client=canary,percent=1", "drop,percent=1,client=app=web,client=canary"),
            ("reset,client=weft.dev/name=", "reset,percent=100,client=weft.dev/name="),
        ] {
            let fault = Fault::parse(text).unwrap();
            assert_eq!(fault.to_string(), whole);
            assert_eq!(Fault::parse(whole), Ok(fault));
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (text, named) in [
            ("", "is not one of"),
            ("percent=10", "is needed"),
            ("drop,reset", "more than one of"),
            ("drop,percent=0", "1..=100"),
            ("drop,percent=101", "1..=100"),
            ("drop,percent=1,percent=2", "more than one percent"),
            ("drop,client=", "client=LABEL"),
            ("drop,client==x", "client=LABEL"),
            ("drop,client=a,client=a=b", "given twice"),
            ("explode", "\"explode\" is not one of"),
            ("delay=50ms,percent=10", "delay=50ms is not served yet"),
        ] {
            let error = Fault::parse(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn who_may_ask_goes_before_whom_a_fault_befalls() {
        let injection = Injection { flags: SERVICE_FAULT_DROP, percent: 100, clients: Some(Vec::new()) };
        let range: IpNet = "192.0.2.0/24".parse().unwrap();
        for (flags, befallen) in [(SERVICE_SOURCE_RANGES, 0), (0, 100)] {
            let mut wish = FrontendWish { set: None, flags, fault_percent: 0, ranges: vec![range] };
            injection.inject(SCOPE_INTERNAL, &mut wish);
            assert_eq!((wish.fault_percent, wish.ranges.is_empty()), (befallen, befallen > 0));
        }
    }

    #[test]
    fn a_client_has_all_of_the_labels() {
        let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let fault = Fault::parse("drop,client=app=web,client=canary").unwrap();
        assert!(fault.is_for(&labels(&[("app", "web"), ("canary", "")])));
        assert!(!fault.is_for(&labels(&[("app", "web")])));
        assert!(!fault.is_for(&labels(&[("app", "db"), ("canary", "yes")])));
        assert!(Fault::parse("drop").unwrap().is_for(&labels(&[])), "everybody");
    }
}
