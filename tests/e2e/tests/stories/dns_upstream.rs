// SPDX-License-Identifier: Apache-2.0
//! Name servers of the outside host that do what a story wants.

use crate::dns_client::{receive_framed, send_framed};
use anyhow::Result;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;
use weft_lab::{Lab, in_netns};

/// How soon a change of heart, or the end, is noticed.
const BEAT: Duration = Duration::from_millis(50);
const TTL_SECS: u32 = 30;

/// Answers A of every name with one address.
pub(crate) struct Upstream {
    mood: Arc<Mood>,
}

/// What it does and did.
pub(crate) struct Mood {
    answer: Ipv4Addr,
    /// Says nothing at all.
    pub(crate) silent: AtomicBool,
    /// Truncates everything over UDP.
    pub(crate) truncates: AtomicBool,
    /// Questions heard, without those for names of netd's own probes.
    pub(crate) heard: AtomicU64,
    /// Answers over TCP.
    pub(crate) over_tcp: AtomicU64,
    ended: AtomicBool,
}

impl Upstream {
    /// On a port of the outside host, UDP and TCP.
    pub(crate) fn start(lab: &Lab, port: u16, answer: Ipv4Addr) -> Result<Upstream> {
        let outside = lab.state()?.outside;
        let address = SocketAddr::from((outside.ip, port));
        let (datagrams, streams) = in_netns(&outside.netns, || {
            let datagrams = UdpSocket::bind(address)?;
            datagrams.set_read_timeout(Some(BEAT))?;
            let streams = TcpListener::bind(address)?;
            streams.set_nonblocking(true)?;
            Ok((datagrams, streams))
        })?;
        let mood = Arc::new(Mood {
            answer,
            silent: AtomicBool::new(false),
            truncates: AtomicBool::new(false),
            heard: AtomicU64::new(0),
            over_tcp: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        let (over_udp, over_tcp) = (mood.clone(), mood.clone());
        thread::spawn(move || over_udp.datagrams(&datagrams));
        thread::spawn(move || over_tcp.streams(&streams));
        Ok(Upstream { mood })
    }

    /// What it does and did.
    pub(crate) fn mood(&self) -> &Mood {
        &self.mood
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.mood.ended.store(true, Relaxed);
    }
}

impl Mood {
    fn datagrams(&self, socket: &UdpSocket) {
        let mut buffer = [0; 4_096];
        while !self.ended.load(Relaxed) {
            // A time-out, or an ICMP error of an earlier answer.
            let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
            if let Some(answer) = self.answer(&buffer[..length], false) {
                let _ = socket.send_to(&answer, peer);
            }
        }
    }

    fn streams(self: &Arc<Self>, listener: &TcpListener) {
        while !self.ended.load(Relaxed) {
            match listener.accept() {
                Ok((stream, _)) => {
                    let mood = self.clone();
                    thread::spawn(move || mood.stream(stream));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(BEAT),
                Err(_) => return,
            }
        }
    }

    fn stream(&self, mut stream: TcpStream) -> Option<()> {
        stream.set_nonblocking(false).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        loop {
            let question = receive_framed(&mut stream).ok()?;
            let answer = self.answer(&question, true)?;
            self.over_tcp.fetch_add(1, Relaxed);
            send_framed(&mut stream, &answer).ok()?;
        }
    }

    fn answer(&self, question: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let question = Message::from_vec(question).ok()?;
        let query = question.queries.first()?;
        let name = query.name().to_string().to_ascii_lowercase();
        if name.ends_with(".test.") {
            self.heard.fetch_add(1, Relaxed);
        }
        if self.silent.load(Relaxed) {
            return None;
        }
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.metadata.recursion_desired = question.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.add_query(query.clone());
        if !name.ends_with(".test.") {
            answer.metadata.response_code = ResponseCode::NXDomain;
        } else if !tcp && self.truncates.load(Relaxed) {
            answer.metadata.truncation = true;
        } else if query.query_type() == RecordType::A {
            let data = RData::A(A(self.answer));
            answer.add_answer(Record::from_rdata(query.name().clone(), TTL_SECS, data));
        }
        answer.to_vec().ok()
    }
}
