// SPDX-License-Identifier: Apache-2.0
//! A host of its own for stories of installing and of container runtimes: a node of a lab (its network namespace and control
//! group) with a file tree that nobody else sees.
//!
//! In a private mount namespace /etc, /opt, /usr/local and /var/lib are overlays of this machine's, /run and the BPF file
//! system are empty, and the control group hierarchies begin at groups of the host's own. So programs find everything where
//! a real host has it, and nothing they do reaches this machine. All of it goes with the value.

use anyhow::{Context, Result, ensure};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;
use weft_lab::{Lab, Output, Running, sibling, tool, wait_until};

/// What netd writes for container runtimes.
pub(crate) const CONFLIST: &str = "/etc/cni/net.d/10-weft.conflist";
/// The slowest single step is the import of a container image.
const STEP_LIMIT: Duration = Duration::from_secs(60);
const READY_LIMIT: Duration = Duration::from_secs(30);
const START_LIMIT: Duration = Duration::from_secs(10);
/// Control groups are busy until the kernel has buried the last process.
const EMPTY_LIMIT: Duration = Duration::from_secs(5);

/// Makes the file tree, says its process ID, and holds it. Arguments: the node's control group, a name.
const MOUNTS: &str = r#"
    mount --make-rprivate /
    mounts=$(cat /proc/mounts)
    mount -t tmpfs none /run
    mkdir /run/netns
    for dir in etc opt usr/local var/lib; do
        mkdir -p /run/upper/$dir /run/story/$dir
        mount -t overlay none -o lowerdir=/$dir,upperdir=/run/upper/$dir,workdir=/run/story/$dir /$dir
    done
    mount -t bpf none /sys/fs/bpf
    while read -r _ at kind _; do
        case $kind in
            cgroup2) mount --bind "$1" "$at" ;;
            cgroup)
                mkdir -p "$at/$2"
                for file in cpuset.cpus cpuset.mems; do
                    [ ! -e "$at/$file" ] || cat "$at/$file" > "$at/$2/$file"
                done
                mount --bind "$at/$2" "$at"
                echo $$ > "$at/cgroup.procs" ;;
        esac
    done <<< "$mounts"
    # In a namespace that begins at these groups their paths look as they do on a real host; runc relies on that.
    exec unshare --cgroup bash -c 'echo $$; exec sleep infinity'
"#;

/// Joins the host's groups of the v1 hierarchies (that of v2 the lab has joined), then becomes the script's shell.
const ENTER: &str = r#"
    while read -r _ at kind _; do
        [ "$kind" != cgroup ] || echo $$ > "$at/cgroup.procs"
    done < /proc/mounts
    exec bash -o pipefail -ec "$1"
"#;

const NETWORK: &str = r"
    ip -o -d link | sed -E 's/ (numrx|numtx|state|mode|group|qlen) .*//'
    ip -br address
    ip -4 route show table all; ip -6 route show table all
    ip -4 rule; ip -6 rule
    ip neighbour show nud permanent; ip neighbour show proxy
    bridge fdb | grep -v 'dev eth0' || true
    tc qdisc
    nft list ruleset
    for t in iptables ip6tables; do ! command -v $t-save > /dev/null || $t-save | grep '^-' || true; done
";
/// What counts packets or feeds hashes changes by itself.
const SYSCTLS: &str =
    r"sysctl -a 2> /dev/null | grep '^net\.' | grep -v -E 'conntrack_count|stable_secret|tcp_fastopen_key'";
/// /run/xtables.lock is iptables' own.
const FILES: &str = r#"
    cd /run/upper
    find * -mindepth 1 ! -type d -printf '%p %y %s %m\n'
    find * -type d -printf '%p folder\n'
    find /run -path /run/upper -prune -o -path /run/story -prune -o -path /run/netns -prune -o -printf '%p %y\n' |
        grep -v -x '/run/xtables.lock f'
    find /sys/fs/bpf -printf '%p %y\n'
"#;
const PROCESSES: &str = r#"
    for process in /proc/[0-9]*; do
        [ "$(readlink $process/ns/mnt)" = "$(readlink /proc/self/ns/mnt)" ] || continue
        readlink $process/exe
    done | grep -v -E '/(bash|dash|sh|readlink|sleep|grep)$' || true
"#;

/// What a host holds that Weft could have made or changed, each line with what it is of: links, addresses, routes, rules,
/// neighbours, queues and firewall of the network namespace; sysctls; every path that is not as on the machine below, and
/// everything in /run and on the BPF file system; commands that run.
#[derive(Debug)]
pub(crate) struct Traces(BTreeSet<String>);

impl Traces {
    /// What came (`+`) and went (`-`) since.
    pub(crate) fn since(&self, before: &Traces) -> Vec<String> {
        let came = self.0.difference(&before.0).map(|line| format!("+ {line}"));
        came.chain(before.0.difference(&self.0).map(|line| format!("- {line}"))).collect()
    }
}

/// The host.
pub(crate) struct Host<'a> {
    lab: &'a Lab,
    node: String,
    name: String,
    pid: String,
    _holder: Running,
    netd: RefCell<Option<Running>>,
    tunnel: RefCell<Option<Running>>,
}

impl<'a> Host<'a> {
    /// Makes a host of a node. The lab's own netd leaves it, with all it made.
    pub(crate) fn of(lab: &'a Lab, node: &str) -> Result<Host<'a>> {
        lab.node_stop(node)?;
        // One that runs keeps its devices.
        lab.tunnel_kill(node)?;
        let state = lab.state()?;
        let config = state.node(node)?.dir.join("netd.toml").display().to_string();
        let netd = sibling("netd")?.display().to_string();
        lab.exec(node, &[&netd, "--config", &config, "clean"])?.text("netd clean")?;
        let group = state.node(node)?.cgroup.display().to_string();
        let name = format!("weft-{}", lab.name());
        let holder =
            lab.spawn(node, &["unshare", "--mount", "bash", "-ec", MOUNTS, "mounts", &group, &name])?;
        let pid = holder.wait_line(START_LIMIT).context("the file tree of a host")?;
        let (netd, tunnel) = (RefCell::new(None), RefCell::new(None));
        let host = Host { lab, node: node.into(), name, pid, _holder: holder, netd, tunnel };
        // Until then addresses and routes come by themselves.
        let settled = wait_until(START_LIMIT, || Ok(host.run("ip -6 address show tentative")?.is_empty()))?;
        ensure!(settled, "the IPv6 addresses of {node} stay tentative");
        Ok(host)
    }

    /// Runs a script on the host, whatever comes of it.
    pub(crate) fn try_run(&self, script: &str) -> Result<Output> {
        self.lab
            .exec_within(&self.node, &self.argv(script), STEP_LIMIT)
            .with_context(|| format!("on the host: {}", script.trim()))
    }

    /// Runs a script on the host that must succeed; its standard output.
    pub(crate) fn run(&self, script: &str) -> Result<String> {
        self.try_run(script)?.text(script.trim())
    }

    /// Starts a script on the host; it ends with the value.
    pub(crate) fn spawn(&self, script: &str) -> Result<Running> {
        self.lab.spawn(&self.node, &self.argv(script))
    }

    /// `make TARGET` with variables, as the host's operator; what it said.
    pub(crate) fn make(&self, target: &str, variables: &str) -> Result<String> {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
        self.run(&format!("make --no-print-directory -C {} {target} {variables} 2>&1", from.display()))
    }

    /// The variable by which `make install` takes the programs that this test uses.
    pub(crate) fn from() -> Result<String> {
        let folder = sibling("netd")?.parent().context("netd lies in no folder")?.display().to_string();
        Ok(format!("FROM={folder}"))
    }

    /// Starts the installed services as a machine without systemd would, and waits until runtimes can use netd.
    pub(crate) fn start(&self) -> Result<()> {
        let alive = self.tunnel.borrow_mut().as_mut().is_some_and(Running::alive);
        if !alive {
            let command = "exec /usr/local/bin/weft-wireguard >> /run/story/weft-wireguard.log 2>&1";
            *self.tunnel.borrow_mut() = Some(self.spawn(command)?);
        }
        *self.netd.borrow_mut() = Some(self.spawn("exec /usr/local/bin/netd >> /run/story/netd.log 2>&1")?);
        let ready = wait_until(READY_LIMIT, || {
            let ready = |text: &str| text.lines().next().is_some_and(|line| line.ends_with("READY"));
            Ok(ready(&self.try_run("weft status")?.stdout) && self.has(CONFLIST)?)
        })?;
        ensure!(ready, "netd is not ready:\n{}\n{}", self.try_run("weft status 2>&1")?.stdout, self.log()?);
        Ok(())
    }

    /// Whether a file is there.
    pub(crate) fn has(&self, path: &str) -> Result<bool> {
        Ok(self.try_run(&format!("test -s {path}"))?.ok())
    }

    /// Ends netd as an operator would.
    pub(crate) fn stop(&self) -> Result<()> {
        let Some(mut netd) = self.netd.borrow_mut().take() else { return Ok(()) };
        self.run(&format!("kill -TERM {}", self.netd_pids()?.join(" ")))?;
        netd.wait(START_LIMIT).context("netd does not end").map(drop)
    }

    /// Processes of the installed netd, also where its file was replaced.
    pub(crate) fn netd_pids(&self) -> Result<Vec<String>> {
        let all = "for process in /proc/[0-9]*; do readlink $process/exe | grep -q '^/usr/local/bin/netd' || continue; \
                   [ $(readlink $process/ns/mnt) != $(readlink /proc/self/ns/mnt) ] || basename $process; done";
        Ok(self.run(all)?.lines().map(str::to_owned).collect())
    }

    /// The end of netd's log.
    pub(crate) fn log(&self) -> Result<String> {
        Ok(self.try_run("tail -n 25 /run/story/netd.log")?.stdout)
    }

    /// All that Weft could have made or changed, as it is now.
    pub(crate) fn traces(&self) -> Result<Traces> {
        let mut all = BTreeSet::new();
        for (what, script) in
            [("network", NETWORK), ("sysctl", SYSCTLS), ("file", FILES), ("process", PROCESSES)]
        {
            let script = self.run(script)?;
            // The overlay holds each folder that something changed below, also those of the machine below.
            let known = |line: &&str| {
                !line.strip_suffix(" folder").is_some_and(|dir| Path::new("/").join(dir).is_dir())
            };
            all.extend(script.lines().filter(known).map(|line| format!("{what}: {}", line.trim_end())));
        }
        Ok(Traces(all))
    }

    /// The environment is the host's own, too: nothing of the test's caller leaks in.
    fn argv<'b>(&'b self, script: &'b str) -> Vec<&'b str> {
        let enter = ["nsenter", "--target", &self.pid, "--mount", "--cgroup", "--"];
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        [&enter[..], &["env", "-i", "HOME=/root", path, "bash", "-ec", ENTER, "enter", script]].concat()
    }
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        // Best effort: the lab's own teardown comes next and complains about what it cannot remove.
        let _ = self.lab.node_crash(&self.node);
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let hierarchies = mounts.lines().filter_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            [_, at, "cgroup", ..] => Some(Path::new(at).join(&self.name)),
            _ => None,
        });
        for group in hierarchies.filter(|group| group.is_dir()) {
            let group = group.display().to_string();
            let _ = wait_until(EMPTY_LIMIT, || {
                Ok(tool("find", &[&group, "-depth", "-type", "d", "-exec", "rmdir", "{}", "+"]).is_ok())
            });
        }
    }
}
