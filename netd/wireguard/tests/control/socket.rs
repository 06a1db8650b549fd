// SPDX-License-Identifier: Apache-2.0
//! Requests over the socket, and the socket itself.

use std::{
    fs, io,
    net::Shutdown,
    os::{
        fd::AsFd,
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use netd_wireguard::{
    CONNECTIONS_MAX, Configurable, ControlError, ControlListener, ControlServer, REQUEST_BYTES_MAX,
};

use crate::fake::{Client, Fake, PATIENCE, Served};

const KEY: &str = "b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33";

#[test]
fn several_requests_follow_each_other_on_a_connection() {
    let served = Served::start();
    let mut client = served.client();
    assert_eq!(client.ask("get=1\n\n"), "errno=0\n\n");
    assert_eq!(client.ask("set=1\nlisten_port=51820\n\n"), "errno=0\n\n");
    assert_eq!(client.ask("get=1\n\n"), "listen_port=51820\nerrno=0\n\n");
    // Both at once, cut where it hurts.
    client.send("set=1\nfwmark=7\n\nge");
    assert_eq!(client.answer(), "errno=0\n\n");
    assert_eq!(client.ask("t=1\n\n"), "listen_port=51820\nfwmark=7\nerrno=0\n\n");
}

#[test]
fn a_wrong_request_changes_nothing_and_the_connection_goes_on() {
    let served = Served::start();
    let mut client = served.client();
    let answer = client.ask("set=1\nlisten_port=51820\nfwmark=many\n\n");
    assert_eq!(answer, format!("errno=-{}\n\n", libc::EINVAL));
    assert_eq!(client.ask("get=1\n\n"), "errno=0\n\n", "the port neither");
    assert_eq!(client.ask("hello\n\n"), format!("errno=-{}\n\n", libc::EPROTO));
    assert_eq!(client.ask("\n"), format!("errno=-{}\n\n", libc::EPROTO));
    assert_eq!(client.ask("get=1\n\n"), "errno=0\n\n");
}

#[test]
fn the_devices_own_errors_are_told() {
    let served = Served::start();
    *served.device.before_set.lock().unwrap() =
        Box::new(|| Err(io::Error::from_raw_os_error(libc::EADDRINUSE)));
    let mut client = served.client();
    assert_eq!(client.ask("set=1\nlisten_port=53\n\n"), format!("errno=-{}\n\n", libc::EADDRINUSE));
    *served.device.before_set.lock().unwrap() = Box::new(|| Err(io::Error::other("no number")));
    assert_eq!(client.ask("set=1\nlisten_port=53\n\n"), format!("errno=-{}\n\n", libc::EIO));
}

#[test]
fn half_a_request_is_not_carried_out() {
    let served = Served::start();
    let mut client = served.client();
    client.send("set=1\nlisten_port=51820\n");
    client.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.answer(), "", "it hangs up");
    assert_eq!(served.client().ask("get=1\n\n"), "errno=0\n\n");
}

#[test]
fn a_line_or_a_request_without_end_is_refused() {
    let served = Served::start();
    let too_long = format!("errno=-{}\n\n", libc::EMSGSIZE);
    assert_eq!(served.client().ask(&"x".repeat(300)), too_long);

    let mut client = served.client();
    let peer = format!("public_key={KEY}\n");
    let lines = format!("set=1\n{}", peer.repeat(REQUEST_BYTES_MAX / peer.len() + 1_000));
    // The device hangs up before all of it is through.
    let _ = io::Write::write_all(&mut client.0, lines.as_bytes());
    let mut answer = String::new();
    let _ = io::Read::read_to_string(&mut client.0, &mut answer);
    assert!(answer == too_long || answer.is_empty(), "{answer}");
    assert_eq!(served.client().ask("get=1\n\n"), "errno=0\n\n");
}

#[test]
fn a_slow_client_keeps_nobody_waiting() {
    let served = Served::start();
    let mut slow = served.client();
    slow.send("set=1\nlisten_");
    let begun = Instant::now();
    assert_eq!(served.client().ask("get=1\n\n"), "errno=0\n\n");
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(slow.ask("port=7\n\n"), "errno=0\n\n");
}

#[test]
fn more_clients_than_are_served_wait_their_turn() {
    let served = Served::start();
    let mut clients: Vec<Client> = (0..CONNECTIONS_MAX).map(|_| served.client()).collect();
    for client in &mut clients {
        assert_eq!(client.ask("get=1\n\n"), "errno=0\n\n");
    }
    let mut waiting = served.client();
    waiting.send("get=1\n\n");
    waiting.0.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let error = io::Read::read(&mut waiting.0, &mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "not its turn yet");
    waiting.0.set_read_timeout(Some(PATIENCE)).unwrap();
    clients.pop();
    assert_eq!(waiting.answer(), "errno=0\n\n");
}

#[test]
fn only_root_may_connect() {
    let served = Served::start();
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(served.path()), 0o600);
    assert_eq!(mode(served.socket_dir()), 0o700);
    let names: Vec<_> =
        fs::read_dir(served.socket_dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["weft.wg0.sock"]);
}

#[test]
fn a_socket_of_a_dead_process_is_replaced_and_that_of_a_living_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weft.wg0.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let listener = ControlListener::bind(dir.path(), "weft.wg0").unwrap();
    let error = ControlListener::bind(dir.path(), "weft.wg0").unwrap_err();
    assert!(matches!(error, ControlError::InUse { .. }), "{error}");
    // The first one still is what clients reach.
    let server = ControlServer::start(listener, Fake::new()).unwrap();
    assert_eq!(Client::connect(&path).ask("get=1\n\n"), "errno=0\n\n");
    server.stop().unwrap().remove();
    assert!(!path.exists());
}

#[test]
fn what_is_no_socket_or_no_name_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("weft.wg0.sock"), "precious").unwrap();
    let error = ControlListener::bind(dir.path(), "weft.wg0").unwrap_err();
    assert!(matches!(error, ControlError::NotASocket { .. }), "{error}");
    assert_eq!(fs::read_to_string(dir.path().join("weft.wg0.sock")).unwrap(), "precious");
    for name in ["", "..", "../wg0", "a b", "sixteen-letters."] {
        let error = ControlListener::bind(dir.path(), name).unwrap_err();
        assert!(matches!(error, ControlError::Name { .. }), "{name:?}: {error}");
    }
    let file = fs::File::open(dir.path()).unwrap();
    let error = ControlListener::inherit(file.into(), dir.path(), "weft.wg0").unwrap_err();
    assert!(matches!(error, ControlError::NotListening { .. }), "{error}");
}

#[test]
fn a_stop_waits_for_the_request_under_way() {
    let mut served = Served::start();
    let (begun, is_begun) = mpsc::channel();
    let (may_end, end) = mpsc::channel();
    *served.device.before_set.lock().unwrap() = Box::new(move || {
        begun.send(()).unwrap();
        end.recv_timeout(PATIENCE).map_err(io::Error::other)
    });
    let mut idle = served.client();
    assert_eq!(idle.ask("get=1\n\n"), "errno=0\n\n");
    let mut client = served.client();
    client.send("set=1\nlisten_port=51820\n\n");
    is_begun.recv_timeout(PATIENCE).unwrap();
    let server = served.server.take().unwrap();
    let stopping = thread::spawn(move || server.stop().unwrap());
    // Idle ones are let go, and that is when it is stopping.
    assert_eq!(idle.answer(), "");
    assert!(!stopping.is_finished());
    may_end.send(()).unwrap();
    assert_eq!(client.answer(), "errno=0\n\n");
    let listener = stopping.join().unwrap();
    assert_eq!(served.device.config().listen_port, Some(51_820));

    // Who comes now waits, and the next process serves it under the descriptor that it was given.
    let mut waiting = served.client();
    waiting.send("get=1\n\n");
    let given = listener.as_fd().try_clone_to_owned().unwrap();
    drop(listener);
    let inherited = ControlListener::inherit(given, &served.socket_dir(), "weft.wg0").unwrap();
    assert_eq!(inherited.path(), served.path());
    let device = Arc::clone(&served.device) as Arc<dyn Configurable>;
    let server = ControlServer::start(inherited, device).unwrap();
    assert_eq!(waiting.answer(), "listen_port=51820\nerrno=0\n\n");
    drop(server);
}
