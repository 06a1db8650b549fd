// SPDX-License-Identifier: Apache-2.0
//! A DNS client in a pod's network namespace, for stories that ask more often than a program can be started; and small name
//! servers of the outside host.

use anyhow::{Context, Result, bail, ensure};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::str::FromStr;
use std::time::{Duration, Instant};
use weft_lab::{Lab, in_netns, wait_until};

/// The node's own address, in each family.
pub(crate) const NODE_DNS: [&str; 2] = ["169.254.53.53:53", "[fd00:53::53]:53"];
/// The cluster's, which other nodes answer, too.
pub(crate) const VIP_DNS: [&str; 2] = ["10.96.0.10:53", "[fd00:10:96::a]:53"];
/// Longer than anything the server does by design.
pub(crate) const PATIENCE: Duration = Duration::from_secs(8);

/// What was answered.
#[derive(Debug)]
pub(crate) struct Answer {
    /// As `dig` says it: `NOERROR`, `NXDOMAIN`, …
    pub(crate) rcode: String,
    /// `TYPE DATA`, sorted.
    pub(crate) data: Vec<String>,
    /// The same of the additional section, with the name in front.
    pub(crate) additional: Vec<String>,
    /// The whole of it.
    pub(crate) message: Message,
    pub(crate) bytes: usize,
    pub(crate) took: Duration,
}

/// How to ask.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct How {
    pub(crate) tcp: bool,
    /// The payload size of EDNS.
    pub(crate) edns: Option<u16>,
}

/// A client: a pod (or another member's namespace) and the server it asks.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    netns: String,
    pub(crate) server: SocketAddr,
}

impl Client {
    /// A pod that asks the server with this `IP:PORT`.
    pub(crate) fn pod(lab: &Lab, pod: &str, server: &str) -> Result<Client> {
        Client::at(&lab.pod(pod)?.netns, server)
    }

    /// Anybody in a namespace.
    pub(crate) fn at(netns: &str, server: &str) -> Result<Client> {
        Ok(Client { netns: netns.into(), server: server.parse()? })
    }

    /// Asks over UDP, once.
    pub(crate) fn ask(&self, name: &str, kind: &str) -> Result<Answer> {
        self.ask_how(name, kind, How::default())
    }

    /// Asks once.
    pub(crate) fn ask_how(&self, name: &str, kind: &str, how: How) -> Result<Answer> {
        self.ask_within(name, kind, how, PATIENCE)
    }

    /// Asks once, and waits for so long.
    pub(crate) fn ask_within(&self, name: &str, kind: &str, how: How, limit: Duration) -> Result<Answer> {
        let question = question(name, kind, how.edns)?;
        in_netns(&self.netns, || exchange(self.server, &question, how.tcp, limit))
            .with_context(|| format!("{name} {kind} of {}", self.server))
    }

    /// Data of an answer that must be a good one.
    pub(crate) fn data(&self, name: &str, kind: &str) -> Result<Vec<String>> {
        let answer = self.ask(name, kind)?;
        ensure!(answer.rcode == "NOERROR", "{name} {kind}: {}", answer.rcode);
        Ok(answer.data)
    }

    /// The answer has this code and exactly these data, in any order.
    pub(crate) fn says(&self, name: &str, kind: &str, rcode: &str, data: &[&str]) -> Result<()> {
        let answer = self.ask(name, kind)?;
        let mut wanted: Vec<String> = data.iter().map(|data| format!("{kind} {data}")).collect();
        wanted.sort();
        let what = format!("{name} {kind}: {} {:?} instead of {rcode} {wanted:?}", answer.rcode, answer.data);
        ensure!(answer.rcode == rcode && answer.data == wanted, "{what}");
        Ok(())
    }

    /// Runs something in the client's namespace.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        in_netns(&self.netns, work)
    }

    /// A connection to the server.
    pub(crate) fn connect(&self) -> Result<TcpStream> {
        let server = self.server;
        self.inside(|| {
            let stream = TcpStream::connect_timeout(&server, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok(stream)
        })
    }

    /// A UDP socket that is connected to the server.
    pub(crate) fn socket(&self, limit: Duration) -> Result<UdpSocket> {
        let server = self.server;
        self.inside(|| socket(server, limit))
    }
}

/// A question as `dig` asks it.
pub(crate) fn question(name: &str, kind: &str, edns: Option<u16>) -> Result<Message> {
    // In its own case, which `from_str` would lower.
    let mut name = Name::from_ascii(name).with_context(|| format!("name {name:?}"))?;
    name.set_fqdn(true);
    let kind = RecordType::from_str(kind).with_context(|| format!("type {kind:?}"))?;
    let mut message = Message::new(next_id(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    if let Some(size) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        message.set_edns(edns);
    }
    Ok(message)
}

/// Different ones for questions of one test.
fn next_id() -> u16 {
    static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(1);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

fn socket(server: SocketAddr, limit: Duration) -> Result<UdpSocket> {
    let any: IpAddr = if server.is_ipv4() { "0.0.0.0".parse()? } else { "::".parse()? };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(limit))?;
    Ok(socket)
}

fn exchange(server: SocketAddr, question: &Message, tcp: bool, limit: Duration) -> Result<Answer> {
    let bytes = question.to_vec()?;
    let start = Instant::now();
    let answer = if tcp {
        let mut stream = TcpStream::connect_timeout(&server, limit)?;
        stream.set_read_timeout(Some(limit))?;
        send_framed(&mut stream, &bytes)?;
        receive_framed(&mut stream)?
    } else {
        let socket = socket(server, limit)?;
        socket.send(&bytes)?;
        let mut buffer = vec![0; 65_535];
        let length = socket.recv(&mut buffer)?;
        buffer.truncate(length);
        buffer
    };
    read(&answer, question.metadata.id, start.elapsed())
}

/// Reads an answer to the question with this ID.
pub(crate) fn read(bytes: &[u8], id: u16, took: Duration) -> Result<Answer> {
    let message = Message::from_vec(bytes).context("the answer does not decode")?;
    ensure!(message.metadata.id == id, "an answer to another question");
    let shown = |records: &[hickory_proto::rr::Record], named: bool| {
        let mut data: Vec<String> = records
            .iter()
            .map(|record| {
                let name = if named { format!("{} ", record.name) } else { String::new() };
                format!("{name}{} {}", record.record_type(), record.data)
            })
            .collect();
        data.sort();
        data
    };
    Ok(Answer {
        rcode: rcode(&message)?,
        data: shown(&message.answers, false),
        additional: shown(&message.additionals, true),
        bytes: bytes.len(),
        took,
        message,
    })
}

/// Sends a message with its length in front (RFC 1035, 4.2.2).
pub(crate) fn send_framed(stream: &mut TcpStream, message: &[u8]) -> Result<()> {
    let framed = [&u16::try_from(message.len())?.to_be_bytes()[..], message].concat();
    Ok(stream.write_all(&framed)?)
}

/// Receives one.
pub(crate) fn receive_framed(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn rcode(message: &Message) -> Result<String> {
    Ok(match u16::from(message.metadata.response_code) {
        0 => "NOERROR".into(),
        1 => "FORMERR".into(),
        2 => "SERVFAIL".into(),
        3 => "NXDOMAIN".into(),
        4 => "NOTIMP".into(),
        5 => "REFUSED".into(),
        other => format!("RCODE{other}"),
    })
}

/// Asks again until the data are these; a node that is told of a change by somebody else's objects needs a moment.
pub(crate) fn becomes(client: &Client, name: &str, kind: &str, data: &[&str], limit: Duration) -> Result<()> {
    let mut last = Vec::new();
    let mut wanted: Vec<String> = data.iter().map(|data| format!("{kind} {data}")).collect();
    wanted.sort();
    let became = wait_until(limit, || {
        last = client.ask(name, kind)?.data;
        Ok(last == wanted)
    })?;
    if !became {
        bail!("{name} {kind} is {last:?} after {limit:?}, and not {wanted:?}");
    }
    Ok(())
}
