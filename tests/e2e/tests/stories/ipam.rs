// SPDX-License-Identifier: Apache-2.0
//! What stories about addresses ask: who has what, who reaches whom, and how a refusal reads.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Deserializer, Value};
use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use weft_lab::{Lab, Pod, PodSpec, wait_until};

/// A change is in every kernel within a fraction of this.
pub(crate) const SOON: Duration = Duration::from_secs(8);

/// What weft-cni said when it did not do what was asked.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub code: u64,
    /// Message and details.
    pub text: String,
}

impl Refusal {
    /// The first JSON object in what was said.
    fn find(said: &str) -> Result<Refusal> {
        let start = said.find('{').with_context(|| format!("no JSON: {said}"))?;
        let first = Deserializer::from_str(&said[start..]).into_iter::<Value>().next();
        let answer = first.context("no JSON")?.with_context(|| said.to_owned())?;
        let words = ["msg", "details"].map(|field| answer[field].as_str().unwrap_or_default());
        Ok(Refusal {
            code: answer["code"].as_u64().with_context(|| said.to_owned())?,
            text: words.join(": "),
        })
    }

    /// Fails where it has another code, or lacks one of these words.
    pub(crate) fn says(&self, code: u64, words: &[&str]) -> Result<()> {
        let missing: Vec<_> = words.iter().filter(|word| !self.text.contains(**word)).collect();
        ensure!(self.code == code && missing.is_empty(), "wanted {code} {words:?}: {self:?}");
        Ok(())
    }
}

/// The refusal of an ADD.
pub(crate) fn refused(added: Result<Pod>) -> Result<Refusal> {
    match added {
        Ok(pod) => bail!("{} was given {:?}", pod.name, pod.ips),
        Err(error) => Refusal::find(&format!("{error:#}")),
    }
}

/// Adds a pod, again and again while it is refused: an address rests before it can be had again.
pub(crate) fn added_soon(lab: &Lab, spec: &PodSpec) -> Result<Pod> {
    let mut last = None;
    wait_until(SOON, || {
        last = Some(lab.pod_add(spec));
        Ok(last.as_ref().is_some_and(Result::is_ok))
    })?;
    last.context("nothing was tried")?.with_context(|| format!("after {SOON:?}"))
}

/// What STATUS of a node complains about.
pub(crate) fn complaint(lab: &Lab, node: &str) -> Result<Option<Refusal>> {
    let answer = lab.cni_status(node)?;
    if answer.ok() { Ok(None) } else { Refusal::find(&answer.stdout).map(Some) }
}

/// Fails where something does not come to pass soon, with what `seen` shows.
pub(crate) fn soon<T: std::fmt::Debug>(
    what: &str,
    mut look: impl FnMut() -> Result<T>,
    done: impl Fn(&T) -> bool,
) -> Result<T> {
    let mut seen = None;
    let came = wait_until(SOON, || {
        let now = look()?;
        let done = done(&now);
        seen = Some(now);
        Ok(done)
    })?;
    let seen = seen.context("nothing was looked at")?;
    ensure!(came, "not after {SOON:?}: {what}: {seen:?}");
    Ok(seen)
}

/// Fails unless each of these soon reaches each of the addresses.
pub(crate) fn reach(lab: &Lab, from: &[&str], ips: &[IpAddr]) -> Result<()> {
    for (from, ip) in from.iter().flat_map(|from| ips.iter().map(move |ip| (from, ip))) {
        let ip = ip.to_string();
        let ping = || Ok(lab.exec(from, &["ping", "-n", "-c1", "-W1", &ip])?.ok());
        soon(&format!("{from} reaches {ip}"), ping, |reached| *reached)?;
    }
    Ok(())
}

/// `weft ipam show --json`.
pub(crate) fn show(lab: &Lab, node: &str) -> Result<Value> {
    lab.weft(node, &["ipam", "show", "--json"])?.json("weft ipam show")
}

/// Blocks of a node, by its own account.
pub(crate) fn blocks(lab: &Lab, node: &str) -> Result<BTreeSet<String>> {
    let shown = show(lab, node)?;
    let all = shown["blocks"].as_array().context("no blocks")?;
    let own = all.iter().filter(|block| block["node"] == node);
    Ok(own.filter_map(|block| block["cidr"].as_str().map(str::to_owned)).collect())
}

/// An address of the first block of a node, so far from its begin.
pub(crate) fn address(lab: &Lab, node: &str, offset: u8) -> Result<IpAddr> {
    let blocks = blocks(lab, node)?;
    let block = blocks.iter().find(|block| !block.contains(':')).context("no IPv4 block")?;
    let start: Ipv4Addr = block.split('/').next().context("no address")?.parse()?;
    Ok(IpAddr::V4(Ipv4Addr::from(u32::from(start) + u32::from(offset))))
}

/// How a node's kernel leads to an address: its most specific route.
pub(crate) fn route(lab: &Lab, node: &str, ip: IpAddr) -> Result<String> {
    let family = if ip.is_ipv4() { "-4" } else { "-6" };
    lab.exec(node, &["ip", "-o", family, "route", "get", &ip.to_string()])?.text("ip route get")
}

/// Fails unless the witnesses on these nodes soon tell one story.
pub(crate) fn agree(lab: &Lab, nodes: &[&str]) -> Result<()> {
    for node in nodes {
        let check = || lab.weft(node, &["ipam", "check"]);
        soon(&format!("{node}: weft ipam check"), check, |answer| answer.ok())?;
    }
    Ok(())
}

/// Gives a node labels, from its next start on.
pub(crate) fn label(lab: &Lab, node: &str, labels: &str) -> Result<()> {
    let path = lab.state()?.node(node)?.dir.join("netd.toml");
    let text = fs::read_to_string(&path)?;
    fs::write(&path, format!("{text}node-labels = [\"{labels}\"]\n"))?;
    Ok(())
}
