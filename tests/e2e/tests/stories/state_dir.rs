// SPDX-License-Identifier: Apache-2.0
//! The state directory: one netd at a time, and a disk that is full.

use crate::left::{addresses, nothing_left};
use crate::{have, lab};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use weft_lab::{Lab, PodSpec, Running, sibling, wait_until};

const AT_ONCE: Duration = Duration::from_secs(3);
const START_LIMIT: Duration = Duration::from_secs(20);
/// Enough to fill the last page of the journal by what failed ADDs write into it.
const REFUSED_ADDS_MAX: u32 = 60;

#[test]
fn a_second_netd_is_refused_and_the_first_goes_on() -> Result<()> {
    let Some(lab) = lab("second", 1)? else { return Ok(()) };
    let a = lab.pod_add(&PodSpec::new("n1", "a"))?;
    let before = lab.state()?.node("n1")?.process;
    let folder = lab.state()?.node("n1")?.dir.clone();
    let netd = sibling("netd")?.display().to_string();
    let config = folder.join("netd.toml").display().to_string();
    let elsewhere = folder.join("elsewhere").display().to_string();
    let same: &[&str] = &[];
    for other in [same, &["--run-dir", &elsewhere, "--metrics-listen", "127.0.0.1:9999"]] {
        let begun = Instant::now();
        let second = lab.exec("n1", &[&[netd.as_str(), "--config", &config], other].concat())?;
        ensure!(begun.elapsed() < AT_ONCE, "it took {:?}", begun.elapsed());
        ensure!(second.code == Some(1), "{second:?}");
        let state = folder.join("state").display().to_string();
        for word in ["another netd", state.as_str(), "stop it first"] {
            ensure!(second.stderr.contains(word), "{word:?} is missing in: {}", second.stderr);
        }
    }
    // A clean beside a running netd would be worse.
    let clean = lab.exec("n1", &[&netd, "--config", &config, "clean"])?;
    ensure!(!clean.ok(), "`netd clean` beside a running netd");

    ensure!(lab.state()?.node("n1")?.process == before && lab.status("n1")?.ready, "the first has ended");
    let b = lab.pod_add(&PodSpec::new("n1", "b"))?;
    let held = addresses(&lab, "n1")?;
    lab.node_kill("n1")?;
    lab.node_start("n1")?;
    ensure!(addresses(&lab, "n1")? == held && held.len() == 2, "{held:?}, now {:?}", addresses(&lab, "n1")?);
    for pod in [&a, &b] {
        let check = weft_lab::cni(lab.name(), pod, "CHECK")?;
        ensure!(check.ok(), "{}: {}", pod.name, check.stdout);
    }
    ensure!(lab.exec("a", &["ping", "-c1", "-W1", &b.ips[0].to_string()])?.ok(), "a does not reach b");
    lab.down()
}

#[test]
fn a_full_disk_refuses_adds_and_loses_nothing() -> Result<()> {
    if !have("unshare", "fulldisk") || !have("etcdctl", "fulldisk") {
        return Ok(());
    }
    let Some(lab) = lab("fulldisk", 1)? else { return Ok(()) };
    let disk = SmallDisk::under_n1(&lab)?;
    let first = disk.start()?;
    let a = lab.pod_add(&PodSpec::new("n1", "a"))?;
    lab.pod_add(&PodSpec::new("n1", "gone"))?;
    let held = addresses(&lab, "n1")?;

    disk.fill()?;
    let (mut said, mut refused) = (BTreeSet::new(), 0);
    let wanted = ["the address journal cannot be written", "cannot record the attachment"];
    let told = |said: &BTreeSet<String>, word: &str| said.iter().any(|error| error.contains(word));
    while refused < REFUSED_ADDS_MAX && !wanted.iter().all(|word| told(&said, word)) {
        let error = match lab.pod_add(&PodSpec::new("n1", &format!("refused{refused}"))) {
            Ok(pod) => anyhow::bail!("ADD on a full disk gave {:?}", pod.ips),
            Err(error) => error.to_string(),
        };
        ensure!(error.contains("No space left on device"), "{error}");
        said.insert(error);
        refused += 1;
    }
    println!("fulldisk: {refused} ADDs were refused");
    for word in wanted {
        ensure!(told(&said, word), "{word:?} was not among {said:#?}");
    }
    ensure!(addresses(&lab, "n1")? == held, "{:?} instead of {held:?}", addresses(&lab, "n1")?);
    ensure!(lab.exec("n1", &["ping", "-c1", "-W1", &a.ips[0].to_string()])?.ok(), "the pod suffers");

    // A DEL cannot be recorded either: it says so, and takes nothing before it can.
    let del = weft_lab::cni(lab.name(), &lab.pod("gone")?, "DEL")?;
    ensure!(
        !del.ok() && del.stdout.contains("No space left on device"),
        "DEL on a full disk: {}",
        del.stdout
    );
    ensure!(addresses(&lab, "n1")? == held, "{:?} instead of {held:?}", addresses(&lab, "n1")?);

    disk.free()?;
    lab.pod_rm("n1", "gone").context("with space again")?;
    let b = lab.pod_add(&PodSpec::new("n1", "b")).context("with space again")?;
    let held = addresses(&lab, "n1")?;
    ensure!(held.len() == 2, "{held:?}");

    // Killed and started while the disk is full again: what was answered for is there, and pods go on.
    disk.fill()?;
    ensure!(lab.pod_add(&PodSpec::new("n1", "refused")).is_err());
    drop(first);
    let _second = disk.start()?;
    ensure!(addresses(&lab, "n1")? == held, "{:?} instead of {held:?}", addresses(&lab, "n1")?);
    ensure!(lab.exec("n1", &["ping", "-c1", "-W1", &b.ips[0].to_string()])?.ok(), "the pod suffers");
    ensure!(lab.pod_add(&PodSpec::new("n1", "refused")).is_err());
    disk.free()?;
    for pod in [&a, &b] {
        let check = weft_lab::cni(lab.name(), pod, "CHECK")?;
        ensure!(check.ok(), "{}: {}", pod.name, check.stdout);
        lab.pod_rm("n1", &pod.name)?;
    }
    lab.pod_add(&PodSpec::new("n1", "c"))?;
    lab.pod_rm("n1", "c")?;
    let left = addresses(&lab, "n1")?;
    ensure!(left.is_empty(), "{left:?}");
    let drafts = disk.drafts()?;
    ensure!(drafts.is_empty(), "what could not be written is left: {drafts:?}");
    nothing_left(&lab, "n1")?;
    lab.down()
}

/// n1's state directory on a file system of a few pages, seen in a mount namespace of its own.
struct SmallDisk<'a> {
    lab: &'a Lab,
    /// Holds the mount namespace.
    _holder: Running,
    pid: String,
    state: PathBuf,
}

impl<'a> SmallDisk<'a> {
    fn under_n1(lab: &'a Lab) -> Result<SmallDisk<'a>> {
        lab.node_stop("n1")?;
        let state = lab.state()?.node("n1")?.dir.join("state");
        // The node's records in front of the new file system: the tests look there.
        let script = format!(
            "cp -a {state} {state}.kept && mount -t tmpfs -o size=256k,nr_inodes=256 small {state} && \
             cp -a {state}.kept/. {state}/ && echo $$ && exec sleep 600",
            state = state.display()
        );
        let holder = lab.spawn("n1", &["unshare", "--mount", "sh", "-ec", &script])?;
        let pid = holder.wait_line(Duration::from_secs(5))?;
        Ok(SmallDisk { lab, _holder: holder, pid, state })
    }

    /// Starts netd in that mount namespace; it is killed when the value is dropped.
    fn start(&self) -> Result<Running> {
        let netd = sibling("netd")?.display().to_string();
        let config = self.state.with_file_name("netd.toml").display().to_string();
        let mounts = format!("--mount=/proc/{}/ns/mnt", self.pid);
        let netd = self.lab.spawn("n1", &["nsenter", &mounts, &netd, "--config", &config])?;
        let ready = wait_until(START_LIMIT, || Ok(self.lab.status("n1").is_ok_and(|status| status.ready)))?;
        ensure!(ready, "not ready: {}", netd.errors().join("\n"));
        Ok(netd)
    }

    /// The state directory as netd sees it.
    fn seen(&self) -> PathBuf {
        Path::new("/proc")
            .join(&self.pid)
            .join("root")
            .join(self.state.strip_prefix("/").unwrap_or(&self.state))
    }

    fn fill(&self) -> Result<()> {
        let path = self.seen().join("filler");
        let written = fs::write(&path, vec![0; 1 << 20]);
        ensure!(
            written.is_err_and(|error| error.kind() == std::io::ErrorKind::StorageFull),
            "{} takes a MiB",
            path.display()
        );
        Ok(())
    }

    fn free(&self) -> Result<()> {
        fs::remove_file(self.seen().join("filler")).context("the filler")
    }

    /// Temporary files that nobody will rename.
    fn drafts(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for folder in [self.seen(), self.seen().join("attachments")] {
            let names =
                fs::read_dir(folder)?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
            found.extend(names.filter(|name| name.ends_with(".tmp")));
        }
        Ok(found)
    }
}
