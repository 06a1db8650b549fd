// SPDX-License-Identifier: Apache-2.0
//! Many at once.

use crate::lab;
use anyhow::Result;
use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;
use weft_lab::{PodSpec, wait_until};

const PODS: usize = 24;
/// Several passes fit into it.
const SETTLED: Duration = Duration::from_secs(5);

#[test]
fn many_adds_at_once_give_no_address_twice() -> Result<()> {
    let Some(lab) = lab("race", 3)? else { return Ok(()) };
    let results: Vec<_> = thread::scope(|scope| {
        let add = |index: usize| {
            let lab = &lab;
            scope.spawn(move || {
                lab.pod_add(&PodSpec::new(&format!("n{}", index % 3 + 1), &format!("p{index}")))
            })
        };
        let threads: Vec<_> = (0..PODS).map(add).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let pods = results.into_iter().collect::<Result<Vec<_>>>()?;
    let addresses: BTreeSet<_> = pods.iter().flat_map(|pod| pod.ips.clone()).collect();
    assert_eq!(addresses.len(), PODS);
    let first = pods[0].ips[0].to_string();
    for pod in &pods[1..] {
        assert!(
            lab.exec(&pod.name, &["ping", "-c1", "-W2", &first])?.ok(),
            "{} cannot reach {first}",
            pod.name
        );
    }
    let removed: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> =
            pods.iter().map(|pod| scope.spawn(|| lab.pod_rm(&pod.node, &pod.name))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    removed.into_iter().collect::<Result<Vec<()>>>()?;
    for node in ["n1", "n2", "n3"] {
        // A pass that was under way may have missed a link that a DEL took; the next one knows that the pod is gone.
        let mut status = lab.status(node)?;
        assert_eq!(status.pods, 0, "{node}");
        wait_until(SETTLED, || {
            status = lab.status(node)?;
            Ok(status.pending.is_empty())
        })?;
        assert!(status.pending.is_empty(), "{node}: {:?}", status.pending);
        let left = lab.exec(node, &["ip", "-o", "link", "show", "type", "veth"])?.text("ip link")?;
        assert_eq!(left.lines().count(), 1, "{node} keeps host ends: {left}");
        assert!(lab.maps(node)?.pods.is_empty(), "{node} keeps map entries");
    }
    lab.down()
}
