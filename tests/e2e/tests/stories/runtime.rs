// SPDX-License-Identifier: Apache-2.0
//! Real container runtimes on a host that Weft was installed on: what their stories share.
//!
//! The host is a member of a cluster: a service has its backend on another node. Containers are made from an image of busybox
//! with dynamically linked tools beside it, because a static busybox cannot look names up.

use crate::host::Host;
use crate::service;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::net::IpAddr;
use std::time::Duration;
use weft_lab::{Lab, PodSpec, Running, wait_until};

/// What the image is called.
pub(crate) const IMAGE: &str = "localhost/weft-test:1";
/// Where the image lies on the host, as a docker archive.
pub(crate) const ARCHIVE: &str = "/run/story/image.tar";
/// What a server of a container says.
pub(crate) const GREETING: &str = "from-container";
/// What the service's backend on the other node says.
pub(crate) const BACKEND: &str = "from-the-other-node";
/// The service's full name.
pub(crate) const NAME: &str = "backend.default.svc.cluster.local";

const SOON: Duration = Duration::from_secs(10);

/// Builds the image: one layer, by hand, because a registry and a builder would only be in the way.
const IMAGE_SCRIPT: &str = r#"
    root=/run/story/root
    mkdir -p $root/bin $root/etc $root/proc $root/sys $root/dev $root/tmp $root/www
    cp "$(command -v busybox)" $root/bin/busybox
    for applet in $(busybox --list); do [ -e $root/bin/$applet ] || ln -s busybox $root/bin/$applet; done
    for program in curl getent; do
        program=$(command -v $program)
        for file in $program $(ldd $program | grep -o '/[^ ]*'); do cp --parents -L $file $root; done
    done
    echo root:x:0:0::/:/bin/sh > $root/etc/passwd
    echo 'hosts: files dns' > $root/etc/nsswitch.conf
    echo GREETING > $root/www/index.html
    # For a runtime that leaves names to others (ctr).
    printf 'nameserver 169.254.53.53\nsearch default.svc.cluster.local\noptions ndots:5\n' > $root/etc/resolv.conf
    cd /run/story
    tar -C root -cf layer.tar .
    cat > config.json <<END
    {"architecture": "$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')", "os": "linux",
     "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin:/usr/bin"]},
     "rootfs": {"type": "layers", "diff_ids": ["sha256:$(sha256sum < layer.tar | cut -d ' ' -f 1)"]},
     "history": [{"created_by": "weft-e2e"}]}
END
    echo '[{"Config": "config.json", "RepoTags": ["IMAGE"], "Layers": ["layer.tar"]}]' > manifest.json
    tar -cf ARCHIVE manifest.json config.json layer.tar
"#;

/// A host with Weft and an image, and a service behind it.
pub(crate) struct Stage<'a> {
    pub host: Host<'a>,
    /// The service's address; `http://VIP/` says [`BACKEND`].
    pub vip: IpAddr,
    /// The host's address on the underlay.
    pub address: IpAddr,
    _backend: Running,
}

impl<'a> Stage<'a> {
    /// n1 becomes the host; the backend runs on n2.
    pub(crate) fn set(lab: &'a Lab) -> Result<Stage<'a>> {
        let www = lab.state()?.node("n2")?.dir.join("www");
        fs::create_dir(&www)?;
        fs::write(www.join("index.html"), BACKEND)?;
        lab.pod_add(&PodSpec::new("n2", "b").label("app", "backend"))?;
        let www = www.to_str().context("the lab's folder is not UTF-8")?;
        let backend = lab.spawn("b", &["busybox", "httpd", "-f", "-p", "8080", "-h", www])?;

        let host = Host::of(lab, "n1")?;
        let show = lab.show()?;
        let endpoints: Vec<_> = show.etcd.iter().map(|url| format!("\"{url}\"")).collect();
        host.run(&format!(
            "mkdir /etc/weft; cat > /etc/weft/netd.toml <<'END'\ncluster = \"{}\"\nnode-name = \"n1\"\n\
             store-endpoints = [{}]\ncni-conf-dir = \"/etc/cni/net.d\"\nEND\nrm -f /etc/cni/net.d/*",
            lab.state()?.cluster,
            endpoints.join(", ")
        ))?;
        host.make("install", &Host::from()?)?;
        host.start()?;
        let vip = lab.apply(&service("backend", "backend"))?.results[0].cluster_ip.context("no ClusterIP")?;
        let stage =
            Stage { host, vip, address: lab.state()?.node("n1")?.underlay_ip.into(), _backend: backend };
        stage.reaches("curl -sS -m 2", &format!("http://{vip}/"), BACKEND)?;
        let image =
            IMAGE_SCRIPT.replace("GREETING", GREETING).replace("IMAGE", IMAGE).replace("ARCHIVE", ARCHIVE);
        stage.host.run(&image).context("the image")?;
        Ok(stage)
    }

    /// Waits until a page says what it should; `by` is how it is asked, on the host.
    pub(crate) fn reaches(&self, by: &str, url: &str, says: &str) -> Result<()> {
        let mut said = String::new();
        let right = wait_until(SOON, || {
            let output = self.host.try_run(&format!("{by} {url}"))?;
            said = format!("{}{}", output.stdout, output.stderr);
            Ok(output.ok() && output.stdout.contains(says))
        })?;
        ensure!(right, "{by} {url}: {said}\n{}", self.host.log()?);
        Ok(())
    }

    /// Waits until nothing of any container is left on the host.
    pub(crate) fn nothing_left(&self) -> Result<()> {
        let look = "ip -o link show type veth | grep -E ': weft[0-9a-f]{11}' || true
            ip -o link show type ifb || true
            ip -o route show table all proto 157 scope link | grep -E 'dev weft[0-9a-f]{11}' || true
            ip neighbour show nud permanent | grep -E 'dev weft[0-9a-f]{11}' || true
            nft list ruleset | grep -E '80(88|89|90)' || true
            find /var/lib/cni -type f -path '*/results/*'
            find /sys/fs/bpf -name 'pod-*'
            find /run/netns -type f
            weft pod ls | grep -E ' n1 ' || true";
        let mut left = String::new();
        let gone = wait_until(SOON, || {
            left = self.host.run(look)?;
            Ok(left.is_empty())
        })?;
        ensure!(gone, "left by containers:\n{left}\n{}", self.host.log()?);
        Ok(())
    }
}
