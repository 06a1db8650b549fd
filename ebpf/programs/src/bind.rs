// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! A node port that is a frontend cannot be bound on the host: the program behind it would wait for connections that go to
//! backends, and wonder.

use ebpf_abi::{
    Address, Counter, FrontendKey, SCOPE_INTERNAL,
    address::{self, UNSPECIFIED, UNSPECIFIED4},
};

use crate::{
    maps,
    peer::{self, Socket},
    socket::{ALLOW, REFUSE},
};

/// asm-generic/errno.h: what a port says that another socket has.
const EADDRINUSE: i32 = 98;

/// Whether a bound socket may keep its port. `bound` is its address.
#[inline(always)]
pub(crate) fn check(socket: &Socket, bound: impl FnOnce() -> Address) -> i32 {
    let Some(proto) = socket.protocol() else { return ALLOW };
    let port = socket.bound_port();
    let Some(config) = maps::config() else { return ALLOW };
    if !config.is_node_port(port) || !config.is_host_netns(socket.netns()) {
        return ALLOW;
    }
    let address = bound();
    let taken = |addr| maps::service(&FrontendKey { addr, port, proto, scope: SCOPE_INTERNAL }).is_some();
    let conflict = if address == UNSPECIFIED {
        // An IPv6 socket at :: has the port in both families (unless it is told not to, which is not seen here).
        taken(UNSPECIFIED) || taken(UNSPECIFIED4)
    } else if answers(&address) {
        taken(address::any(&address))
    } else {
        false
    };
    if !conflict {
        return ALLOW;
    }
    maps::count(Counter::BindConflict);
    peer::fail_with(EADDRINUSE);
    REFUSE
}

/// Whether node ports answer at an address of the host.
#[inline(always)]
fn answers(address: &Address) -> bool {
    address::is_unspecified(address) || address::is_loopback(address) || maps::answers_node_ports(address)
}
