// SPDX-License-Identifier: Apache-2.0
//! A process in the cgroup that does what it is told, one order at a time: this test binary, started again. Its sockets stay
//! open until it is told to close them.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use crate::lab::Cgroup;

const CGROUP: &str = "WEFT_TEST_AGENT_CGROUP";
const MARK: &str = "RESULT ";
const PATIENCE: Duration = Duration::from_secs(2);

/// What came of an order; the errno when it failed.
pub(crate) type Outcome = Result<Answer, i32>;

/// An address and what it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The peer's (or the datagram's sender's) address as the process sees it.
    pub(crate) from: String,
    /// Its words.
    pub(crate) said: String,
}

pub(crate) fn answer(from: &str, said: &str) -> Outcome {
    Ok(Answer { from: from.to_owned(), said: said.to_owned() })
}

/// ECONNREFUSED.
pub(crate) const REFUSED: Outcome = Err(111);

/// The process.
pub(crate) struct Agent {
    child: Child,
    orders: Option<ChildStdin>,
    results: BufReader<ChildStdout>,
}

impl Agent {
    /// Starts one in the cgroup and the calling thread's netns.
    pub(crate) fn start(cgroup: &Cgroup) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "sockets::agent::acts_as_agent", "--nocapture", "--test-threads=1"])
            .env(CGROUP, &cgroup.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take();
        let results = BufReader::new(child.stdout.take().unwrap());
        Self { child, orders, results }
    }

    /// Connects by TCP under this name; the answer is from the peer that the socket names.
    pub(crate) fn tcp(&mut self, name: &str, to: &str) -> Outcome {
        self.order(&format!("tcp {name} {to}"))
    }

    /// A TCP connection that is closed again.
    pub(crate) fn tcp_once(&mut self, to: &str) -> Outcome {
        let outcome = self.tcp("once", to);
        self.close("once");
        outcome
    }

    /// Sends a datagram from an unconnected socket of this name (made when there is none), and waits for the answer.
    pub(crate) fn send(&mut self, name: &str, to: &str) -> Outcome {
        self.order(&format!("send {name} {to}"))
    }

    /// Connects the UDP socket of this name (made when there is none). The answer is from its peer, without words.
    pub(crate) fn udp_connect(&mut self, name: &str, to: &str) -> Outcome {
        self.order(&format!("udp-connect {name} {to}"))
    }

    /// Sends a datagram to the peer of a connected socket, and waits for the answer.
    pub(crate) fn talk(&mut self, name: &str) -> Outcome {
        self.order(&format!("talk {name}"))
    }

    /// Binds a socket of `tcp` or `udp`; the answer has no words.
    pub(crate) fn bind(&mut self, protocol: &str, address: &str) -> Outcome {
        self.order(&format!("bind {protocol} {address}"))
    }

    /// Closes the socket of this name.
    pub(crate) fn close(&mut self, name: &str) {
        let _ = self.order(&format!("close {name}"));
    }

    /// Ends it without a chance to close anything.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn order(&mut self, order: &str) -> Outcome {
        writeln!(self.orders.as_mut().unwrap(), "{order}").unwrap();
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.results.read_line(&mut line).unwrap(), 0, "the agent is gone at `{order}`");
            let Some((_, result)) = line.split_once(MARK) else { continue };
            return match result.trim_end_matches('\n').split_once(' ') {
                Some((from, said)) => answer(from, said),
                None => Err(result.trim_end().parse().unwrap()),
            };
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It ends with its orders.
        drop(self.orders.take());
        let _ = io::copy(&mut self.results, &mut io::sink());
        let _ = self.child.wait();
    }
}

/// Not a test by itself: the child's side of the above.
#[test]
fn acts_as_agent() {
    let Ok(cgroup) = env::var(CGROUP) else { return };
    fs::write(format!("{cgroup}/cgroup.procs"), "0").unwrap();
    let mut sockets = BTreeMap::new();
    for line in io::stdin().lines() {
        match act(&mut sockets, &line.unwrap()) {
            Ok((from, said)) => println!("{MARK}{from} {said}"),
            Err(error) => println!("{MARK}{}", error.raw_os_error().unwrap_or(-1)),
        }
        io::stdout().flush().unwrap();
    }
}

enum Socket {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

fn act(sockets: &mut BTreeMap<String, Socket>, order: &str) -> io::Result<(SocketAddr, String)> {
    let words: Vec<_> = order.split(' ').collect();
    let [verb, name, rest @ ..] = words.as_slice() else { return Err(io::Error::other("no such order")) };
    let to: SocketAddr = rest.first().unwrap_or(&"0.0.0.0:0").parse().unwrap();
    match *verb {
        "tcp" => {
            let mut stream = TcpStream::connect(to)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let peer = stream.peer_addr()?;
            let mut said = [0; 64];
            let length = stream.read(&mut said)?;
            sockets.insert((*name).to_owned(), Socket::Tcp(stream));
            Ok((peer, String::from_utf8_lossy(&said[..length]).into_owned()))
        }
        "send" => {
            let socket = udp(sockets, name, to)?;
            socket.send_to(b"?", to)?;
            receive(socket)
        }
        "udp-connect" => {
            let socket = udp(sockets, name, to)?;
            socket.connect(to)?;
            Ok((socket.peer_addr()?, String::new()))
        }
        "talk" => {
            let socket = udp(sockets, name, to)?;
            socket.send(b"?")?;
            receive(socket)
        }
        "bind" => {
            let bound = match *name {
                "tcp" => TcpListener::bind(to)?.local_addr()?,
                _ => UdpSocket::bind(to)?.local_addr()?,
            };
            Ok((bound, String::new()))
        }
        "close" => {
            if let Some(Socket::Tcp(stream)) = sockets.remove(*name) {
                drop(stream);
            }
            Ok((to, String::new()))
        }
        _ => Err(io::Error::other("no such order")),
    }
}

fn udp<'a>(
    sockets: &'a mut BTreeMap<String, Socket>,
    name: &str,
    to: SocketAddr,
) -> io::Result<&'a UdpSocket> {
    if !sockets.contains_key(name) {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        sockets.insert(name.to_owned(), Socket::Udp(socket));
    }
    match &sockets[name] {
        Socket::Udp(socket) => Ok(socket),
        Socket::Tcp(_) => Err(io::Error::other("a name of TCP")),
    }
}

fn receive(socket: &UdpSocket) -> io::Result<(SocketAddr, String)> {
    let mut said = [0; 64];
    let (length, from) = socket.recv_from(&mut said)?;
    Ok((from, String::from_utf8_lossy(&said[..length]).into_owned()))
}
