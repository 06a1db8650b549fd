// SPDX-License-Identifier: Apache-2.0
//! Upstream DNS servers that the test plays: what they say is fixed, how often they were asked is counted.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

/// How an upstream behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Answers any name with this last octet of 192.0.2.0/24.
    Answers(u8),
    /// Says SERVFAIL.
    Fails,
    /// Says NXDOMAIN with a SOA.
    KnowsNothing,
    /// Takes questions and says nothing.
    Silent,
    /// Sets TC over UDP; over TCP answers with 192.0.2.77.
    Truncates,
}

/// The names asked for, in order.
type Asked = Arc<Mutex<Vec<Name>>>;

/// A running upstream; ends when dropped.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    asked: Asked,
    asked_tcp: Asked,
    _tasks: JoinSet<()>,
}

impl Upstream {
    pub(crate) async fn start(mood: Mood) -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.expect("an upstream socket");
            // The same port on TCP may be taken by another test; then both are chosen again.
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().expect("bound")).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().expect("bound");
        let (asked, asked_tcp) = (Asked::default(), Asked::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(udp, mood, asked.clone()));
        tasks.spawn(serve_tcp(tcp, mood, asked_tcp.clone()));
        Upstream { address, asked, asked_tcp, _tasks: tasks }
    }

    /// Questions over UDP, repeats included.
    pub(crate) fn asked(&self) -> usize {
        self.asked.lock().expect("no panic").len()
    }

    /// Questions over UDP for this name, repeats included.
    pub(crate) fn asked_for(&self, name: &str) -> usize {
        self.asked.lock().expect("no panic").iter().filter(|asked| asked.to_string() == name).count()
    }

    /// Questions over TCP.
    pub(crate) fn asked_tcp(&self) -> usize {
        self.asked_tcp.lock().expect("no panic").len()
    }
}

async fn serve_udp(socket: UdpSocket, mood: Mood, asked: Asked) {
    let mut buffer = [0; 4096];
    while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
        let question = Message::from_vec(&buffer[..length]).expect("our server's questions decode");
        asked.lock().expect("no panic").push(question.queries[0].name().clone());
        if let Some(answer) = respond(&question, mood, false) {
            socket.send_to(&answer.to_vec().expect("encodes"), client).await.expect("sends");
        }
    }
}

async fn serve_tcp(listener: TcpListener, mood: Mood, asked: Asked) {
    while let Ok((mut stream, _)) = listener.accept().await {
        while let Ok(length) = stream.read_u16().await {
            let mut bytes = vec![0; usize::from(length)];
            stream.read_exact(&mut bytes).await.expect("the whole question");
            let question = Message::from_vec(&bytes).expect("our server's questions decode");
            asked.lock().expect("no panic").push(question.queries[0].name().clone());
            let Some(answer) = respond(&question, mood, true) else { continue };
            let bytes = answer.to_vec().expect("encodes");
            let length = u16::try_from(bytes.len()).expect("a short answer");
            stream.write_all(&[&length.to_be_bytes()[..], &bytes].concat()).await.expect("sends");
        }
    }
}

fn respond(question: &Message, mood: Mood, tcp: bool) -> Option<Message> {
    let query = question.queries.first().expect("one question").clone();
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    answer.metadata.recursion_desired = true;
    answer.metadata.recursion_available = true;
    let name = query.name().clone();
    answer.add_query(query);
    let address = |last: u8| Record::from_rdata(name.clone(), 300, RData::A(A([192, 0, 2, last].into())));
    match mood {
        Mood::Answers(last) => {
            answer.add_answer(address(last));
        }
        Mood::Fails => answer.metadata.response_code = ResponseCode::ServFail,
        Mood::KnowsNothing => {
            answer.metadata.response_code = ResponseCode::NXDomain;
            let zone = Name::from_ascii("example.org.").expect("a name");
            let soa = SOA::new(zone.clone(), zone.clone(), 1, 2, 3, 4, 60);
            answer.add_authority(Record::from_rdata(zone, 60, RData::SOA(soa)));
        }
        Mood::Silent => return None,
        Mood::Truncates if tcp => {
            answer.add_answer(address(77));
        }
        Mood::Truncates => answer.metadata.truncation = true,
    }
    Some(answer)
}
