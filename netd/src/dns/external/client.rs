// SPDX-License-Identifier: Apache-2.0
//! The zone's server. Everything is signed (TSIG, RFC 8945), questions too: a server with views may know by the key which of them
//! we mean. TCP only: answers are as long as they are, and their order is known.

use std::collections::BTreeMap;
use std::time::Duration;

use dns_zone::external::Update;
use dns_zone::{Name, Record, RecordType};
use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::tsig::{TsigAlgorithm, TsigError};
use hickory_proto::rr::{TSigVerifier, TSigner};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::error::ServerError;
use super::wire;
use crate::config::{Algorithm, ExternalOptions};
use crate::node::now_ms;

/// For one address of the server.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// For an answer; a busy server writes its journal before it.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Seconds that clocks may differ (RFC 8945, 10).
const FUDGE_SECS: u16 = 300;
/// Questions that are on their way at once.
const WINDOW: usize = 32;

/// A connection to the server.
pub(super) struct Client {
    /// As texts name it.
    server: String,
    zone: Name,
    key: String,
    signer: TSigner,
    stream: TcpStream,
    next_id: u16,
}

/// What names are published with: the zone's server.
pub(super) trait ZoneServer: Send {
    /// Sends an update and waits for what becomes of it.
    ///
    /// # Errors
    /// The server did not do it, for another reason than its conditions.
    fn update(&mut self, update: &Update) -> impl Future<Output = Result<Outcome, ServerError>> + Send;

    /// Asks for sets of records; the answers in the order of the questions, each with its own no.
    ///
    /// # Errors
    /// The server cannot be asked.
    fn ask(
        &mut self,
        questions: &[(Name, RecordType)],
    ) -> impl Future<Output = Result<Vec<Answered>, ServerError>> + Send;
}

/// The records that there are.
pub(super) type Answered = Result<Vec<Record>, ServerError>;

/// The server, connected when it is needed.
pub(super) struct Session<'a> {
    options: &'a ExternalOptions,
    client: Option<Client>,
}

impl<'a> Session<'a> {
    pub(super) fn new(options: &'a ExternalOptions) -> Self {
        Self { options, client: None }
    }

    async fn client(&mut self) -> Result<&mut Client, ServerError> {
        let connected = match self.client.take() {
            Some(connected) => connected,
            None => Client::connect(self.options).await?,
        };
        Ok(self.client.insert(connected))
    }
}

impl ZoneServer for Session<'_> {
    async fn update(&mut self, update: &Update) -> Result<Outcome, ServerError> {
        self.client().await?.update(update).await
    }

    async fn ask(&mut self, questions: &[(Name, RecordType)]) -> Result<Vec<Answered>, ServerError> {
        self.client().await?.ask(questions).await
    }
}

/// What became of an update.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    Done,
    /// A condition did not hold; what the server calls that.
    Conflict(&'static str),
}

/// What was sent, and how its answer is to be checked.
struct Sent {
    id: u16,
    what: String,
    is_question: bool,
    at_secs: u64,
    verifier: Option<TSigVerifier>,
}

impl Client {
    /// # Errors
    /// The server is not found or not there.
    pub(super) async fn connect(options: &ExternalOptions) -> Result<Self, ServerError> {
        let (host, port) = &options.server;
        let server = format!("DNS server {host} port {port}");
        let lookup = timeout(ANSWER_LIMIT, tokio::net::lookup_host((host.as_str(), *port))).await;
        let addresses = lookup
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
            .map_err(|source| ServerError::Lookup { server: server.clone(), source })?;
        let mut failed = std::io::Error::from(std::io::ErrorKind::NotFound);
        for address in addresses {
            match timeout(CONNECT_LIMIT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Self::new(options, server, stream),
                Ok(Err(error)) => failed = error,
                Err(_) => failed = std::io::ErrorKind::TimedOut.into(),
            }
        }
        Err(ServerError::Connect { server, source: failed })
    }

    fn new(options: &ExternalOptions, server: String, stream: TcpStream) -> Result<Self, ServerError> {
        let key = &options.key;
        let algorithm = match key.algorithm {
            Algorithm::HmacSha256 => TsigAlgorithm::HmacSha256,
            Algorithm::HmacSha384 => TsigAlgorithm::HmacSha384,
            Algorithm::HmacSha512 => TsigAlgorithm::HmacSha512,
        };
        let garbled =
            |why: String| ServerError::Garbled { server: server.clone(), what: "the key".into(), why };
        let name = wire::name(&key.name).map_err(|error| garbled(error.to_string()))?;
        let signer = TSigner::new(key.secret.clone(), algorithm, name, FUDGE_SECS);
        let signer = signer.map_err(|error| garbled(error.to_string()))?;
        let key = key.name.to_string().trim_end_matches('.').to_owned();
        let zone = options.domain.zone().clone();
        Ok(Self { server, zone, key, signer, stream, next_id: 0 })
    }

    /// Sends an update and waits for what becomes of it.
    ///
    /// # Errors
    /// The server did not do it, for another reason than its conditions.
    pub(super) async fn update(&mut self, update: &Update) -> Result<Outcome, ServerError> {
        let what = format!("a change of {}", update.host);
        let id = self.id();
        let message = wire::update(id, &self.zone, update);
        let sent = self.send(message, what, false).await?;
        let (asked, answer) = self.receive(&mut BTreeMap::from([(id, sent)])).await?;
        match answer.metadata.response_code {
            ResponseCode::NoError => Ok(Outcome::Done),
            ResponseCode::YXDomain => Ok(Outcome::Conflict("YXDOMAIN")),
            ResponseCode::YXRRSet => Ok(Outcome::Conflict("YXRRSET")),
            ResponseCode::NXRRSet => Ok(Outcome::Conflict("NXRRSET")),
            ResponseCode::NXDomain => Ok(Outcome::Conflict("NXDOMAIN")),
            rcode => Err(self.refused(rcode, asked)),
        }
    }

    /// Asks for sets of records; the answers in the order of the questions, each with its own no.
    ///
    /// # Errors
    /// The server cannot be asked.
    pub(super) async fn ask(
        &mut self,
        questions: &[(Name, RecordType)],
    ) -> Result<Vec<Answered>, ServerError> {
        let mut answers = Vec::with_capacity(questions.len());
        for window in questions.chunks(WINDOW) {
            let (mut sent, mut ids) = (BTreeMap::new(), Vec::new());
            for (at, of) in window {
                let id = self.id();
                let what = format!("a question for {of} of {}", at.to_string().trim_end_matches('.'));
                sent.insert(id, self.send(wire::question(id, at, *of), what, true).await?);
                ids.push(id);
            }
            let mut received = BTreeMap::new();
            while !sent.is_empty() {
                let (asked, answer) = self.receive(&mut sent).await?;
                let id = asked.id;
                let outcome = match answer.metadata.response_code {
                    // Nobody but the zone's own servers knows what is there now.
                    ResponseCode::NoError | ResponseCode::NXDomain if !answer.metadata.authoritative => {
                        let (server, zone) = (self.server.clone(), self.zone_text());
                        Err(ServerError::Elsewhere { server, what: asked.what, zone })
                    }
                    ResponseCode::NoError | ResponseCode::NXDomain => Ok(answer),
                    rcode => Err(self.refused(rcode, asked)),
                };
                received.insert(id, outcome);
            }
            for (id, (at, of)) in ids.iter().zip(window) {
                let answer = received.remove(id);
                answers.extend(answer.map(|answer| answer.map(|answer| wire::records(&answer, at, *of))));
            }
        }
        Ok(answers)
    }

    async fn send(
        &mut self,
        message: Result<Message, hickory_proto::ProtoError>,
        what: String,
        is_question: bool,
    ) -> Result<Sent, ServerError> {
        let at_secs = now_ms() / 1_000;
        let signed = message.and_then(|mut message| {
            let verifier = message.finalize(&self.signer, at_secs)?;
            Ok((message.metadata.id, verifier, message.to_vec()?))
        });
        let (id, verifier, bytes) = match signed {
            Ok(signed) => signed,
            Err(error) => return Err(self.garbled(what, format!("it cannot be asked: {error}"))),
        };
        let Ok(length) = u16::try_from(bytes.len()) else {
            return Err(self.garbled(what, format!("{} octets are more than a message holds", bytes.len())));
        };
        let framed = [&length.to_be_bytes()[..], &bytes].concat();
        match timeout(ANSWER_LIMIT, self.stream.write_all(&framed)).await {
            Ok(Ok(())) => Ok(Sent { id, what, is_question, at_secs, verifier }),
            Ok(Err(source)) => Err(ServerError::Broken { server: self.server.clone(), what, source }),
            Err(_) => Err(self.silent(what)),
        }
    }

    /// The next answer to any of these, which is no longer among them then.
    async fn receive(&mut self, sent: &mut BTreeMap<u16, Sent>) -> Result<(Sent, Message), ServerError> {
        let what = sent.values().next().map(|sent| sent.what.clone()).unwrap_or_default();
        let read = async {
            let length = self.stream.read_u16().await?;
            let mut bytes = vec![0; length.into()];
            self.stream.read_exact(&mut bytes).await?;
            Ok(bytes)
        };
        let bytes = match timeout(ANSWER_LIMIT, read).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(source)) => return Err(ServerError::Broken { server: self.server.clone(), what, source }),
            Err(_) => return Err(self.silent(what)),
        };
        let answer = match Message::from_vec(&bytes) {
            Ok(answer) if answer.metadata.message_type == MessageType::Response => answer,
            Ok(_) => return Err(self.garbled(what, "a question came".to_owned())),
            Err(error) => return Err(self.garbled(what, error.to_string())),
        };
        let Some(asked) = sent.remove(&answer.metadata.id) else {
            return Err(self.garbled(what, "its identifier is of no question".to_owned()));
        };
        self.check(asked, answer, &bytes)
    }

    /// Whether the answer is from who has the key.
    fn check(&self, mut asked: Sent, answer: Message, bytes: &[u8]) -> Result<(Sent, Message), ServerError> {
        let (server, key) = (self.server.clone(), self.key.clone());
        let Some(signature) = answer.signature() else {
            // A server that knows nothing of keys says so without one. Anything but a no would be a lie.
            return match answer.metadata.response_code {
                ResponseCode::NoError
                | ResponseCode::NXDomain
                | ResponseCode::YXDomain
                | ResponseCode::YXRRSet
                | ResponseCode::NXRRSet => {
                    Err(ServerError::Unsigned { server, key, why: "there is no signature".to_owned() })
                }
                _ => Ok((asked, answer)),
            };
        };
        match signature.data.error {
            None => {}
            Some(TsigError::BadKey) => {
                let algorithm = self.signer.algorithm().to_string().trim_end_matches('.').to_owned();
                return Err(ServerError::BadKey { server, key, algorithm });
            }
            Some(TsigError::BadSig) => return Err(ServerError::BadSig { server, key }),
            Some(TsigError::BadTime) => {
                // RFC 8945, 5.2.3: the server's own time, in 48 bits.
                let theirs =
                    signature.data.other.iter().fold(0_u64, |time, octet| time << 8 | u64::from(*octet));
                let seconds = theirs.abs_diff(asked.at_secs);
                return Err(ServerError::BadTime { server, seconds, limit: FUDGE_SECS });
            }
            Some(other) => return Err(ServerError::BadTsig { server, key, code: other.into() }),
        }
        let verified = match asked.verifier.as_mut() {
            Some(verifier) => verifier.verify(bytes).map(drop).map_err(|error| error.to_string()),
            None => Err("nothing to check it with".to_owned()),
        };
        match verified {
            Ok(()) => Ok((asked, answer)),
            Err(why) => Err(ServerError::Unsigned { server, key, why }),
        }
    }

    fn refused(&self, rcode: ResponseCode, asked: Sent) -> ServerError {
        let (server, key, what) = (self.server.clone(), self.key.clone(), asked.what);
        let zone = self.zone_text();
        match rcode {
            ResponseCode::Refused if asked.is_question => ServerError::NotTold { server, what, zone },
            ResponseCode::Refused => ServerError::Refused { server, what, key, zone },
            ResponseCode::NotAuth => ServerError::NotAuth { server, zone },
            ResponseCode::NotZone => ServerError::NotZone { server, what, zone },
            ResponseCode::NotImp => ServerError::NotImp { server },
            ResponseCode::ServFail => ServerError::ServFail { server, what },
            other => ServerError::Other { server, what, rcode: other.to_string() },
        }
    }

    fn zone_text(&self) -> String {
        self.zone.to_string().trim_end_matches('.').to_owned()
    }

    fn silent(&self, what: String) -> ServerError {
        ServerError::Silent { server: self.server.clone(), what, seconds: ANSWER_LIMIT.as_secs() }
    }

    fn garbled(&self, what: String, why: String) -> ServerError {
        ServerError::Garbled { server: self.server.clone(), what, why }
    }

    /// Different ones of what is on its way at once.
    fn id(&mut self) -> u16 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }
}
