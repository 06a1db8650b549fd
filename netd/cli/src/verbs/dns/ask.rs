// SPDX-License-Identifier: Apache-2.0
//! One question to one server: UDP, and TCP where the answer is cut short.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::Message;
use netd_api::DnsQuestion;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// A server that takes longer is as good as one that does not answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Over UDP a question or its answer may get lost.
const TRIES: usize = 2;
/// What we take over UDP (RFC 9715), and the version and flags of EDNS.
const OPT: [u8; 11] = [0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0];
/// Octets of a header.
const HEADER: usize = 12;

/// What counts of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// The code, and type and data of the records in the answer section.
    Answer { rcode: String, records: BTreeSet<String> },
    /// Nothing that can be read, and why.
    Nothing(String),
}

/// A server and the socket towards it.
pub(super) struct Server {
    address: SocketAddr,
    socket: UdpSocket,
    next_id: u16,
}

impl Server {
    pub(super) async fn connect(address: SocketAddr) -> io::Result<Self> {
        let any: IpAddr =
            if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(address).await?;
        Ok(Self { address, socket, next_id: 1 })
    }

    pub(super) async fn ask(&mut self, question: &DnsQuestion) -> Said {
        let mut why = format!("no answer within {PATIENCE:?}");
        for _ in 0..TRIES {
            self.next_id = self.next_id.wrapping_add(1);
            let Some(packet) = packet(question, self.next_id) else {
                return Said::Nothing("this name or type cannot be asked for".to_owned());
            };
            match timeout(PATIENCE, self.exchange(&packet)).await {
                Ok(Ok(answer)) => return said(&answer),
                Ok(Err(error)) => why = error.to_string(),
                Err(_) => {}
            }
        }
        Said::Nothing(why)
    }

    async fn exchange(&self, packet: &[u8]) -> io::Result<Message> {
        self.socket.send(packet).await?;
        let mut buffer = vec![0; 65_535];
        loop {
            let len = self.socket.recv(&mut buffer).await?;
            // A late answer to an earlier question is none to this one.
            if buffer[..len.min(2)] != packet[..2] {
                continue;
            }
            let answer = decoded(&buffer[..len])?;
            return if answer.metadata.truncation { self.over_tcp(packet).await } else { Ok(answer) };
        }
    }

    async fn over_tcp(&self, packet: &[u8]) -> io::Result<Message> {
        let mut stream = TcpStream::connect(self.address).await?;
        let len = u16::try_from(packet.len()).map_err(io::Error::other)?;
        stream.write_all(&[&len.to_be_bytes()[..], packet].concat()).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        decoded(&answer)
    }
}

fn decoded(bytes: &[u8]) -> io::Result<Message> {
    Message::from_vec(bytes).map_err(|error| io::Error::other(format!("not a DNS message: {error}")))
}

fn said(message: &Message) -> Said {
    let record = |record: &hickory_proto::rr::Record| {
        format!("{} {}", record.record_type(), record.data.to_string().to_ascii_lowercase())
    };
    Said::Answer {
        rcode: message.metadata.response_code.to_string(),
        records: message.answers.iter().map(record).collect(),
    }
}

/// Recursion is not asked for: what is not theirs is not to be looked up elsewhere.
fn packet(question: &DnsQuestion, id: u16) -> Option<Vec<u8>> {
    let name = dns_zone::Name::parse(&question.name).ok()?;
    let record_type = dns_zone::RecordType::parse(&question.record_type)?;
    let mut packet = Vec::with_capacity(HEADER + name.as_wire().len() + 4 + OPT.len());
    packet.extend_from_slice(&id.to_be_bytes());
    packet.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    packet.extend_from_slice(name.as_wire());
    packet.extend_from_slice(&record_type.0.to_be_bytes());
    packet.extend_from_slice(&[0, 1]);
    packet.extend_from_slice(&OPT);
    Some(packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_one_that_others_read() {
        let question = DnsQuestion { name: "_http._tcp.web.".into(), record_type: "SRV".into() };
        let message = Message::from_vec(&packet(&question, 7).unwrap()).unwrap();
        assert_eq!(message.metadata.id, 7);
        assert_eq!(message.queries[0].name().to_ascii(), "_http._tcp.web.");
        assert_eq!(message.queries[0].query_type().to_string(), "SRV");
        assert!(packet(&DnsQuestion { name: "a..b".into(), record_type: "A".into() }, 1).is_none());
    }
}
