// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! The sockets the kernel hands to the cgroup programs, and the helpers called on them: safe functions around pointers.

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock,
    helpers::generated::{
        bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_set_retval,
    },
    programs::{SockAddrContext, SockContext},
};
use ebpf_abi::{Address, PROTO_TCP, PROTO_UDP, address::mapped};

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// The address that a cgroup program may look at and change: the peer of a socket or datagram. `V6` says which of the two
/// kinds of program this is: each may touch the fields of its own family only. An IPv6 one sees IPv4 in mapped form.
pub(crate) struct Peer<const V6: bool> {
    ctx: SockAddrContext,
}

impl<const V6: bool> Peer<V6> {
    #[inline(always)]
    pub(crate) fn new(ctx: SockAddrContext) -> Self {
        Self { ctx }
    }

    /// IP protocol number, when it is TCP or UDP; `None` for sockets of another protocol (ping).
    #[inline(always)]
    pub(crate) fn protocol(&self) -> Option<u8> {
        // SAFETY: the kernel's context pointer; this field may be read in every sock_addr program.
        let number = unsafe { (*self.ctx.sock_addr).protocol };
        transport(number)
    }

    /// Socket cookie.
    #[inline(always)]
    pub(crate) fn cookie(&self) -> u64 {
        // SAFETY: the helper takes the context of a sock_addr program.
        unsafe { bpf_get_socket_cookie(self.ctx.as_ptr()) }
    }

    /// Cookie of the socket's netns.
    #[inline(always)]
    pub(crate) fn netns(&self) -> u64 {
        // SAFETY: as above.
        unsafe { bpf_get_netns_cookie(self.ctx.as_ptr()) }
    }

    /// The port of the peer that the socket has already (this is not the hook that gives it one), network order; `None` for
    /// an unconnected one.
    #[inline(always)]
    pub(crate) fn connected_port(&self) -> Option<[u8; 2]> {
        let socket = self.socket()?;
        // SAFETY: the kernel lets a program read this field of the context's socket.
        let port = unsafe { (*socket).dst_port };
        if port == 0 { None } else { Some(port.to_ne_bytes()) }
    }

    /// Whether the socket is connected to this address.
    #[inline(always)]
    pub(crate) fn is_connected_to(&self, addr: &Address, port: [u8; 2]) -> bool {
        if self.connected_port() != Some(port) {
            return false;
        }
        let Some(socket) = self.socket() else { return false };
        let [a, b, c, d] = to_words(addr);
        // SAFETY: as above.
        unsafe {
            if V6 {
                let words = &raw const (*socket).dst_ip6;
                let word = words.cast::<u32>();
                word.read_volatile() == a
                    && word.add(1).read_volatile() == b
                    && word.add(2).read_volatile() == c
                    && word.add(3).read_volatile() == d
            } else {
                (*socket).dst_ip4 == d
            }
        }
    }

    #[inline(always)]
    fn socket(&self) -> Option<*const bpf_sock> {
        // SAFETY: the kernel's context pointer; this field may be read in every sock_addr program.
        let socket = unsafe { (*self.ctx.sock_addr).__bindgen_anon_1.sk };
        if socket.is_null() { None } else { Some(socket) }
    }

    /// Address and port (network order).
    #[inline(always)]
    pub(crate) fn address(&self) -> (Address, [u8; 2]) {
        let context = self.ctx.sock_addr;
        // SAFETY: the kernel's context pointer; these fields may be read in every sock_addr program of their family.
        let addr = unsafe {
            if V6 {
                let words = &raw const (*context).user_ip6;
                let word = words.cast::<u32>();
                from_words([
                    word.read_volatile(),
                    word.add(1).read_volatile(),
                    word.add(2).read_volatile(),
                    word.add(3).read_volatile(),
                ])
            } else {
                mapped((*context).user_ip4.to_ne_bytes())
            }
        };
        // SAFETY: as above. A u32 that holds a port of network order in its first two bytes.
        let port = unsafe { (*context).user_port };
        (addr, (port as u16).to_ne_bytes())
    }

    /// Replaces the peer.
    #[inline(always)]
    pub(crate) fn set_address(&self, addr: &Address, port: [u8; 2]) {
        let context = self.ctx.sock_addr;
        let [a, b, c, d] = to_words(addr);
        // SAFETY: the kernel's context pointer; these fields may be written in the programs we have.
        unsafe {
            if V6 {
                let words = &raw mut (*context).user_ip6;
                let word = words.cast::<u32>();
                word.write_volatile(a);
                word.add(1).write_volatile(b);
                word.add(2).write_volatile(c);
                word.add(3).write_volatile(d);
            } else {
                (*context).user_ip4 = d;
            }
            (*context).user_port = u32::from(u16::from_ne_bytes(port));
        }
    }
}

/// A socket of its own: it was bound, or is being closed.
pub(crate) struct Socket {
    ctx: SockContext,
}

impl Socket {
    #[inline(always)]
    pub(crate) fn new(ctx: SockContext) -> Self {
        Self { ctx }
    }

    /// IP protocol number, when it is TCP or UDP.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> Option<u8> {
        // SAFETY: the kernel's context pointer; this field may be read in every cgroup program for sockets.
        transport(unsafe { (*self.ctx.sock).protocol })
    }

    /// Socket cookie.
    #[inline(always)]
    pub(crate) fn cookie(&self) -> u64 {
        // SAFETY: the helper takes the context of a cgroup program for sockets.
        unsafe { bpf_get_socket_cookie(self.ctx.as_ptr()) }
    }

    /// Cookie of the socket's netns.
    #[inline(always)]
    pub(crate) fn netns(&self) -> u64 {
        // SAFETY: as above.
        unsafe { bpf_get_netns_cookie(self.ctx.as_ptr()) }
    }

    /// The port it was bound to, network order. In post_bind programs only.
    #[inline(always)]
    pub(crate) fn bound_port(&self) -> [u8; 2] {
        // SAFETY: the kernel's context pointer; post_bind programs may read this field: a number in the machine's order.
        let port = unsafe { (*self.ctx.sock).src_port };
        (port as u16).to_be_bytes()
    }

    /// The address it was bound to. In post_bind4 programs only.
    #[inline(always)]
    pub(crate) fn bound_address4(&self) -> Address {
        // SAFETY: as above.
        mapped(unsafe { (*self.ctx.sock).src_ip4 }.to_ne_bytes())
    }

    /// The address it was bound to. In post_bind6 programs only.
    #[inline(always)]
    pub(crate) fn bound_address6(&self) -> Address {
        // SAFETY: as above.
        unsafe {
            let words = &raw const (*self.ctx.sock).src_ip6;
            let word = words.cast::<u32>();
            from_words([
                word.read_volatile(),
                word.add(1).read_volatile(),
                word.add(2).read_volatile(),
                word.add(3).read_volatile(),
            ])
        }
    }
}

/// Makes the system call fail with this errno (without it a refused call says EPERM).
#[inline(always)]
pub(crate) fn fail_with(errno: i32) {
    // SAFETY: takes a number; in connect, sendmsg and post_bind programs it is the result of the system call.
    unsafe { bpf_set_retval(-errno) };
}

/// A pseudo-random number.
#[inline(always)]
pub(crate) fn random() -> u32 {
    // SAFETY: no arguments, no requirements.
    unsafe { bpf_get_prandom_u32() }
}

/// Seconds of CLOCK_MONOTONIC.
#[inline(always)]
pub(crate) fn now_secs() -> u32 {
    // SAFETY: no arguments, no requirements.
    (unsafe { bpf_ktime_get_ns() } / NANOS_PER_SECOND) as u32
}

#[inline(always)]
fn transport(number: u32) -> Option<u8> {
    const TCP: u32 = PROTO_TCP as u32;
    const UDP: u32 = PROTO_UDP as u32;
    match number {
        TCP => Some(PROTO_TCP),
        UDP => Some(PROTO_UDP),
        _ => None,
    }
}

/// An address from the words of a context. By numbers: arrays would be copied byte by byte.
#[inline(always)]
fn from_words([a, b, c, d]: [u32; 4]) -> Address {
    let number = u128::from(a) | u128::from(b) << 32 | u128::from(c) << 64 | u128::from(d) << 96;
    number.to_le_bytes()
}

/// An address as a context takes it.
#[inline(always)]
fn to_words(address: &Address) -> [u32; 4] {
    let number = u128::from_le_bytes(*address);
    [number as u32, (number >> 32) as u32, (number >> 64) as u32, (number >> 96) as u32]
}
