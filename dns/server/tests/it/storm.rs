// SPDX-License-Identifier: Apache-2.0
//! Many changes a second.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dns_server::ForwardConfig;
use dns_zone::{Zone, ZoneKind, ZoneService};
use hickory_proto::rr::{RData, RecordType};

use crate::client::{ask, question};
use crate::server::start;

/// Whose address says which change made it.
fn zone(change: u32) -> Zone {
    let address = Ipv4Addr::from(0x0A00_0000 + change);
    let service = ZoneService::new("default", "web", ZoneKind::ClusterIp(vec![address.into()]));
    Zone::build("cluster.local", 5, change.into(), [service], &[]).expect("a zone")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_storm_of_changes_no_answer_is_older_than_its_question() {
    let server = start(ForwardConfig::default());
    server.zone.store(Some(Arc::new(zone(0))));
    let (current, stop) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
    let storm = {
        let (zone_of_server, current, stop) = (server.zone.clone(), current.clone(), stop.clone());
        std::thread::spawn(move || {
            let started = Instant::now();
            for change in 1.. {
                if stop.load(Ordering::Relaxed) {
                    return change;
                }
                zone_of_server.store(Some(Arc::new(zone(change))));
                // Said only after it is in force: what is asked from now on must not get anything older.
                current.store(change, Ordering::SeqCst);
                std::thread::sleep((Duration::from_millis(1) * change).saturating_sub(started.elapsed()));
            }
            0
        })
    };
    let asked = question("web.default.svc.cluster.local.", RecordType::A);
    let mut took = Vec::new();
    // As long as it takes for so many changes, however fast the answers are.
    while current.load(Ordering::SeqCst) < 500 {
        let at_least = current.load(Ordering::SeqCst);
        let started = Instant::now();
        let answer = ask(server.address, &asked).await;
        took.push(started.elapsed());
        let RData::A(address) = &answer.answers[0].data else { panic!("{answer}") };
        let change = address.0.to_bits() - 0x0A00_0000;
        assert!(change >= at_least, "an answer of change {change} to a question after {at_least}");
    }
    stop.store(true, Ordering::Relaxed);
    storm.join().expect("no panic");
    took.sort();
    eprintln!("median {:?}, 99th of 100 {:?}", took[took.len() / 2], took[took.len() * 99 / 100]);
}
