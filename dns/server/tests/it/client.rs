// SPDX-License-Identifier: Apache-2.0
//! The client: one question, one answer, over UDP or TCP.

use std::net::SocketAddr;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
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
    let mut client = connect(server).await;
    client.send(question).await;
    client.receive().await
}

/// A client on a connection.
pub(crate) struct StreamClient<S> {
    stream: S,
}

/// Connects over TCP.
pub(crate) async fn connect(server: SocketAddr) -> StreamClient<TcpStream> {
    StreamClient { stream: TcpStream::connect(server).await.expect("connects") }
}

impl<S: AsyncRead + AsyncWrite + Unpin> StreamClient<S> {
    pub(crate) fn new(stream: S) -> Self {
        StreamClient { stream }
    }

    /// Sends a question and waits for nothing.
    pub(crate) async fn send(&mut self, question: &Message) {
        let bytes = question.to_vec().expect("encodes");
        let length = u16::try_from(bytes.len()).expect("a short question");
        self.send_bytes(&[&length.to_be_bytes()[..], &bytes].concat()).await;
    }

    /// Sends these bytes as they are.
    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("sends");
        self.stream.flush().await.expect("sends");
    }

    /// The next answer.
    pub(crate) async fn receive(&mut self) -> Message {
        let answer = timeout(PATIENCE, async {
            let length = self.stream.read_u16().await.expect("a length");
            let mut answer = vec![0; usize::from(length)];
            self.stream.read_exact(&mut answer).await.expect("the whole answer");
            answer
        });
        Message::from_vec(&answer.await.expect("an answer in time")).expect("the server's answer decodes")
    }

    /// Whether the server hangs up.
    pub(crate) async fn closed_by_server(&mut self) -> bool {
        let closed = timeout(2 * PATIENCE, self.stream.read_u8()).await;
        matches!(closed, Ok(Err(_)))
    }
}

/// The answers as text, sorted: `NAME TTL IN TYPE DATA`.
pub(crate) fn answers(message: &Message) -> Vec<String> {
    let mut answers: Vec<String> = message.answers.iter().map(ToString::to_string).collect();
    answers.sort();
    answers
}
