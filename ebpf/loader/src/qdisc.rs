// SPDX-License-Identifier: Apache-2.0
//! Which qdisc an interface has for incoming packets: rtnetlink, of which nothing else is asked here.
//!
//! An ingress qdisc answers to the same handle as clsact, and takes a filter for egress as one for ingress.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

use crate::error::AttachError;

/// RTM_NEWQDISC and RTM_GETQDISC (linux/rtnetlink.h), NLMSG_ERROR and NLMSG_DONE (linux/netlink.h).
const NEW: u16 = 36;
const GET: u16 = 38;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// NLM_F_REQUEST | NLM_F_DUMP.
const DUMP: u16 = 1 | 0x300;
/// Length of `struct nlmsghdr` and `struct tcmsg`.
const HEADER_LEN: usize = 16;
const TC_LEN: usize = 20;
/// TCA_KIND.
const KIND: u16 = 1;
/// Longest datagram of a dump (the kernel's are 32 KiB at most).
const DATAGRAM_MAX: usize = 64 << 10;

/// Whether the interface has an ingress qdisc that is not clsact.
pub(crate) fn is_ingress_only(index: u32) -> Result<bool, AttachError> {
    let kinds = kinds(index).map_err(|source| AttachError::Kernel {
        action: "list the qdiscs for",
        program: "a TC program",
        target: format!("interface {index}"),
        source,
    })?;
    Ok(kinds.iter().any(|kind| kind == "ingress"))
}

/// The kinds of all qdiscs of an interface.
fn kinds(index: u32) -> io::Result<Vec<String>> {
    let socket: OwnedFd =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    let mut request = Vec::with_capacity(HEADER_LEN + TC_LEN);
    request.extend_from_slice(&((HEADER_LEN + TC_LEN) as u32).to_ne_bytes());
    request.extend_from_slice(&GET.to_ne_bytes());
    request.extend_from_slice(&DUMP.to_ne_bytes());
    // Sequence number and port; of `struct tcmsg` all but the index.
    request.extend_from_slice(&[0; 8 + 4]);
    request.extend_from_slice(&index.to_ne_bytes());
    request.resize(HEADER_LEN + TC_LEN, 0);
    sendto(socket.as_raw_fd(), &request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut kinds = Vec::new();
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if !read(buffer.get(..length).unwrap_or_default(), index, &mut kinds)? {
            return Ok(kinds);
        }
    }
}

/// Takes what a datagram says of the interface; `false` at the end of the dump.
fn read(mut datagram: &[u8], index: u32, kinds: &mut Vec<String>) -> io::Result<bool> {
    while let (Some(length), Some(kind)) = (u32_at(datagram, 0), u16_at(datagram, 4)) {
        let Some(payload) = datagram.get(HEADER_LEN..length as usize) else { break };
        match kind {
            DONE => return Ok(false),
            ERROR => {
                let code = u32_at(payload, 0).unwrap_or(0) as i32;
                return Err(io::Error::from_raw_os_error(code.saturating_abs()));
            }
            // The kernel lists those of all interfaces.
            NEW if u32_at(payload, 4) == Some(index) => {
                kinds.extend(kind_of(payload.get(TC_LEN..).unwrap_or_default()))
            }
            _ => {}
        }
        datagram = datagram.get((length as usize).next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

/// TCA_KIND among the attributes.
fn kind_of(mut attributes: &[u8]) -> Option<String> {
    while let (Some(length), Some(kind)) = (u16_at(attributes, 0), u16_at(attributes, 2)) {
        let value = attributes.get(4..usize::from(length))?;
        if kind == KIND {
            return Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned());
        }
        attributes = attributes.get(usize::from(length).next_multiple_of(4)..)?;
    }
    None
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, index: u32, name: &[u8]) -> Vec<u8> {
        let mut payload = vec![0; 4];
        payload.extend_from_slice(&index.to_ne_bytes());
        payload.resize(TC_LEN, 0);
        payload.extend_from_slice(&(4 + name.len() as u16).to_ne_bytes());
        payload.extend_from_slice(&KIND.to_ne_bytes());
        payload.extend_from_slice(name);
        let mut bytes = ((HEADER_LEN + payload.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.resize(HEADER_LEN, 0);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn kinds_of_the_interface_are_read_up_to_the_end() {
        let datagram =
            [message(NEW, 7, b"noqueue\0"), message(NEW, 8, b"fq\0"), message(NEW, 7, b"ingress\0")].concat();
        let mut kinds = Vec::new();
        assert!(read(&datagram, 7, &mut kinds).unwrap());
        assert_eq!(kinds, ["noqueue", "ingress"]);
        assert!(!read(&message(DONE, 0, b""), 7, &mut kinds).unwrap());
        for cut in 0..datagram.len() {
            let _ = read(&datagram[..cut], 7, &mut kinds);
        }
    }

    #[test]
    fn an_error_of_the_kernel_is_one() {
        let mut datagram = message(ERROR, 0, b"");
        datagram[HEADER_LEN..HEADER_LEN + 4].copy_from_slice(&(-libc::EPERM).to_ne_bytes());
        assert_eq!(read(&datagram, 7, &mut Vec::new()).unwrap_err().raw_os_error(), Some(libc::EPERM));
    }
}
