// SPDX-License-Identifier: Apache-2.0
//! `netd --check`: what a start would find wrong with a configuration whose values are fine by themselves. Files are read;
//! nothing is opened that is the kernel's or the store's.

use anyhow::{Context as _, Result};

use crate::config::Config;
use crate::dropin::DropIn;
use crate::view::View;
use crate::zone::ZoneKeeper;
use crate::{daemon, dns};

/// Everything that is wrong; a start would end at the first, or leave a name out.
pub(crate) fn wrong(config: &Config) -> Vec<String> {
    let found =
        [store(config), drop_in(config), cgroup_root(config)].into_iter().chain(dns::check_files(config));
    let errors = found.filter_map(Result::err).map(|error| format!("{error:#}"));
    errors.chain(names(config)).collect()
}

/// URLs, and the files with certificates; etcd is not asked.
fn store(config: &Config) -> Result<()> {
    let Some(etcd) = daemon::etcd_config(&config.store) else { return Ok(()) };
    etcd.check().context("the store's configuration cannot work")
}

fn drop_in(config: &Config) -> Result<()> {
    config.drop_in.as_ref().map(DropIn::new).transpose()?;
    Ok(())
}

fn cgroup_root(config: &Config) -> Result<()> {
    let Some(path) = &config.cgroup_root else { return Ok(()) };
    std::fs::metadata(path).with_context(|| format!("cgroup-root: {}", path.display()))?;
    Ok(())
}

/// Records, links and rewrites of the file: a start goes on without those that are wrong, and `weft doctor` tells them.
fn names(config: &Config) -> Vec<String> {
    let mut keeper = ZoneKeeper::new(&config.dns.zone);
    if let Err(error) = keeper.update(&View::default(), &[]) {
        return vec![error.to_string()];
    }
    let problems = keeper.problems().into_iter();
    problems.map(|bad| format!("{}: {} (a start would leave it out)", bad.key, bad.reason)).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Args;

    fn said(text: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("netd.toml");
        std::fs::write(&path, text).unwrap();
        let args =
            Args::parse_from(["netd", "--check", "--node-name", "n1", "--config", path.to_str().unwrap()]);
        assert!(args.check);
        let found = Config::load(&args).map(|config| wrong(&config));
        found.unwrap_or_else(|error| vec![error.to_string()]).join("\n")
    }

    #[test]
    fn files_and_names_are_looked_at_as_at_a_start() {
        assert_eq!(said("dns-upstreams = [\"192.0.2.53\"]"), "");
        for (text, wanted) in [
            ("dns-upstream = []", "unknown field"),
            ("dns-upstreams = [\"192.0.2.53#dns.test\"]\ndns-upstream-ca = \"/nope.crt\"", "/nope.crt"),
            ("dns-tls-cert = \"/x.pem\"\ndns-tls-key = \"/y.pem\"", "dns-tls-cert: cannot read /x.pem"),
            ("cni-conf-dir = \"/x\"\ncni-chain = \"/nope.json\"", "cni-chain: cannot read /nope.json"),
            ("store-endpoints = [\"https://192.0.2.1:2379\"]", "needs a CA file"),
            ("store-endpoints = [\"https://192.0.2.1:2379\"]\nstore-ca = \"/nope.crt\"", "/nope.crt"),
            ("cgroup-root = \"/nope/cgroup\"", "cgroup-root: /nope/cgroup"),
            (
                "[[dns-records]]\nname = \"a.home\"\ntype = \"A\"\ndata = \"x\"",
                "dns-records[0]: data: \"x\" is not an IPv4 address (a start would leave it out)",
            ),
        ] {
            let said = said(text);
            assert!(said.contains(wanted), "{text}: {said}");
        }
    }

    #[test]
    fn the_example_as_it_is_shipped_is_fine() {
        assert_eq!(said(include_str!("../../manifests/netd.example.toml")), "");
    }
}
