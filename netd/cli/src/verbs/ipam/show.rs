// SPDX-License-Identifier: Apache-2.0
//! `weft ipam show`.

use std::fmt::Write as _;

use netd_api::{Client, IpamInfo, PoolInfo};
use serde_json::Value;

use super::super::explain;
use super::owners::Owners;
use crate::output::Shown;
use crate::table::{Table, list};

/// From here on a number is longer than the power that it is.
const MANY: u64 = 1 << 32;

pub(super) async fn show(client: &Client) -> anyhow::Result<Shown> {
    let ipam = client.ipam().await.map_err(explain)?;
    let pods = client.pods().await.map_err(explain)?;
    let owners = Owners::new(&ipam, &pods);
    let mut shown = Shown::new(text(&ipam, &owners), &ipam)?;
    name_pods(&mut shown.json, &owners);
    Ok(shown)
}

/// Adds `pod` to each address whose pod is known.
fn name_pods(json: &mut Value, owners: &Owners) {
    let addresses = json.get_mut("addresses").and_then(Value::as_array_mut);
    for address in addresses.into_iter().flatten() {
        let pod = address["owner"].as_str().and_then(|owner| owners.pod(owner)).map(str::to_owned);
        if let (Some(pod), Some(fields)) = (pod, address.as_object_mut()) {
            fields.insert("pod".to_owned(), pod.into());
        }
    }
}

fn text(ipam: &IpamInfo, owners: &Owners) -> String {
    let mut text = pools(ipam).render("No pools: the cluster's configuration names none.");
    for pool in &ipam.pools {
        let when = match pool.full_in_secs {
            Some(0) => "is full".to_owned(),
            Some(secs) => format!("is full in {} at the recent rate", rough(secs, " ")),
            None => continue,
        };
        let _ = writeln!(text, "Pool {} {when}: add another with `weft ipam pool add`.", pool.name);
    }
    text.push('\n');
    text.push_str(&blocks(ipam).render("No blocks are claimed."));
    if !ipam.sticky.is_empty() {
        text.push_str("\nSticky names:\n");
        text.push_str(&sticky(ipam).render(""));
    }
    if !ipam.addresses.is_empty() {
        text.push_str("\nOn this node:\n");
        text.push_str(&addresses(ipam, owners).render(""));
    }
    text
}

fn pools(ipam: &IpamInfo) -> Table {
    let mut table = Table::new([
        "POOL",
        "CIDR",
        "BLOCK SIZE",
        "BLOCKS",
        "CLAIMED",
        "ADDRESSES",
        "USED",
        "STATE",
        "SELECTOR",
        "FULL IN",
    ]);
    for pool in &ipam.pools {
        let selector: Vec<String> =
            pool.node_selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
        table.row([
            pool.name.clone(),
            pool.cidr.to_string(),
            format!("/{}", pool.block_prefix),
            format!("{}/{}", pool.blocks_claimed, total(pool)),
            percent(pool.blocks_claimed as f64, pool.blocks_total as f64),
            pool.used.to_string(),
            percent(pool.used as f64, size(pool)),
            pool.state.clone(),
            list(&selector),
            match pool.full_in_secs {
                Some(0) => "full".to_owned(),
                Some(secs) => rough(secs, ""),
                None if pool.too_early => "too early".to_owned(),
                None => String::new(),
            },
        ]);
    }
    table
}

fn blocks(ipam: &IpamInfo) -> Table {
    let mut table = Table::new(["BLOCK", "POOL", "NODE", "USED", "RESTING", "FREE", "STATE"]);
    for block in &ipam.blocks {
        table.row([
            block.cidr.to_string(),
            block.pool.clone(),
            block.node.clone().unwrap_or_else(|| block.owner.to_string()),
            block.used.to_string(),
            block.resting.map(|resting| resting.to_string()).unwrap_or_default(),
            block.free.to_string(),
            block.state.clone(),
        ]);
    }
    table
}

fn sticky(ipam: &IpamInfo) -> Table {
    let mut table = Table::new(["NAME", "ADDRESSES", "NODE", "POD"]);
    for sticky in &ipam.sticky {
        let [node, pod] = [&sticky.node, &sticky.pod].map(|value| value.clone().unwrap_or_default());
        table.row([sticky.name.clone(), list(&sticky.addresses), node, pod]);
    }
    table
}

fn addresses(ipam: &IpamInfo, owners: &Owners) -> Table {
    let mut table = Table::new(["ADDRESS", "STATE", "OWNER", "POD"]);
    for address in &ipam.addresses {
        let owner = owners.show(&address.owner);
        let pod = address.pod.clone().filter(|pod| *pod != owner).unwrap_or_default();
        table.row([address.address.to_string(), address.state.clone(), owner, pod]);
    }
    table
}

/// How many blocks a pool has; as a power of two where nobody would read the number.
fn total(pool: &PoolInfo) -> String {
    match pool.blocks_total {
        MANY.. => format!("2^{}", pool.block_prefix.saturating_sub(pool.cidr.prefix_len())),
        blocks => blocks.to_string(),
    }
}

/// How many addresses a pool has; as a float, because an IPv6 pool has more than any integer holds.
fn size(pool: &PoolInfo) -> f64 {
    let host_bits = pool.cidr.max_prefix_len().saturating_sub(pool.cidr.prefix_len());
    f64::from(host_bits).exp2()
}

/// Never rounds something to nothing, nor nearly all to all.
fn percent(part: f64, whole: f64) -> String {
    let percent = if whole > 0.0 { part / whole * 100.0 } else { 0.0 };
    match percent {
        0.0 => "0%".to_owned(),
        p if p < 0.1 => "<0.1%".to_owned(),
        p if p < 10.0 => format!("{p:.1}%"),
        p => format!("{:.0}%", if p < 100.0 { p.floor() } else { p }),
    }
}

/// The largest unit alone: a forecast is no more exact than that.
fn rough(secs: u64, gap: &str) -> String {
    match secs {
        172_800.. => format!("{}{gap}d", secs / 86_400),
        7_200.. => format!("{}{gap}h", secs / 3_600),
        _ => format!("{}{gap}min", secs / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "6f1c1b4e-0000-4000-8000-000000000001";

    fn example() -> IpamInfo {
        serde_json::from_value(serde_json::json!({
            "pools": [
                {"name": "default", "cidr": "10.244.0.0/16", "block_prefix": 26, "blocks_total": 1024,
                 "blocks_claimed": 1, "used": 3, "state": "active", "too_early": true},
                {"name": "gpu", "cidr": "fd00:10:245::/120", "block_prefix": 122, "blocks_total": 4,
                 "blocks_claimed": 3, "used": 64, "state": "draining", "node_selector": {"gpu": "yes", "zone": "a"},
                 "full_in_secs": 271_000},
            ],
            "blocks": [{"cidr": "10.244.0.0/26", "pool": "default", "owner": NODE, "node": "n1",
                        "used": 3, "resting": 2, "free": 59, "state": "active"}],
            "addresses": [
                {"address": "10.244.0.0", "owner": format!("node/{NODE}"), "state": "committed"},
                {"address": "10.244.0.1", "owner": "attachment/weft/c1/eth0", "state": "committed", "pod": "shop/web-1"},
                {"address": "10.244.0.9", "owner": "sticky/db-0", "state": "in use", "pod": "shop/db-0 on n2"},
            ],
            "sticky": [{"name": "db-0", "addresses": ["10.244.0.9", "fd00:10:245::9"], "node": "n2", "pod": "shop/db-0"},
                       {"name": "db-1", "addresses": ["10.244.0.10"]}],
        }))
        .unwrap()
    }

    fn owners(ipam: &IpamInfo) -> Owners {
        let pods = serde_json::json!([
            {"namespace": "shop", "name": "web-1", "node": "n1", "network": "weft", "container_id": "c1",
             "node_uuid": NODE, "ifname": "eth0", "ips": ["10.244.0.1"], "host_ifname": "weft0", "local": true},
        ]);
        Owners::new(ipam, &serde_json::from_value::<Vec<netd_api::PodInfo>>(pods).unwrap())
    }

    #[test]
    fn pools_blocks_sticky_names_and_addresses_are_tables() {
        let ipam = example();
        assert_eq!(
            text(&ipam, &owners(&ipam)),
            "POOL      CIDR                BLOCK SIZE   BLOCKS   CLAIMED   ADDRESSES   USED    STATE      SELECTOR         FULL IN\n\
             default   10.244.0.0/16       /26          1/1024   <0.1%     3           <0.1%   active     -                too early\n\
             gpu       fd00:10:245::/120   /122         3/4      75%       64          25%     draining   gpu=yes,zone=a   3d\n\
             Pool gpu is full in 3 d at the recent rate: add another with `weft ipam pool add`.\n\
             \n\
             BLOCK           POOL      NODE   USED   RESTING   FREE   STATE\n\
             10.244.0.0/26   default   n1     3      2         59     active\n\
             \n\
             Sticky names:\n\
             NAME   ADDRESSES                   NODE   POD\n\
             db-0   10.244.0.9,fd00:10:245::9   n2     shop/db-0\n\
             db-1   10.244.0.10                 -      -\n\
             \n\
             On this node:\n\
             ADDRESS      STATE       OWNER         POD\n\
             10.244.0.0   committed   node/n1       -\n\
             10.244.0.1   committed   shop/web-1    -\n\
             10.244.0.9   in use      sticky/db-0   shop/db-0 on n2\n"
        );
    }

    #[test]
    fn the_json_names_the_pod_beside_the_owner() {
        let ipam = example();
        let mut json = serde_json::to_value(&ipam).unwrap();
        name_pods(&mut json, &owners(&ipam));
        assert_eq!(json["addresses"][1]["pod"], "shop/web-1");
        assert_eq!(json["addresses"][0].get("pod"), None);
    }

    #[test]
    fn an_empty_cluster_says_so() {
        let ipam = IpamInfo::default();
        assert_eq!(
            text(&ipam, &owners(&ipam)),
            "No pools: the cluster's configuration names none.\n\nNo blocks are claimed.\n"
        );
    }

    #[test]
    fn a_share_is_never_rounded_to_nothing_or_all() {
        let shown =
            [(0.0, 1024.0), (1.0, 1024.0), (50.0, 1024.0), (1023.0, 1024.0), (1024.0, 1024.0), (1.0, 0.0)]
                .map(|(part, whole)| percent(part, whole));
        assert_eq!(shown, ["0%", "<0.1%", "4.9%", "99%", "100%", "0%"]);
    }

    #[test]
    fn the_blocks_of_an_ipv6_pool_are_a_power() {
        let mut pool = example().pools.remove(1);
        assert_eq!(total(&pool), "4");
        (pool.cidr, pool.blocks_total) = ("fd00:10:244::/56".parse().unwrap(), u64::MAX);
        assert_eq!(total(&pool), "2^66");
    }

    #[test]
    fn a_forecast_has_one_unit() {
        assert_eq!(
            [90, 7_199, 7_200, 100_000, 271_000].map(|secs| rough(secs, "")),
            ["1min", "119min", "2h", "27h", "3d"]
        );
    }
}
