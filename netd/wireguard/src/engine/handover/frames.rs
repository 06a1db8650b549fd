// SPDX-License-Identifier: Apache-2.0
//! Texts with descriptors on a stream: magic, length, text; the descriptors ride on the first byte.
#![allow(unsafe_code, reason = "received descriptors come as numbers; the block says why we own them")]

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use zeroize::Zeroizing;

const MAGIC: [u8; 4] = *b"WWG1";
const HEADER_BYTES: usize = 8;
/// Tens of thousands of peers.
const TEXT_BYTES_MAX: usize = 32 << 20;
/// TUN, configuration socket, late packets, two UDP sockets.
const DESCRIPTORS_MAX: usize = 5;

/// One message. Its text may hold keys.
pub(super) struct Frame {
    pub text: Zeroizing<String>,
    pub descriptors: Vec<OwnedFd>,
}

pub(super) fn send(mut stream: &UnixStream, text: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let len = u32::try_from(text.len()).map_err(io::Error::other)?;
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&MAGIC);
    header[4..].copy_from_slice(&len.to_be_bytes());
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &control[..] };
    let sent =
        sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&header)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    stream.write_all(&header[sent..])?;
    stream.write_all(text.as_bytes())
}

pub(super) fn receive(mut stream: &UnixStream) -> io::Result<Frame> {
    let mut header = [0; HEADER_BYTES];
    let mut space = nix::cmsg_space!([RawFd; DESCRIPTORS_MAX]);
    let (read, descriptors) = {
        let mut slices = [IoSliceMut::new(&mut header)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
        let mut descriptors = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel opened these numbers for us just now, and nobody else knows them.
                descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        (message.bytes, descriptors)
    };
    if read == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    stream.read_exact(&mut header[read..])?;
    let len = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
    if header[..4] != MAGIC || len > TEXT_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a handover message"));
    }
    let mut text = Zeroizing::new(vec![0; len]);
    stream.read_exact(&mut text)?;
    let text =
        std::str::from_utf8(&text).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?.to_owned();
    Ok(Frame { text: Zeroizing::new(text), descriptors })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_text_and_a_descriptor_arrive_together() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut read, mut write) = io::pipe().unwrap();
        // More than a socket holds: the other side reads meanwhile.
        let long = "x".repeat(1 << 20);
        let sent = long.clone();
        let sender = std::thread::spawn(move || {
            send(&here, "device\n", &[read.as_fd()]).unwrap();
            send(&here, &sent, &[]).unwrap();
            let mut byte = [0];
            read.read_exact(&mut byte).unwrap();
            byte[0]
        });
        let mut first = receive(&there).unwrap();
        assert_eq!(&*first.text, "device\n");
        assert_eq!(first.descriptors.len(), 1);
        assert_eq!(*receive(&there).unwrap().text, long);
        write.write_all(b"!").unwrap();
        assert_eq!(sender.join().unwrap(), b'!');
        drop(first.descriptors.pop());
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let (mut here, there) = UnixStream::pair().unwrap();
        here.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert!(receive(&there).is_err());
        let (here, there) = UnixStream::pair().unwrap();
        drop(here);
        assert!(receive(&there).is_err());
    }
}
