// SPDX-License-Identifier: Apache-2.0
//! A service that the node's agent serves itself, before others.

use std::net::IpAddr;

use ebpf_abi::service::{ALGORITHM_AGENT_FIRST, ALGORITHM_RANDOM, SERVICE_AGENT_SILENT};
use ebpf_abi::{FrontendKey, SCOPE_INTERNAL};
use lb::{
    Backend, BackendPort, Catalogue, Compiler, Image, Limits, Metadata, NodeView, Port, Protocol, Service,
    Verdict, VerdictState,
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Cluster DNS with the agent's server 169.254.53.53, which is there before `others`.
fn image(compiler: &mut Compiler, others: &[&str]) -> Image {
    let metadata = Metadata { name: "dns".into(), namespace: "sys".into(), ..Metadata::default() };
    let mut service = Service { metadata, ..Service::default() };
    service.set_cluster_ips(&[ip("10.96.0.10")]);
    service.spec.ports =
        vec![Port { name: "dns".into(), protocol: Protocol::Udp, port: 53, ..Port::default() }];
    let port = BackendPort { name: Some("dns".into()), protocol: Protocol::Udp, port: 53 };
    let verdict = Verdict { state: VerdictState::Up, source: "test" };
    let backend = |address: &str| Backend::new(ip(address), [port.clone()].into(), verdict);
    let mut backends: Vec<Backend> = others.iter().map(|address| backend(address)).collect();
    backends.push(Backend { of_agent: !others.is_empty(), ..backend("169.254.53.53") });
    backends.sort_by_key(|backend| backend.address);
    let mut catalogue = Catalogue::default();
    catalogue.set_own(service, backends);
    compiler.update(&catalogue.table(1), &NodeView::default(), None, 0);
    compiler.image()
}

#[test]
fn the_agent_s_own_server_comes_first_and_its_address_leads_to_others() {
    let mut compiler = Compiler::new(Limits::default());
    let image = image(&mut compiler, &["10.244.1.1", "10.244.2.1", "203.0.113.1"]);
    let frontend = |address: &str| {
        let key = FrontendKey::new(ip(address), 53, ebpf_abi::Protocol::Udp, SCOPE_INTERNAL);
        image.services.get(&key).copied()
    };
    let (vip, own) = (frontend("10.96.0.10").unwrap(), frontend("169.254.53.53").unwrap());
    assert_eq!((vip.slot_count, vip.algorithm), (4, ALGORITHM_AGENT_FIRST));
    assert_eq!((own.slot_offset, own.slot_count, own.algorithm), (vip.slot_offset, 4, ALGORITHM_AGENT_FIRST));
    assert_eq!((vip.flags & SERVICE_AGENT_SILENT, own.flags), (0, SERVICE_AGENT_SILENT));
    let backends: Vec<_> =
        (0..4).map(|slot| image.backends[&image.slots[&(vip.slot_offset + slot)]]).collect();
    assert_eq!(backends[0].address(), ip("169.254.53.53"));
    assert!(backends[0].is_of_agent() && backends[1..].iter().all(|backend| !backend.is_of_agent()));
    assert_eq!(frontend("10.244.1.1"), None, "others' addresses are not asked for");
}

#[test]
fn alone_it_is_a_backend_like_any_other() {
    let mut compiler = Compiler::new(Limits::default());
    let image = image(&mut compiler, &[]);
    let services: Vec<_> = image.services.values().filter(|value| value.slot_count > 0).collect();
    assert_eq!(services.len(), 1);
    assert_eq!((services[0].algorithm, services[0].flags), (ALGORITHM_RANDOM, 0));
    assert!(
        image.backends.values().all(|backend| !backend.is_of_agent()),
        "it is there even when it is silent"
    );
}
