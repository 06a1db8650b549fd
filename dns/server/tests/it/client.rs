// SPDX-License-Identifier: Apache-2.0
//! The client: one question, one answer, over UDP or TCP.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// Longer than anything the server does by design.
const PATIENCE: Duration = Duration::from_secs(8);

/// A question as `dig NAME TYPE` asks it, without EDNS.
pub(crate) fn question(name: &str, qtype: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), qtype));
    message
}

/// The same with EDNS and this payload size.
pub(crate) fn question_edns(name: &str, qtype: RecordType, payload: u16) -> Message {
    let mut message = question(name, qtype);
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.set_edns(edns);
    message
}

/// Asks over UDP.
pub(crate) async fn ask(server: SocketAddr, question: &Message) -> Message {
    let bytes = ask_bytes(server, &question.to_vec().expect("encodes")).await;
    Message::from_vec(&bytes).expect("the server's answer decodes")
}

/// Sends these bytes over UDP and returns the answer's.
pub(crate) async fn ask_bytes(server: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a client socket");
    socket.connect(server).await.expect("connects");
    socket.send(bytes).await.expect("sends");
    let mut buffer = vec![0; 65_535];
    let length =
        timeout(PATIENCE, socket.recv(&mut buffer)).await.expect("an answer in time").expect("receives");
    buffer.truncate(length);
    buffer
}

/// Asks over TCP.
pub(crate) async fn ask_tcp(server: SocketAddr, question: &Message) -> Message {
    let bytes = question.to_vec().expect("encodes");
    let mut stream = TcpStream::connect(server).await.expect("connects");
    let length = u16::try_from(bytes.len()).expect("a short question");
    stream.write_all(&[&length.to_be_bytes()[..], &bytes].concat()).await.expect("sends");
    let answer = timeout(PATIENCE, async {
        let length = stream.read_u16().await.expect("a length");
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await.expect("the whole answer");
        answer
    });
    Message::from_vec(&answer.await.expect("an answer in time")).expect("the server's answer decodes")
}

/// The answers as text, sorted: `NAME TTL IN TYPE DATA`.
pub(crate) fn answers(message: &Message) -> Vec<String> {
    let mut answers: Vec<String> = message.answers.iter().map(ToString::to_string).collect();
    answers.sort();
    answers
}
