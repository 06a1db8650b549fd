// SPDX-License-Identifier: Apache-2.0
//! Clients in a cgroup: this test binary, started again. (cgroup v2 membership is per process.)

use std::{
    env, fs,
    io::{self, Read as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    process::{Command, Stdio},
    time::Duration,
};

use crate::lab::Cgroup;

const ORDER: &str = "WEFT_TEST_ORDER";
const CGROUP: &str = "WEFT_TEST_CGROUP";
const MARK: &str = "RESULT ";
const PATIENCE: Duration = Duration::from_secs(2);

/// What a client saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The peer's (or the datagram's source) address and its words.
    Answer { peer: String, said: String },
    /// The errno.
    Error(i32),
}

pub(crate) fn answer(peer: &str, said: &str) -> Seen {
    Seen::Answer { peer: peer.to_owned(), said: said.to_owned() }
}

pub(crate) const REFUSED: Seen = Seen::Error(111);

/// Connects by TCP, `times` in a row, from a process in the cgroup.
pub(crate) fn tcp(cgroup: &Cgroup, to: &str, times: u32) -> Vec<Seen> {
    act(cgroup, &format!("tcp {to} {times}"))
}

/// Sends from one unconnected UDP socket.
pub(crate) fn udp(cgroup: &Cgroup, to: &str, times: u32) -> Vec<Seen> {
    act(cgroup, &format!("udp {to} {times}"))
}

/// Sends from a connected UDP socket and asks for its peer.
pub(crate) fn udp_connected(cgroup: &Cgroup, to: &str) -> Vec<Seen> {
    act(cgroup, &format!("udp-connected {to} 1"))
}

fn act(cgroup: &Cgroup, order: &str) -> Vec<Seen> {
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "client::acts_as_client", "--nocapture", "--test-threads=1"])
        .env(ORDER, order)
        .env(CGROUP, &cgroup.path)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "client `{order}`: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| line.split_once(MARK))
        .map(|(_, result)| match result.split_once(' ') {
            Some((peer, said)) => answer(peer, said),
            None => Seen::Error(result.parse().unwrap()),
        })
        .collect()
}

/// Not a test by itself: the child's side of the above.
#[test]
fn acts_as_client() {
    let Ok(order) = env::var(ORDER) else { return };
    fs::write(format!("{}/cgroup.procs", env::var(CGROUP).unwrap()), "0").unwrap();
    let [verb, to, times] = order.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let to: SocketAddr = to.parse().unwrap();
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    for _ in 0..times.parse().unwrap() {
        let seen = match verb {
            "tcp" => by_tcp(to),
            "udp" => by_udp(&socket, to),
            _ => by_connected_udp(&socket, to),
        };
        match seen {
            Ok((peer, said)) => println!("\n{MARK}{peer} {said}"),
            Err(error) => println!("\n{MARK}{}", error.raw_os_error().unwrap_or(-1)),
        }
    }
}

pub(crate) fn by_tcp(to: SocketAddr) -> io::Result<(SocketAddr, String)> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok((stream.peer_addr()?, said))
}

fn by_udp(socket: &UdpSocket, to: SocketAddr) -> io::Result<(SocketAddr, String)> {
    socket.send_to(b"?", to)?;
    let mut buffer = [0; 64];
    let (len, from) = socket.recv_from(&mut buffer)?;
    Ok((from, String::from_utf8_lossy(&buffer[..len]).into_owned()))
}

fn by_connected_udp(socket: &UdpSocket, to: SocketAddr) -> io::Result<(SocketAddr, String)> {
    socket.connect(to)?;
    socket.send(b"?")?;
    let mut buffer = [0; 64];
    let len = socket.recv(&mut buffer)?;
    Ok((socket.peer_addr()?, String::from_utf8_lossy(&buffer[..len]).into_owned()))
}
