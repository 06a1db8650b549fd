// SPDX-License-Identifier: Apache-2.0
//! podman with its CNI backend: names, services and published ports from and to a real container.

use crate::runtime::{ARCHIVE, BACKEND, GREETING, IMAGE, NAME, Stage};
use crate::{have, lab};
use anyhow::Result;

/// No CAP_SYS_RESOURCE in many test environments: the limits are podman's usual ones made small. The image's file system is
/// plain folders, because there is no overlay on an overlay.
const CONFIG: &str = r#"
    mkdir -p /etc/containers
    cat > /etc/containers/containers.conf <<'END'
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[network]
network_backend = "cni"
cni_plugin_dirs = ["/opt/cni/bin"]
network_config_dir = "/etc/cni/net.d"
END
    cat > /etc/containers/storage.conf <<'END'
[storage]
driver = "vfs"
graphroot = "/var/lib/containers/storage"
runroot = "/run/containers/storage"
END
    echo '{"default": [{"type": "insecureAcceptAnything"}]}' > /etc/containers/policy.json
"#;

#[test]
fn podman_with_its_cni_backend() -> Result<()> {
    if !["podman", "runc", "busybox", "make"].iter().all(|tool| have(tool, "podman")) {
        return Ok(());
    }
    let Some(lab) = lab("podman", 2)? else { return Ok(()) };
    let stage = Stage::set(&lab)?;
    let host = &stage.host;
    host.run(CONFIG)?;
    host.run(&format!("podman load -q -i {ARCHIVE}"))?;
    let run = |name: &str, more: &str| {
        host.run(&format!(
            "podman run -d --name {name} --network weft {more} {IMAGE} httpd -f -p 80 -h /www 2>&1 && podman port {name}"
        ))
    };
    run("web", "-p 8088:80 -p 127.0.0.1:8089:80 --network-alias shop")?;

    // Services from inside: the name, the name by podman's search list, the address.
    let inside = "podman exec web curl -sS -m 2";
    for url in [format!("http://{NAME}/"), "http://backend/".into(), format!("http://{}/", stage.vip)] {
        stage.reaches(inside, &url, BACKEND)?;
    }
    let known = host.run(&format!("podman exec web getent ahostsv4 {NAME}"))?;
    assert!(known.starts_with(&stage.vip.to_string()), "{known}");
    let own = host.run("podman exec web hostname -i")?;
    let alias = host.run("podman exec web getent ahostsv4 shop.default.svc.cluster.local")?;
    assert!(alias.starts_with(own.trim()), "{alias}, not {own}");

    // Published ports: from outside, a pod of another node, the host, its loopback, and the container itself.
    let published = format!("http://{}:8088/", stage.address);
    for target in ["outside", "b"] {
        let page = lab.exec(target, &["curl", "-sS", "-m", "5", &published])?.text(target)?;
        assert_eq!(page.trim(), GREETING, "{target}");
    }
    stage.reaches("curl -sS -m 2", &published, GREETING)?;
    stage.reaches("curl -sS -m 2", "http://127.0.0.1:8088/", GREETING)?;
    stage.reaches("curl -sS -m 2", "http://127.0.0.1:8089/", GREETING)?;
    stage.reaches(inside, &published, GREETING)?;
    let local_only = format!("http://{}:8089/", stage.address);
    let refused = lab.exec("outside", &["curl", "-sS", "-m", "2", &local_only])?;
    assert!(!refused.ok(), "a port of the loopback is reached from outside");

    // A second container: the two reach each other; the port that the first has is refused.
    run("other", "-p 8090:80")?;
    stage.reaches("podman exec other curl -sS -m 2", &published, GREETING)?;
    stage.reaches("podman exec other curl -sS -m 2", &format!("http://{}/", own.trim()), GREETING)?;
    assert!(run("third", "-p 8088:80").is_err(), "one port was published twice");
    host.run("podman rm -f -t 0 third")?;

    // Away and back at once, with the same ID and ports.
    host.run("podman restart -t 0 web")?;
    stage.reaches("curl -sS -m 2", &published, GREETING)?;
    stage.reaches(inside, &format!("http://{NAME}/"), BACKEND)?;

    host.run("podman rm -f -t 0 web other")?;
    stage.nothing_left()?;
    let gone = lab.exec("outside", &["curl", "-sS", "-m", "2", &published])?;
    assert!(!gone.ok(), "the published port still answers");
    host.make("uninstall", "PURGE=1")?;
    drop(stage);
    lab.down()
}
