// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! The programs at the cgroup root: for the sockets of pods and host processes.

use aya_ebpf::{
    macros::{cgroup_sock, cgroup_sock_addr},
    programs::{SockAddrContext, SockContext},
};

use crate::{
    bind,
    peer::{Peer, Socket},
    socket,
};

/// A connect(2) of a TCP or UDP socket: to a frontend becomes to a backend.
#[cgroup_sock_addr(connect4)]
fn weft_connect4(ctx: SockAddrContext) -> i32 {
    socket::connect(&Peer::<false>::new(ctx))
}

/// The same for IPv6, and for IPv4 addresses in mapped form.
#[cgroup_sock_addr(connect6)]
fn weft_connect6(ctx: SockAddrContext) -> i32 {
    socket::connect(&Peer::<true>::new(ctx))
}

/// A sendto(2) or sendmsg(2) with an address on a UDP socket: to a frontend becomes to a backend, for one datagram. IPv6
/// sockets come here with IPv4 addresses, too.
#[cgroup_sock_addr(sendmsg4)]
fn weft_sendmsg4(ctx: SockAddrContext) -> i32 {
    socket::send(&Peer::<false>::new(ctx))
}

/// The same for IPv6.
#[cgroup_sock_addr(sendmsg6)]
fn weft_sendmsg6(ctx: SockAddrContext) -> i32 {
    socket::send(&Peer::<true>::new(ctx))
}

/// A recvfrom(2) or recvmsg(2) on a UDP socket: the backend's answer comes from the frontend.
#[cgroup_sock_addr(recvmsg4)]
fn weft_recvmsg4(ctx: SockAddrContext) -> i32 {
    socket::receive(&Peer::<false>::new(ctx))
}

/// The same for IPv6, and for IPv4 addresses in mapped form.
#[cgroup_sock_addr(recvmsg6)]
fn weft_recvmsg6(ctx: SockAddrContext) -> i32 {
    socket::receive(&Peer::<true>::new(ctx))
}

/// A getpeername(2): the peer is the frontend that the program asked for.
#[cgroup_sock_addr(getpeername4)]
fn weft_getpeername4(ctx: SockAddrContext) -> i32 {
    socket::name_peer(&Peer::<false>::new(ctx))
}

/// The same for IPv6, and for IPv4 addresses in mapped form.
#[cgroup_sock_addr(getpeername6)]
fn weft_getpeername6(ctx: SockAddrContext) -> i32 {
    socket::name_peer(&Peer::<true>::new(ctx))
}

/// A socket is closed.
#[cgroup_sock(sock_release)]
fn weft_sock_release(ctx: SockContext) -> i32 {
    socket::release(&Socket::new(ctx))
}

/// A bind(2) has found a port.
#[cgroup_sock(post_bind4)]
fn weft_post_bind4(ctx: SockContext) -> i32 {
    let socket = Socket::new(ctx);
    bind::check(&socket, || socket.bound_address4())
}

/// The same for IPv6.
#[cgroup_sock(post_bind6)]
fn weft_post_bind6(ctx: SockContext) -> i32 {
    let socket = Socket::new(ctx);
    bind::check(&socket, || socket.bound_address6())
}
