// SPDX-License-Identifier: Apache-2.0
//! One host whose store is a file: nothing that was promised is lost, however netd ends.

use crate::ipam::{agree, reach, show, soon};
use crate::{lab_with, service};
use anyhow::{Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use weft_lab::{Lab, PodSpec, UpOptions, wait_until};

/// Ends of netd in the middle of writes.
const KILLS: usize = 3;

fn alone(story: &str) -> Result<Option<Lab>> {
    let options = UpOptions::alone(&Lab::unique_name(story));
    lab_with(options)
}

#[test]
fn pods_and_services_work_without_etcd_and_over_a_restart() -> Result<()> {
    let Some(lab) = alone("file")? else { return Ok(()) };
    let web = lab.pod_add(&PodSpec::new("n1", "web").label("app", "web"))?;
    lab.pod_add(&PodSpec::new("n1", "client"))?;
    let _server = lab.serve("web", "web", &[8080], &[])?;
    let vip = lab.apply(&service("web", "web"))?.results[0].cluster_ip.unwrap();
    let sticky = lab.pod_add(&PodSpec::new("n1", "db").sticky("db"))?;
    lab.pod_rm("n1", "db")?;
    lab.weft("n1", &["ipam", "pool", "add", "more", "10.250.0.0/24"])?.text("pool add")?;
    let works = |from: &str| -> Result<()> {
        for to in [format!("{vip}:80"), format!("{}:8080", web.ips[0])] {
            let report = lab.probe(from, &["--to", &to, "--count", "5"])?;
            ensure!(report.all_ok(), "{from} to {to}: {}", report.failures());
        }
        let name = lab.query(from, &["web.default.svc.cluster.local", "A"])?;
        ensure!(name.data == [vip.to_string()], "{name:?}");
        Ok(())
    };
    works("client")?;
    for end in [Lab::node_stop as fn(&Lab, &str) -> Result<()>, Lab::node_kill] {
        let before = show(&lab, "n1")?;
        end(&lab, "n1")?;
        lab.node_start("n1")?;
        ensure!(show(&lab, "n1")? == before, "{} instead of {before}", show(&lab, "n1")?);
        works("client")?;
    }
    lab.pod_add(&PodSpec::new("n1", "late"))?;
    works("late")?;
    let again = lab.pod_add(&PodSpec::new("n1", "db").sticky("db"))?;
    ensure!(again.ips == sticky.ips, "{:?} instead of {:?}", again.ips, sticky.ips);
    agree(&lab, &["n1"])?;
    lab.down()
}

/// Pods and services that were acknowledged are there after each SIGKILL, and nothing else has an address.
#[test]
fn a_kill_in_the_middle_of_writes_loses_nothing() -> Result<()> {
    let Some(lab) = alone("torn")? else { return Ok(()) };
    let (pods, services) = (Mutex::new(BTreeMap::<String, IpAddr>::new()), Mutex::new(BTreeSet::new()));
    for round in 0..KILLS {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for index in 0.. {
                    let name = format!("p{round}-{index}");
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    if let Ok(pod) = lab.pod_add(&PodSpec::new("n1", &name)) {
                        pods.lock().unwrap().insert(name, pod.ips[0]);
                    }
                }
            });
            scope.spawn(|| {
                for index in 0.. {
                    let name = format!("s{round}-{index}");
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    if lab.apply(&service(&name, "web")).is_ok() {
                        services.lock().unwrap().insert(name);
                    }
                }
            });
            let wanted = (pods.lock().unwrap().len() + 3, services.lock().unwrap().len() + 2);
            let busy = wait_until(Duration::from_secs(10), || {
                anyhow::Ok(
                    pods.lock().unwrap().len() >= wanted.0 && services.lock().unwrap().len() >= wanted.1,
                )
            });
            let killed = lab.node_kill("n1");
            stop.store(true, Ordering::Relaxed);
            ensure!(busy?, "nothing was written in 10 s: {:?}", lab.node_log("n1", 20)?);
            killed
        })?;
        lab.node_start("n1")?;
        let (pods, services) = (pods.lock().unwrap().clone(), services.lock().unwrap().clone());
        let names: BTreeSet<_> = pods.keys().cloned().collect();
        let known = || anyhow::Ok(lab.ask("n1", async |client| client.pods().await)?);
        let known: BTreeMap<String, IpAddr> =
            known()?.into_iter().map(|pod| (pod.name, pod.ips[0])).collect();
        let lost: Vec<_> = pods.iter().filter(|(name, ip)| known.get(*name) != Some(ip)).collect();
        ensure!(lost.is_empty(), "lost in round {round}: {lost:?} of {known:?}");
        let told = lab.ask("n1", async |client| client.services().await)?;
        let told: BTreeSet<String> = told.into_iter().map(|service| service.name).collect();
        ensure!(services.is_subset(&told), "lost in round {round}: {:?}", services.difference(&told));
        // What an ADD that was cut off had is given back by the DEL that the runtime answers it with.
        let owners = || anyhow::Ok(show(&lab, "n1")?["addresses"].as_array().map_or(0, Vec::len));
        soon("one address each and the node's", owners, |count| *count == names.len() + 1)?;
    }
    let pods = pods.into_inner().unwrap();
    let addresses: BTreeSet<_> = pods.values().collect();
    ensure!(addresses.len() == pods.len(), "{pods:?}");
    let (first, last) = (pods.keys().next().unwrap(), pods.values().last().unwrap());
    reach(&lab, &[first, "n1"], &[*last])?;
    agree(&lab, &["n1"])?;
    lab.down()
}
