// SPDX-License-Identifier: Apache-2.0
//! The reference plugins, bridge with host-local: what is known of them comes out, and nothing else.

use crate::{Trial, having, rows};
use serde_json::json;
use std::path::Path;

/// Where Debian's package containernetworking-plugins puts them.
const BRIDGE: &str = "/usr/lib/cni/bridge";

/// What bridge and host-local 1.1.1 do not keep. Later ones keep some of it.
const KNOWN: [&str; 17] = [
    "add.netns-gone",
    "add.own-netns",
    "add.prev-result",
    "add.prev-result-bad",
    "cap.ips-bad",
    "cap.ips-foreign",
    "cap.ips-precedence",
    "cap.ips-taken",
    "check.host-side",
    "config.types",
    "del.damaged-cache",
    "env.command",
    "env.ifname",
    "errors.version",
    "version.reply 0.3.0",
    "version.reply 0.3.1",
    "version.reply 0.4.0",
];

#[test]
fn bridge_with_host_local_keeps_what_it_is_known_for() {
    let Some(trial) = Trial::new("reference") else { return };
    if !Path::new(BRIDGE).is_file() {
        println!("SKIP reference: {BRIDGE} is not installed (containernetworking-plugins)");
        return;
    }
    let config = trial.write(
        "bridge.conf",
        &json!({
            "cniVersion": "1.0.0",
            "name": "reference",
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "capabilities": { "ips": true, "mac": true },
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": "10.55.0.0/24" }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
                "dataDir": trial.folder.path().join("ipam"),
            },
        }),
    );
    let mut command = trial.runner(BRIDGE.as_ref(), &config);
    let (code, rows) = rows(command.args(["--reuse-wait", "2"]));
    let news: Vec<_> = having(&rows, "FAIL").into_iter().filter(|(row, _)| !KNOWN.contains(row)).collect();
    assert_eq!(news, [], "rows that the reference is known to keep");
    let passed = having(&rows, "pass");
    for row in [
        "add.interface",
        "add.result 1.0.0",
        "del.twice",
        "check.addresses",
        "conv.parallel",
        "cap.ips",
        "cap.mac",
    ] {
        assert!(passed.contains_key(row), "{row}: {:?}", rows.get(row));
    }
    assert_eq!(code, Some(1));
    assert_eq!(trial.left(), [""; 0]);
}
