// SPDX-License-Identifier: Apache-2.0
//! The outside host's servers: an upstream DNS on :53 and an echo of the peer's address on :7.
//!
//! The zone: A of `<anything>.example.test` is the far address, and AAAA in a lab with IPv6; other types are NODATA;
//! all else is NXDOMAIN.

use super::sockets;
use crate::names::{OUTSIDE_FAR_IP, OUTSIDE_FAR_IP6};
use crate::outside::ECHO_PORT;
use anyhow::Result;
use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::str::FromStr;
use std::thread;
use std::time::Duration;

const DNS_PORT: u16 = 53;
/// The suffix of every name served here.
pub(crate) const ZONE: &str = "example.test.";
const TTL_SECS: u32 = 30;
const QUESTION_MAX: usize = 4096;
const IDLE_LIMIT: Duration = Duration::from_secs(10);

/// Serves until it is ended.
pub(crate) fn serve_outside(v6: bool) -> Result<()> {
    for streams in sockets::listeners(DNS_PORT)? {
        thread::spawn(move || each(&streams, move |stream| dns_stream(stream, v6)));
    }
    for echo in sockets::listeners(ECHO_PORT)? {
        thread::spawn(move || each(&echo, |mut stream| writeln!(stream, "{}", stream.peer_addr()?)));
    }
    let datagrams = sockets::datagrams(DNS_PORT)?;
    let threads: Vec<_> =
        datagrams.into_iter().map(|socket| thread::spawn(move || dns_datagrams(&socket, v6))).collect();
    for thread in threads {
        // They never end by themselves.
        let _ = thread.join();
    }
    Ok(())
}

fn each(listener: &TcpListener, serve: impl Fn(TcpStream) -> io::Result<()> + Copy + Send + 'static) {
    for stream in listener.incoming().flatten() {
        thread::spawn(move || serve(stream));
    }
}

fn dns_datagrams(socket: &UdpSocket, v6: bool) {
    let mut buffer = [0; QUESTION_MAX];
    loop {
        // An ICMP error of an earlier answer says nothing about the next question.
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
        if let Some(answer) = answer(&buffer[..length], v6) {
            let _ = socket.send_to(&answer, peer);
        }
    }
}

/// DNS over TCP: each message after its length in two bytes (RFC 1035, 4.2.2).
fn dns_stream(mut stream: TcpStream, v6: bool) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE_LIMIT))?;
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut question = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut question)?;
        let Some(answer) = answer(&question, v6) else { return Ok(()) };
        let mut framed = (answer.len() as u16).to_be_bytes().to_vec();
        framed.extend(answer);
        stream.write_all(&framed)?;
    }
}

fn answer(question: &[u8], v6: bool) -> Option<Vec<u8>> {
    let question = Message::from_vec(question).ok()?;
    let query = question.queries.first()?;
    let zone = Name::from_str(ZONE).ok()?;
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    answer.metadata.message_type = MessageType::Response;
    answer.metadata.recursion_desired = question.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.add_query(query.clone());
    if !zone.zone_of(query.name()) {
        answer.metadata.response_code = ResponseCode::NXDomain;
        return answer.to_vec().ok();
    }
    let data = match query.query_type() {
        RecordType::A => Some(RData::A(A(OUTSIDE_FAR_IP))),
        RecordType::AAAA if v6 => Some(RData::AAAA(AAAA(OUTSIDE_FAR_IP6))),
        _ => None,
    };
    if let Some(data) = data {
        answer.add_answer(Record::from_rdata(query.name().clone(), TTL_SECS, data));
    }
    answer.to_vec().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{OpCode, Query};

    fn ask(name: &str, kind: RecordType, v6: bool) -> Message {
        let mut question = Message::new(7, MessageType::Query, OpCode::Query);
        question.add_query(Query::query(Name::from_str(name).unwrap(), kind));
        Message::from_vec(&answer(&question.to_vec().unwrap(), v6).unwrap()).unwrap()
    }

    #[test]
    fn names_below_the_zone_have_the_far_address_and_others_do_not_exist() {
        let found = ask("www.example.test.", RecordType::A, false);
        assert_eq!(found.answers.len(), 1);
        assert_eq!(found.answers[0].data.to_string(), OUTSIDE_FAR_IP.to_string());
        let other_type = ask("www.example.test.", RecordType::AAAA, false);
        assert_eq!((other_type.answers.len(), other_type.metadata.response_code), (0, ResponseCode::NoError));
        let v6 = ask("www.example.test.", RecordType::AAAA, true);
        assert_eq!(v6.answers[0].data.to_string(), OUTSIDE_FAR_IP6.to_string());
        let absent = ask("www.example.org.", RecordType::A, false);
        assert_eq!(absent.metadata.response_code, ResponseCode::NXDomain);
        assert!(answer(b"not DNS", true).is_none());
    }
}
