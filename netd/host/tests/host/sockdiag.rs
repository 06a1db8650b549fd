// SPDX-License-Identifier: Apache-2.0

//! Sockets destroyed by cookie and destination, with real sockets of every kind.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
};

use netd_host::{ConnectedSocket, Destination, Netns, SockDiag, Transport, netns};

use crate::{
    ground::{in_fresh_netns, ip, ip_in, pod_netns, wait},
    talk::{PATIENCE, undisturbed},
};

/// EDESTADDRREQ of include/uapi/asm-generic/errno.h.
const EDESTADDRREQ: i32 = 89;

/// Where the server listens and how the client names it; the third is where the client's packets go.
const WAYS: [(&str, &str, &str); 3] = [
    ("127.0.0.1:7001", "127.0.0.1:7001", "127.0.0.1:7001"),
    ("[::1]:7001", "[::1]:7001", "[::1]:7001"),
    ("127.0.0.1:7002", "[::ffff:127.0.0.1]:7002", "127.0.0.1:7002"),
];

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// The listed socket whose own port this is.
async fn listed(diag: &SockDiag, transport: Transport, local_port: u16) -> ConnectedSocket {
    let all = diag.list(transport, None).await.unwrap();
    let found = all.iter().find(|socket| socket.local.port() == local_port);
    found.unwrap_or_else(|| panic!("no socket with port {local_port} among {all:?}")).clone()
}

fn doomed(sockets: &[&ConnectedSocket]) -> BTreeMap<u64, Destination> {
    let destination =
        |socket: &ConnectedSocket| Destination { transport: socket.transport, peer: socket.peer };
    sockets.iter().map(|socket| (socket.cookie, destination(socket))).collect()
}

fn is_aborted(result: io::Result<usize>) -> bool {
    match result {
        Err(error) if error.kind() == ErrorKind::ConnectionAborted => true,
        other => panic!("not ECONNABORTED: {other:?}"),
    }
}

#[test]
fn a_destroyed_tcp_connection_is_aborted_and_others_to_the_same_server_live() {
    in_fresh_netns(|| async {
        let diag = SockDiag::open().unwrap();
        for (listen, connect, peer) in WAYS {
            let listener = TcpListener::bind(addr(listen)).unwrap();
            let connection = || {
                let client = TcpStream::connect_timeout(&addr(connect), PATIENCE).unwrap();
                client.set_read_timeout(Some(PATIENCE)).unwrap();
                let (server, _) = undisturbed(|| listener.accept()).unwrap();
                (client, server)
            };
            let (mut lost, mut lost_server) = connection();
            let (mut kept, mut kept_server) = connection();
            let socket = listed(&diag, Transport::Tcp, lost.local_addr().unwrap().port()).await;
            assert_eq!(socket.peer, addr(peer), "{connect}");

            assert_eq!(diag.destroy_all(&doomed(&[&socket])).await.unwrap(), 1, "{connect}");
            assert!(is_aborted(undisturbed(|| lost.read(&mut [0]))), "{connect}");
            let reset = undisturbed(|| lost_server.read(&mut [0])).unwrap_err();
            assert_eq!(reset.kind(), ErrorKind::ConnectionReset, "{connect}: the server is told");
            kept_server.write_all(b"x").unwrap();
            assert_eq!(undisturbed(|| kept.read(&mut [0])).unwrap(), 1, "{connect}");
            assert_eq!(diag.destroy_all(&doomed(&[&socket])).await.unwrap(), 0, "{connect}: gone already");
            assert!(!diag.destroy(&socket).await.unwrap(), "{connect}: gone already");
        }
    });
}

#[test]
fn a_destroyed_connected_udp_socket_is_aborted_and_others_to_the_same_server_live() {
    in_fresh_netns(|| async {
        let diag = SockDiag::open().unwrap();
        for (listen, connect, peer) in WAYS {
            let server = UdpSocket::bind(addr(listen)).unwrap();
            server.set_read_timeout(Some(PATIENCE)).unwrap();
            let client = || {
                let any = if connect.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
                let client = UdpSocket::bind(any).unwrap();
                client.connect(addr(connect)).unwrap();
                client
            };
            let (lost, kept) = (client(), client());
            let port = addr(peer).port();
            let all = diag.list(Transport::Udp, Some(port)).await.unwrap();
            let local = lost.local_addr().unwrap().port();
            let socket = all.iter().find(|socket| socket.local.port() == local).unwrap();
            assert_eq!((socket.peer, all.len()), (addr(peer), 2), "{connect}");

            assert_eq!(diag.destroy_all(&doomed(&[socket])).await.unwrap(), 1, "{connect}");
            lost.set_read_timeout(Some(PATIENCE)).unwrap();
            assert!(is_aborted(undisturbed(|| lost.recv(&mut [0]))), "{connect}: whoever waits is told");
            let nowhere = lost.send(b"x").unwrap_err().raw_os_error();
            assert_eq!(nowhere, Some(EDESTADDRREQ), "{connect}: no longer connected");
            kept.send(b"x").unwrap();
            let (_, from) = undisturbed(|| server.recv_from(&mut [0])).unwrap();
            assert_eq!(from.port(), kept.local_addr().unwrap().port(), "{connect}");
        }
    });
}

#[test]
fn a_socket_that_goes_elsewhere_and_one_with_another_cookie_live() {
    in_fresh_netns(|| async {
        let diag = SockDiag::open().unwrap();
        let server = UdpSocket::bind("127.0.0.1:7001").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect("127.0.0.1:7001").unwrap();
        let socket = listed(&diag, Transport::Udp, client.local_addr().unwrap().port()).await;
        let there = Destination { transport: Transport::Udp, peer: socket.peer };
        let elsewhere = Destination { peer: addr("127.0.0.1:7002"), ..there };
        let another_transport = Destination { transport: Transport::Tcp, ..there };
        for doomed in [
            BTreeMap::from([(socket.cookie, elsewhere)]),
            BTreeMap::from([(socket.cookie, another_transport)]),
            BTreeMap::from([(socket.cookie + 1, there)]),
        ] {
            assert_eq!(diag.destroy_all(&doomed).await.unwrap(), 0, "{doomed:?}");
        }
        client.send(b"x").unwrap();
        assert_eq!(undisturbed(|| server.recv(&mut [0])).unwrap(), 1);
    });
}

#[test]
fn only_sockets_of_the_netns_are_seen() {
    in_fresh_netns(|| async {
        let pod = pod_netns();
        ip_in(&pod, "link set lo up");
        let connected = |netns: &Netns| {
            netns::run_in(netns, || {
                let server = TcpListener::bind("127.0.0.1:7001").unwrap();
                let client = TcpStream::connect("127.0.0.1:7001").unwrap();
                client.set_read_timeout(Some(PATIENCE)).unwrap();
                (client, server)
            })
            .unwrap()
        };
        let (mut inside, _server) = connected(&pod);
        let (here, _server) = connected(&Netns::current().unwrap());
        let inside_diag = SockDiag::open_in(&pod).unwrap();
        let socket = listed(&inside_diag, Transport::Tcp, inside.local_addr().unwrap().port()).await;
        let own = listed(&SockDiag::open().unwrap(), Transport::Tcp, here.local_addr().unwrap().port()).await;
        assert_ne!(socket.cookie, own.cookie);

        let both = doomed(&[&socket, &own]);
        assert_eq!(inside_diag.destroy_all(&both).await.unwrap(), 1, "the other one is not there");
        assert!(is_aborted(undisturbed(|| inside.read(&mut [0]))));
        assert!(here.take_error().unwrap().is_none());
    });
}

#[test]
fn a_connection_that_is_not_answered_yet_is_aborted_too() {
    in_fresh_netns(|| async {
        ip("link add silent type veth peer name silentp");
        ip("link set silentp up");
        ip("link set silent up");
        ip("address add 172.30.9.1/24 dev silent");
        ip("neighbour add 172.30.9.2 lladdr 02:00:00:00:00:02 dev silent");
        wait("carrier", || ip("-br link show silent").contains(" UP "));
        let here = Netns::current().unwrap();
        let client = thread::spawn(move || {
            netns::run_in(&here, || {
                TcpStream::connect_timeout(&addr("172.30.9.2:7001"), 4 * PATIENCE).map(drop)
            })
        });
        let diag = SockDiag::open().unwrap();
        let start = std::time::Instant::now();
        let socket = loop {
            if let Some(socket) = diag.list(Transport::Tcp, Some(7001)).await.unwrap().pop() {
                break socket;
            }
            assert!(start.elapsed() < PATIENCE, "no socket that is about to connect");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        };
        assert_eq!(diag.destroy_all(&doomed(&[&socket])).await.unwrap(), 1);
        let error = client.join().unwrap().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{error}");
    });
}

#[test]
fn with_many_ports_everything_is_listed_once() {
    in_fresh_netns(|| async {
        let diag = SockDiag::open().unwrap();
        let pairs: Vec<_> = (7001..7041_u16)
            .map(|port| {
                let server = UdpSocket::bind(("127.0.0.1", port)).unwrap();
                let client = UdpSocket::bind("127.0.0.1:0").unwrap();
                client.connect(("127.0.0.1", port)).unwrap();
                (server, client)
            })
            .collect();
        let all = diag.list(Transport::Udp, None).await.unwrap();
        assert_eq!(all.len(), pairs.len());
        let half: Vec<_> = all.iter().filter(|socket| socket.peer.port() % 2 == 0).collect();
        assert_eq!(diag.destroy_all(&doomed(&half)).await.unwrap(), half.len());
        for (server, client) in &pairs {
            let is_doomed = server.local_addr().unwrap().port().is_multiple_of(2);
            assert_eq!(client.send(b"x").is_err(), is_doomed);
        }
    });
}
