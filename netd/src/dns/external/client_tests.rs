// SPDX-License-Identifier: Apache-2.0
//! Answers of a server that is not as it should be. One that is, is BIND: see the stories.

use dns_zone::external::{Change, Domain, Update};
use dns_zone::{Name, RecordType};
use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::TSIG;
use hickory_proto::rr::rdata::tsig::{TsigAlgorithm, TsigError};
use hickory_proto::rr::{self, TSigResponseContext, TSigner};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::client::{Client, Outcome};
use crate::config::{Algorithm, ExternalOptions, TsigKey};
use crate::node::now_ms;

const SECRET: &[u8; 32] = b"0123456789abcdef0123456789abcdef";

/// What the server answers.
#[derive(Clone, Copy)]
enum Says {
    /// With a signature by the key with this secret.
    Signed(&'static [u8], ResponseCode),
    Unsigned(ResponseCode),
    /// Signed, and not by the zone's own knowledge: a referral.
    Referral,
    /// With a signature that says only this, and the server's clock so many seconds ahead.
    Error(TsigError, u64),
    /// To a question that was not asked.
    AnotherId,
    /// Bytes.
    Noise,
    Nothing,
}

fn signer(secret: &[u8]) -> TSigner {
    let name = rr::Name::from_ascii("weft.").unwrap();
    TSigner::new(secret.to_vec(), TsigAlgorithm::HmacSha256, name, 300).unwrap()
}

fn answer(request: &[u8], says: Says) -> Vec<u8> {
    let request = Message::from_vec(request).unwrap();
    let signature = request.signature().expect("everything is signed").clone();
    let (id, now) = (request.metadata.id, now_ms() / 1_000);
    let mut answer = Message::response(id, request.metadata.op_code);
    answer.metadata.authoritative = request.metadata.op_code == OpCode::Query;
    match says {
        Says::Referral => {
            answer.metadata.authoritative = false;
            let plain = answer.to_vec().unwrap();
            let context = TSigResponseContext::new(id, now, signer(SECRET), signature.data.mac, None);
            answer.set_signature(context.sign(&plain).unwrap());
        }
        Says::Signed(secret, rcode) => {
            answer.metadata.response_code = rcode;
            let plain = answer.to_vec().unwrap();
            let context = TSigResponseContext::new(id, now, signer(secret), signature.data.mac, None);
            answer.set_signature(context.sign(&plain).unwrap());
        }
        Says::Unsigned(rcode) => answer.metadata.response_code = rcode,
        Says::Error(error, ahead) => {
            answer.metadata.response_code = ResponseCode::NotAuth;
            let other = (now + ahead).to_be_bytes()[2..].to_vec();
            let algorithm = TsigAlgorithm::HmacSha256;
            let tsig = TSIG::new(algorithm, now, 300, Vec::new(), id, Some(error), other);
            let mut record = rr::Record::from_rdata(rr::Name::from_ascii("weft.").unwrap(), 0, tsig);
            record.dns_class = rr::DNSClass::ANY;
            answer.set_signature(Box::new(record));
        }
        Says::AnotherId => answer.metadata.id = id.wrapping_add(1),
        Says::Noise => return vec![0xff; 7],
        Says::Nothing => return Vec::new(),
    }
    answer.to_vec().unwrap()
}

fn options(port: u16) -> ExternalOptions {
    let name = |text: &str| Name::parse(text).unwrap();
    ExternalOptions {
        server: ("127.0.0.1".into(), port),
        domain: Domain::new(name("example.org"), name("example.org"), "prod", 60).unwrap(),
        owner_given: true,
        key: TsigKey { name: name("weft"), algorithm: Algorithm::HmacSha256, secret: SECRET.to_vec() },
    }
}

/// A server that answers one message, and a client that is connected to it.
async fn client(says: Says) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut request).await.unwrap();
        let answer = answer(&request, says);
        if !answer.is_empty() {
            stream.write_u16(u16::try_from(answer.len()).unwrap()).await.unwrap();
            stream.write_all(&answer).await.unwrap();
            stream.flush().await.unwrap();
        }
    });
    Client::connect(&options(port)).await.unwrap()
}

async fn update(says: Says) -> Result<Outcome, String> {
    let domain = options(0).domain;
    let host = domain.host("shop.example.org").unwrap();
    let update = Update { host, change: Change::Release, conditions: Vec::new(), actions: Vec::new() };
    client(says).await.update(&update).await.map_err(|error| format!("{}: {error}", error.reason()))
}

async fn ask(says: Says) -> Result<usize, String> {
    let at = Name::parse("shop.example.org").unwrap();
    let asked = client(says).await.ask(&[(at, RecordType::A)]).await;
    let asked = asked.and_then(|answers| answers.into_iter().collect::<Result<Vec<_>, _>>());
    asked.map(|sets| sets.len()).map_err(|error| format!("{}: {error}", error.reason()))
}

#[tokio::test]
async fn a_signed_answer_is_believed_and_no_other() {
    assert_eq!(update(Says::Signed(SECRET, ResponseCode::NoError)).await, Ok(Outcome::Done));
    assert_eq!(update(Says::Signed(SECRET, ResponseCode::NXRRSet)).await, Ok(Outcome::Conflict("NXRRSET")));
    assert_eq!(ask(Says::Signed(SECRET, ResponseCode::NXDomain)).await, Ok(1));
    for says in [
        Says::Unsigned(ResponseCode::NoError),
        Says::Unsigned(ResponseCode::YXRRSet),
        Says::Signed(b"another secret of 32 bytes here.", ResponseCode::NoError),
    ] {
        let error = update(says).await.unwrap_err();
        assert!(error.starts_with("unsigned: ") && error.contains("is not signed by key weft"), "{error}");
        assert!(ask(says).await.unwrap_err().starts_with("unsigned: "));
    }
}

#[tokio::test]
async fn a_no_says_what_to_do() {
    for (says, words) in [
        (Says::Error(TsigError::BadKey, 0), "badkey: DNS server 127.0.0.1 port "),
        (Says::Error(TsigError::BadKey, 0), "does not know key weft with hmac-sha256"),
        (Says::Error(TsigError::BadSig, 0), "the secret of key weft in dns.external `secret-file`"),
        (Says::Error(TsigError::BadTime, 4_000), "differ by 4000 s, and 300 are allowed (BADTIME)"),
        (Says::Error(TsigError::BadTrunc, 0), "TSIG error 22"),
        (Says::Unsigned(ResponseCode::Refused), "grant weft zonesub A AAAA CNAME TXT"),
        (Says::Signed(SECRET, ResponseCode::Refused), "refused a change of shop.example.org (REFUSED)"),
        (Says::Signed(SECRET, ResponseCode::NotAuth), "is not the primary of zone example.org (NOTAUTH)"),
        (Says::Signed(SECRET, ResponseCode::NotZone), "is not one of zone example.org (NOTZONE)"),
        (Says::Unsigned(ResponseCode::NotImp), "notimp: "),
        (Says::Signed(SECRET, ResponseCode::ServFail), "failed at a change of shop.example.org (SERVFAIL)"),
        (Says::AnotherId, "its identifier is of no question"),
        (Says::Noise, "garbled: "),
        (Says::Nothing, "broke the connection off at a change of shop.example.org"),
    ] {
        let error = update(says).await.unwrap_err();
        assert!(error.contains(words), "{words:?} expected: {error}");
        assert!(!error.contains("0123456789abcdef"), "{error}");
    }
    let error = ask(Says::Unsigned(ResponseCode::Refused)).await.unwrap_err();
    assert!(
        error.contains("a question for A of shop.example.org (REFUSED): is it a server of zone"),
        "{error}"
    );
    let error = ask(Says::Referral).await.unwrap_err();
    assert!(error.starts_with("elsewhere: ") && error.contains("delegated to other servers"), "{error}");
    let at = Name::parse("shop.example.org").unwrap();
    let asked = client(Says::Referral).await.ask(&[(at, RecordType::A)]).await.unwrap();
    assert!(asked[0].is_err(), "a no to one question is no more than that");
}

#[tokio::test]
async fn no_server_is_told_by_its_name() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let error = Client::connect(&options(port)).await.err().expect("nobody is there");
    assert!(error.to_string().contains("cannot be connected to over TCP") && error.reason() == "connect");
    let mut nowhere = options(53);
    nowhere.server.0 = "no-such-host.invalid".into();
    let error = Client::connect(&nowhere).await.err().expect("there is no such host");
    assert_eq!(error.reason(), "lookup", "{error}");
}
