// SPDX-License-Identifier: Apache-2.0

//! Sysctls, the nft table and the FORWARD chain.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use netd_host::{
    forward::{Forward, Forwarding},
    nft::{Nft, NftError},
    router,
    sysctl::{self, Restored, SysctlError, Sysctls},
};

use crate::ground::{in_fresh_netns, ip, skip};

const IP_FORWARD: &str = "net/ipv4/ip_forward";

#[test]
fn sysctls_get_their_first_value_back() {
    in_fresh_netns(|| async {
        let state = tempfile::tempdir().unwrap();
        fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        ip("link add up0 type veth peer name up1");
        let (of_up0, of_up1) = ("net/ipv4/conf/up0/rp_filter", "net/ipv4/conf/lo/proxy_arp");
        let mut sysctls = Sysctls::open(state.path()).unwrap();
        assert!(sysctls.set(IP_FORWARD, "1").unwrap());
        assert!(!sysctls.set(IP_FORWARD, "1").unwrap(), "again is a no-op");
        sysctls.set(of_up0, "2").unwrap();
        sysctls.set(of_up1, "1").unwrap();
        assert!(!sysctls.set_if_present("net/ipv4/conf/none/rp_filter", "0").unwrap());
        assert!(matches!(sysctls.set("net/ipv4/conf/none/rp_filter", "0"), Err(SysctlError::Io { .. })));

        // A restart, and another value of ours: the host's own value stays on record.
        let mut sysctls = Sysctls::open(state.path()).unwrap();
        sysctls.set(of_up0, "1").unwrap();
        fs::write(format!("/proc/sys/{of_up1}"), "0").unwrap();
        ip("link del up0");
        let done = Sysctls::open(state.path()).unwrap().restore_all().unwrap();
        let wanted = [
            Restored::Absent(of_up0.to_owned()),
            Restored::Restored(of_up1.to_owned()),
            Restored::Restored(IP_FORWARD.to_owned()),
        ];
        assert_eq!(done.len(), 3);
        for outcome in wanted {
            assert!(done.contains(&outcome), "{outcome:?} in {done:?}");
        }
        assert_eq!(sysctl::read(IP_FORWARD).unwrap(), "0");
        assert_eq!(
            Sysctls::open(state.path()).unwrap().restore_all().unwrap(),
            [],
            "the record is empty now"
        );
    });
}

#[test]
fn a_sysctl_that_somebody_set_after_us_is_left_alone() {
    in_fresh_netns(|| async {
        let state = tempfile::tempdir().unwrap();
        fs::write("/proc/sys/net/ipv4/conf/lo/rp_filter", "0").unwrap();
        let mut sysctls = Sysctls::open(state.path()).unwrap();
        sysctls.set("net/ipv4/conf/lo/rp_filter", "1").unwrap();
        fs::write("/proc/sys/net/ipv4/conf/lo/rp_filter", "2").unwrap();
        let done = sysctls.restore_all().unwrap();
        assert_eq!(done, [Restored::Changed("net/ipv4/conf/lo/rp_filter".to_owned())]);
        assert_eq!(sysctl::read("net/ipv4/conf/lo/rp_filter").unwrap(), "2");
    });
}

#[test]
fn a_node_that_forwards_still_hears_its_router() {
    in_fresh_netns(|| async {
        let state = tempfile::tempdir().unwrap();
        for name in ["up0", "up1", "up2", "weft0"] {
            ip(&format!("link add {name} type veth peer name {name}p"));
        }
        let conf = |name: &str| format!("net/ipv6/conf/{name}");
        let get = |key: String| sysctl::read(&key).unwrap();
        fs::write("/proc/sys/net/ipv6/conf/up2/accept_ra", "0").unwrap();
        let mut sysctls = Sysctls::open(state.path()).unwrap();
        router::forward_ipv4(&mut sysctls).unwrap();
        for round in ["first", "again"] {
            router::forward_ipv6(&mut sysctls, "up0").unwrap();
            let found = ["up0", "up1", "up2", "weft0"].map(|name| get(format!("{}/accept_ra", conf(name))));
            assert_eq!(found, ["2", "2", "0", "1"], "{round}");
            assert_eq!(get(format!("{}/forwarding", conf("all"))), "1");
            assert_eq!(get(IP_FORWARD.to_owned()), "1");
        }
        // One that comes later did not take advertisements before; the uplink must.
        for name in ["up3", "up4"] {
            ip(&format!("link add {name} type veth peer name {name}p"));
        }
        router::forward_ipv6(&mut sysctls, "up4").unwrap();
        let found = ["up3", "up4"].map(|name| get(format!("{}/accept_ra", conf(name))));
        assert_eq!(found, ["1", "2"]);
        sysctls.restore_all().unwrap();
        let found = ["up0", "up1", "up2", "up4"].map(|name| get(format!("{}/accept_ra", conf(name))));
        assert_eq!(found, ["1", "1", "0", "1"]);
        assert_eq!(get(format!("{}/forwarding", conf("all"))), "0");
    });
}

#[test]
fn the_nft_table_is_loaded_compared_and_removed() {
    in_fresh_netns(|| async {
        let nft = match Nft::find() {
            Ok(nft) => nft,
            Err(error) => return skip(&error.to_string()),
        };
        let script = |dst: &str| {
            format!(
                "table inet weft\ndelete table inet weft\ntable inet weft {{\n  chain post {{\n    \
                 type nat hook postrouting priority srcnat;\n    ip daddr {dst} counter masquerade\n  }}\n}}\n"
            )
        };
        assert_eq!(nft.observe().await.unwrap(), None);
        nft.remove().await.expect("absent is fine");
        nft.apply("table ip foreign {\n}\n").await.unwrap();
        nft.apply(&script("10.0.0.0/8")).await.unwrap();
        let first = nft.observe().await.unwrap().expect("a digest");
        nft.apply(&script("10.0.0.0/8")).await.unwrap();
        assert_eq!(nft.observe().await.unwrap().as_ref(), Some(&first), "the same script, the same digest");
        nft.apply("add rule inet weft post drop").await.unwrap();
        assert_ne!(nft.observe().await.unwrap().as_ref(), Some(&first), "somebody added a rule");
        nft.apply(&script("10.0.0.0/9")).await.unwrap();
        assert_ne!(nft.observe().await.unwrap().as_ref(), Some(&first));

        let digest = nft.observe().await.unwrap();
        let error = nft.apply(&script("10.0.0.0/99")).await.unwrap_err();
        assert!(matches!(error, NftError::Refused { .. }));
        assert!(error.to_string().contains("`ip daddr 10.0.0.0/99 counter masquerade`"), "{error}");
        assert_eq!(nft.observe().await.unwrap(), digest, "all or nothing");

        nft.remove().await.unwrap();
        assert_eq!(nft.observe().await.unwrap(), None);
        nft.apply("delete table ip foreign").await.expect("the other table was left alone");
    });
}

#[tokio::test]
async fn a_missing_nft_is_named() {
    let error = Nft::with_program("/nonexistent/nft").apply("").await.unwrap_err();
    assert!(error.to_string().contains("/nonexistent/nft"), "{error}");
    assert!(NftError::Missing.to_string().contains("nftables"));
}

/// An iptables that keeps the FORWARD chain in a file beside it, for hosts that have none.
const STAND_IN: &str = r#"#!/bin/sh
chain="$(dirname "$0")/chain"
[ "$1" = -w ] && shift 2
case "$1" in
  -S) cat "$chain" ;;
  -I) shift 2; { head -n1 "$chain"; echo "-A FORWARD $*"; tail -n+2 "$chain"; } > "$chain.new"; mv "$chain.new" "$chain" ;;
  -D) shift 2; grep -qxF -e "-A FORWARD $*" "$chain" || { echo "Bad rule" >&2; exit 1; }
      grep -vxF -e "-A FORWARD $*" "$chain" > "$chain.new"; mv "$chain.new" "$chain" ;;
  *) echo "unknown: $*" >&2; exit 2 ;;
esac
"#;

#[tokio::test]
async fn pod_traffic_is_accepted_where_the_policy_drops() {
    let folder = tempfile::tempdir().unwrap();
    let (program, chain): (PathBuf, PathBuf) = (folder.path().join("iptables"), folder.path().join("chain"));
    fs::write(&program, STAND_IN).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let forward = Forward::with_program(&program);
    let foreign = "-A FORWARD -i docker0 -j ACCEPT\n";
    let pods = ["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()];
    let read = || fs::read_to_string(&chain).unwrap();

    fs::write(&chain, format!("-P FORWARD ACCEPT\n{foreign}")).unwrap();
    assert_eq!(forward.ensure(&pods).await.unwrap(), Forwarding::NotNeeded);
    assert_eq!(read(), format!("-P FORWARD ACCEPT\n{foreign}"));

    let drops = format!("-P FORWARD DROP\n{foreign}");
    fs::write(&chain, &drops).unwrap();
    assert_eq!(forward.ensure(&pods).await.unwrap(), Forwarding::Inserted);
    let accepted = read();
    assert_eq!(accepted.matches("-m comment --comment weft -j ACCEPT").count(), 2, "{accepted}");
    assert!(accepted.contains("-s 10.244.0.0/16") && accepted.contains("-d 10.244.0.0/16"), "{accepted}");
    assert_eq!(forward.ensure(&pods).await.unwrap(), Forwarding::Accepted);
    assert_eq!(read(), accepted, "again is a no-op");

    forward.ensure(&["10.245.0.0/16".parse().unwrap()]).await.unwrap();
    assert!(!read().contains("10.244"), "rules for CIDRs that are gone go too");
    forward.remove().await.unwrap();
    forward.remove().await.expect("absent is fine");
    assert_eq!(read(), drops);

    fs::remove_file(&chain).unwrap();
    let error = forward.ensure(&pods).await.unwrap_err();
    assert!(error.to_string().contains("-S FORWARD"), "{error}");
}
