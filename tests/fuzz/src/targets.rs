// SPDX-License-Identifier: Apache-2.0
//! The targets: one file and one property each.

mod api;
mod cni_call;
mod cni_result;
mod dns_packet;
mod dns_skydns;
mod file_log;
mod journal;
mod wireguard_control;
mod wireguard_udp;

/// A property of any bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Also the name of its corpus.
    pub name: &'static str,
    /// Panics where the property does not hold. The label says what became of the input: an error's text, a count.
    pub check: fn(&[u8]) -> String,
}

/// All of them.
pub const TARGETS: [Target; 9] = [
    Target { name: "api", check: api::check },
    Target { name: "cni-call", check: cni_call::check },
    Target { name: "cni-result", check: cni_result::check },
    Target { name: "dns-packet", check: dns_packet::check },
    Target { name: "dns-skydns", check: dns_skydns::check },
    Target { name: "file-log", check: file_log::check },
    Target { name: "journal", check: journal::check },
    Target { name: "wireguard-control", check: wireguard_control::check },
    Target { name: "wireguard-udp", check: wireguard_udp::check },
];

/// The input with the head of each line written anew for its JSON, from the first brace on: mutations then get past the
/// checksum.
fn resealed(input: &[u8], seal: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let line = |line: &[u8]| match line.iter().position(|byte| *byte == b'{') {
        Some(start) if line.ends_with(b"\n") => seal(&line[start..line.len() - 1]),
        _ => line.to_vec(),
    };
    input.split_inclusive(|byte| *byte == b'\n').map(line).collect::<Vec<_>>().concat()
}
