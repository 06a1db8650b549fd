// SPDX-License-Identifier: Apache-2.0
//! One DNS question to one server, the answer as JSON.

use super::sockets;
use anyhow::{Context, Result, bail};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use serde::{Deserialize, Serialize};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

/// The largest answer without TCP that EDNS allows us to expect.
const ANSWER_MAX: usize = 4096;
const TRIES: usize = 2;

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueryReport {
    /// The server asked.
    pub server: SocketAddr,
    /// The response code: `No Error`, `Non-Existent Domain`, …
    pub code: String,
    /// Whether the server is the authority.
    pub authoritative: bool,
    /// Records of the answer: `name TTL class type data`.
    pub answers: Vec<String>,
    /// Only the data of the answer's records.
    pub data: Vec<String>,
}

/// Asks; without a server the first of /etc/resolv.conf. The name is absolute.
pub(crate) fn query(
    name: &str,
    kind: &str,
    server: Option<SocketAddr>,
    limit: Duration,
) -> Result<QueryReport> {
    let server = match server {
        Some(server) => server,
        None => first_nameserver()?,
    };
    let mut name = Name::from_str(name).with_context(|| format!("name {name:?}"))?;
    name.set_fqdn(true);
    let kind = RecordType::from_str(kind).with_context(|| format!("record type {kind:?}"))?;
    let mut question = Message::new(std::process::id() as u16, MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(name, kind));
    let answer = exchange(server, &question, limit)?;
    Ok(QueryReport {
        server,
        code: answer.metadata.response_code.to_string(),
        authoritative: answer.metadata.authoritative,
        answers: answer.answers.iter().map(ToString::to_string).collect(),
        data: answer.answers.iter().map(|record| record.data.to_string()).collect(),
    })
}

fn exchange(server: SocketAddr, question: &Message, limit: Duration) -> Result<Message> {
    let socket = sockets::towards(server)?;
    socket.set_read_timeout(Some(limit))?;
    let mut buffer = [0; ANSWER_MAX];
    let mut last = None;
    for _ in 0..TRIES {
        socket.send_to(&question.to_vec()?, server)?;
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) if from == server => {
                let answer = Message::from_vec(&buffer[..length]).context("the answer does not decode")?;
                if answer.metadata.id == question.metadata.id {
                    return Ok(answer);
                }
            }
            Ok((_, from)) => bail!("{from} answered instead of {server}"),
            Err(error) => last = Some(error),
        }
    }
    bail!("{server} did not answer within {limit:?}, {TRIES} tries: {last:?}")
}

fn first_nameserver() -> Result<SocketAddr> {
    let text = fs::read_to_string("/etc/resolv.conf").context("/etc/resolv.conf")?;
    let address =
        text.lines().find_map(|line| line.strip_prefix("nameserver ")?.trim().parse::<IpAddr>().ok());
    Ok(SocketAddr::new(address.context("/etc/resolv.conf names no server")?, 53))
}
