// SPDX-License-Identifier: Apache-2.0

//! Forwarded pod traffic on hosts whose iptables FORWARD policy is DROP (Docker, many firewalls set it so).
//!
//! A packet that our own table accepts is still dropped by that policy, so accept rules go into the FORWARD chain
//! itself, each with the comment `weft`: the ownership mark. Through the host's own `iptables`, because only that knows
//! which of its two backends the host uses.

use std::{io, path::PathBuf};

use ipnet::IpNet;

use crate::process;

/// The comment on our rules.
pub const COMMENT: &str = "weft";
const CHAIN: &str = "FORWARD";
/// Waits this many seconds for iptables' lock.
const LOCK_WAIT_SECS: &str = "5";

/// The FORWARD chain of one address family.
#[derive(Clone, Debug)]
pub struct Forward {
    program: PathBuf,
    is_ipv6: bool,
}

/// What [`Forward::ensure`] found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// The policy drops; our rules accept pod traffic, and did before.
    Accepted,
    /// The policy drops; rules of ours were put in now.
    Inserted,
    /// The policy accepts: nothing is needed, and rules of ours were removed.
    NotNeeded,
}

/// A failed iptables operation.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// iptables refused.
    #[error("{} {arguments}: {message}", program.display())]
    Refused {
        /// The program.
        program: PathBuf,
        /// Its arguments.
        arguments: String,
        /// Its stderr.
        message: String,
    },
    /// It could not be run.
    #[error("cannot run {}: {source}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl Forward {
    /// `iptables` of this host; `None` where it is not installed, and then nobody can have set its policy.
    pub fn find() -> Option<Self> {
        process::find("iptables").map(Self::with_program)
    }

    /// The same for IPv6: `ip6tables`.
    pub fn find_v6() -> Option<Self> {
        process::find("ip6tables").map(|program| Self { program, is_ipv6: true })
    }

    /// Uses the iptables at this path, for IPv4.
    pub fn with_program(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), is_ipv6: false }
    }

    /// Makes forwarded traffic from and to the pod CIDRs pass. Idempotent; rules of ours for other CIDRs go.
    pub async fn ensure(&self, pod_cidrs: &[IpNet]) -> Result<Forwarding, ForwardError> {
        let listing = self.iptables(&["-S", CHAIN]).await?;
        let drops = listing.lines().any(|line| {
            matches!(line.split_whitespace().collect::<Vec<_>>()[..], ["-P", CHAIN, policy] if policy != "ACCEPT")
        });
        let wanted: Vec<Rule> = pod_cidrs
            .iter()
            .filter(|cidr| drops && cidr.addr().is_ipv6() == self.is_ipv6)
            .flat_map(|cidr| {
                ["-s", "-d"].map(|side| Rule { side: side.to_owned(), cidr: cidr.trunc().to_string() })
            })
            .collect();
        let mut present = own_rules(&listing);
        let mut outcome = if drops { Forwarding::Accepted } else { Forwarding::NotNeeded };
        for rule in &wanted {
            match present.iter().position(|other| other == rule) {
                Some(place) => drop(present.remove(place)),
                None => {
                    self.change("-I", rule).await?;
                    outcome = Forwarding::Inserted;
                }
            }
        }
        for stale in present {
            self.change("-D", &stale).await?;
        }
        Ok(outcome)
    }

    /// Removes all rules of ours; absent is fine.
    pub async fn remove(&self) -> Result<(), ForwardError> {
        for rule in own_rules(&self.iptables(&["-S", CHAIN]).await?) {
            self.change("-D", &rule).await?;
        }
        Ok(())
    }

    async fn change(&self, command: &str, rule: &Rule) -> Result<(), ForwardError> {
        let matching = ["-m", "comment", "--comment", COMMENT, "-j", "ACCEPT"];
        let arguments: Vec<&str> =
            [command, CHAIN, &rule.side, &rule.cidr].into_iter().chain(matching).collect();
        self.iptables(&arguments).await.map(drop)
    }

    async fn iptables(&self, arguments: &[&str]) -> Result<String, ForwardError> {
        let all: Vec<&str> = ["-w", LOCK_WAIT_SECS].iter().chain(arguments).copied().collect();
        let output = process::run(&self.program, &all, "")
            .await
            .map_err(|source| ForwardError::Run { program: self.program.clone(), source })?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let message = output.stderr.trim().to_owned();
        Err(ForwardError::Refused { program: self.program.clone(), arguments: all.join(" "), message })
    }
}

/// An accept rule of ours: one side (`-s` or `-d`) and its CIDR.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    side: String,
    cidr: String,
}

/// Our rules in the output of `iptables -S FORWARD`. A rule with our comment in another shape is not ours.
fn own_rules(listing: &str) -> Vec<Rule> {
    let parse = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().map(|word| word.trim_matches('"')).collect();
        match words[..] {
            [
                "-A",
                CHAIN,
                side @ ("-s" | "-d"),
                cidr,
                "-m",
                "comment",
                "--comment",
                COMMENT,
                "-j",
                "ACCEPT",
            ] => Some(Rule { side: side.to_owned(), cidr: cidr.to_owned() }),
            _ => None,
        }
    };
    listing.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rules_in_our_exact_shape_are_ours() {
        let listing = "-P FORWARD DROP\n\
            -A FORWARD -s 10.244.0.0/16 -m comment --comment weft -j ACCEPT\n\
            -A FORWARD -d 10.244.0.0/16 -m comment --comment \"weft\" -j ACCEPT\n\
            -A FORWARD -d 10.0.0.0/8 -m comment --comment \"weft like\" -j ACCEPT\n\
            -A FORWARD -i eth1 -m comment --comment weft -j ACCEPT\n";
        let rules = own_rules(listing);
        assert_eq!(rules.len(), 2, "{rules:?}");
        assert_eq!((rules[0].side.as_str(), rules[1].side.as_str()), ("-s", "-d"));
    }
}
