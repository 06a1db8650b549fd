// SPDX-License-Identifier: Apache-2.0
//! Upstream DNS servers that the test plays: what they say is fixed, how often they were asked is counted.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
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
    /// Answers this octet, for one second.
    Brief(u8),
    /// Answers after half a second.
    Slow(u8),
    /// Answers after 150 ms, as a recursor does that does not know the name yet.
    Cold(u8),
    /// Answers this octet, for ten seconds.
    Short(u8),
    /// Says FORMERR, whatever it sees.
    Confused,
    /// Answers in lower case, whatever the question was.
    FoldsCase(u8),
    /// Does not know EDNS: FORMERR where it sees an OPT record.
    Old(u8),
    /// First sends a wrong address with what a guesser would get wrong, then the right one.
    Attacked(u8),
    /// Wants its cookie: without it BADCOOKIE over UDP.
    WantsCookie(u8),
    /// Sends each question to this server and gives back what that says.
    Circle(SocketAddr),
    /// The same with names of `corp.example`; refuses all others.
    StubCircle(SocketAddr),
}

/// The names asked for, in order.
type Asked = Arc<Mutex<Vec<Name>>>;

type SharedMood = Arc<Mutex<Mood>>;

/// What a server with cookies gives each client.
const SERVER_COOKIE: &[u8] = b"baked-it";

/// A running upstream; ends when dropped.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    asked: Asked,
    asked_tcp: Asked,
    mood: SharedMood,
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
        let mood = Arc::new(Mutex::new(mood));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(Arc::new(udp), mood.clone(), asked.clone()));
        tasks.spawn(serve_tcp(tcp, mood.clone(), asked_tcp.clone()));
        Upstream { address, asked, asked_tcp, mood, _tasks: tasks }
    }

    /// From now on it behaves so.
    pub(crate) fn change(&self, mood: Mood) {
        *self.mood.lock().expect("no panic") = mood;
    }

    /// The names asked for over UDP as they came.
    pub(crate) fn names(&self) -> Vec<String> {
        self.asked.lock().expect("no panic").iter().map(ToString::to_string).collect()
    }

    /// Questions over UDP, repeats included.
    pub(crate) fn asked(&self) -> usize {
        self.asked.lock().expect("no panic").len()
    }

    /// Questions over UDP for this name, repeats included.
    pub(crate) fn asked_for(&self, name: &str) -> usize {
        self.asked
            .lock()
            .expect("no panic")
            .iter()
            .filter(|asked| asked.to_string().eq_ignore_ascii_case(name))
            .count()
    }

    /// Questions over TCP.
    pub(crate) fn asked_tcp(&self) -> usize {
        self.asked_tcp.lock().expect("no panic").len()
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, mood: SharedMood, asked: Asked) {
    let mut buffer = [0; 4096];
    let mut tasks = JoinSet::new();
    while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
        let question = Message::from_vec(&buffer[..length]).expect("our server's questions decode");
        asked.lock().expect("no panic").push(question.queries[0].name().clone());
        let mood = *mood.lock().expect("no panic");
        let socket = socket.clone();
        tasks.spawn(async move {
            if let Mood::Attacked(_) = mood {
                for forged in forgeries(&question) {
                    socket.send_to(&forged, client).await.expect("sends");
                }
            }
            if let Mood::Slow(_) = mood {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            if let Mood::Cold(_) = mood {
                tokio::time::sleep(Duration::from_millis(150)).await;
            }
            let is_corp = question.queries[0].name().to_string().to_lowercase().ends_with("corp.example.");
            let back = match mood {
                Mood::Circle(back) => Some(back),
                Mood::StubCircle(back) if is_corp => Some(back),
                _ => None,
            };
            if let Some(back) = back {
                let mut again = question.clone();
                again.metadata.id = again.metadata.id.wrapping_add(1);
                let answer = crate::client::ask_bytes(back, &again.to_vec().expect("encodes")).await;
                let answer = [&question.metadata.id.to_be_bytes()[..], &answer[2..]].concat();
                socket.send_to(&answer, client).await.expect("sends");
                return;
            }
            if let Some(answer) = respond(&question, mood, false) {
                socket.send_to(&answer.to_vec().expect("encodes"), client).await.expect("sends");
            }
        });
    }
}

async fn serve_tcp(listener: TcpListener, mood: SharedMood, asked: Asked) {
    let mut tasks = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        tasks.spawn(serve_stream(stream, mood.clone(), asked.clone()));
    }
}

/// Serves one connection until the server closes it.
pub(crate) async fn serve_stream(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    mood: Arc<Mutex<Mood>>,
    asked: Arc<Mutex<Vec<Name>>>,
) {
    while let Ok(length) = stream.read_u16().await {
        let mut bytes = vec![0; usize::from(length)];
        stream.read_exact(&mut bytes).await.expect("the whole question");
        let question = Message::from_vec(&bytes).expect("our server's questions decode");
        asked.lock().expect("no panic").push(question.queries[0].name().clone());
        let mood = *mood.lock().expect("no panic");
        let Some(answer) = respond(&question, mood, true) else { continue };
        let bytes = answer.to_vec().expect("encodes");
        let length = u16::try_from(bytes.len()).expect("a short answer");
        stream.write_all(&[&length.to_be_bytes()[..], &bytes].concat()).await.expect("sends");
        stream.flush().await.expect("sends");
    }
}

/// Answers as somebody sends who does not see the question: all but one thing is right.
fn forgeries(question: &Message) -> Vec<Vec<u8>> {
    let good = respond(question, Mood::Answers(66), false).expect("an answer");
    let mut wrong_id = good.clone();
    wrong_id.metadata.id = wrong_id.metadata.id.wrapping_add(1);
    let mut wrong_name = good.clone();
    wrong_name.queries[0].set_name(Name::from_ascii("www.example.net.").expect("a name"));
    vec![wrong_id.to_vec().expect("encodes"), wrong_name.to_vec().expect("encodes")]
}

fn respond(question: &Message, mood: Mood, tcp: bool) -> Option<Message> {
    let query = question.queries.first().expect("one question").clone();
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    answer.metadata.recursion_desired = true;
    answer.metadata.recursion_available = true;
    let name = query.name().clone();
    answer.add_query(query);
    let ttl = match mood {
        Mood::Brief(_) => 1,
        Mood::Short(_) => 10,
        _ => 300,
    };
    let address = |last: u8| Record::from_rdata(name.clone(), ttl, RData::A(A([192, 0, 2, last].into())));
    let cookie = match question.edns.as_ref().and_then(|edns| edns.option(EdnsCode::Cookie)) {
        Some(EdnsOption::Unknown(_, cookie)) => cookie.clone(),
        _ => Vec::new(),
    };
    match mood {
        Mood::Answers(last)
        | Mood::Brief(last)
        | Mood::Short(last)
        | Mood::Slow(last)
        | Mood::Cold(last)
        | Mood::Attacked(last) => {
            answer.add_answer(address(last));
        }
        Mood::Circle(_) => return None,
        Mood::FoldsCase(last) => {
            let folded = name.to_lowercase();
            answer.queries[0].set_name(folded.clone());
            answer.add_answer(Record::from_rdata(folded, 300, RData::A(A([192, 0, 2, last].into()))));
        }
        Mood::StubCircle(_) => answer.metadata.response_code = ResponseCode::Refused,
        Mood::Confused => answer.metadata.response_code = ResponseCode::FormErr,
        Mood::Old(_) if question.edns.is_some() => answer.metadata.response_code = ResponseCode::FormErr,
        Mood::Old(last) => {
            answer.add_answer(address(last));
        }
        Mood::WantsCookie(last) => {
            let known = cookie.get(8..) == Some(SERVER_COOKIE);
            let mut edns = Edns::new();
            let full = [&cookie[..8.min(cookie.len())], SERVER_COOKIE].concat();
            edns.options_mut().insert(EdnsOption::Unknown(10, full));
            if known || tcp {
                answer.add_answer(address(if known { last } else { last + 1 }));
            } else {
                edns.set_rcode_high(1);
                answer.metadata.response_code = ResponseCode::BADCOOKIE;
            }
            answer.set_edns(edns);
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
