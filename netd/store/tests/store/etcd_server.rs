// SPDX-License-Identifier: Apache-2.0
//! An etcd of the test's own: free ports on 127.0.0.1, data in a temporary folder, ended by its pid also on failure.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use netd_store::{Etcd, EtcdConfig, Store};
use tempfile::TempDir;

const START_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) struct EtcdServer {
    pub(crate) dir: TempDir,
    pub(crate) port: u16,
    peer_port: u16,
    scheme: &'static str,
    extra: Vec<String>,
    child: Option<Child>,
}

impl EtcdServer {
    pub(crate) fn plain() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), "http", vec![])
    }

    /// `extra` are arguments; with `https` the certificate ones among them.
    pub(crate) fn start_in(dir: TempDir, scheme: &'static str, extra: Vec<String>) -> Self {
        let mut server = Self { dir, port: 0, peer_port: 0, scheme, extra, child: None };
        // Another process may take a port between the look and the bind.
        for _ in 0..5 {
            (server.port, server.peer_port) = (free_port(), free_port());
            if server.try_start() {
                return server;
            }
            let _ = fs::remove_dir_all(server.dir.path().join("data"));
        }
        panic!("etcd does not start: {}", server.log());
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    pub(crate) fn config(&self) -> EtcdConfig {
        EtcdConfig {
            endpoints: vec![self.url()],
            request_timeout: Duration::from_secs(3),
            ..EtcdConfig::default()
        }
    }

    /// A client for which the server already answers.
    pub(crate) async fn client(&self) -> Etcd {
        serving(self.config()).await
    }

    pub(crate) fn etcdctl(&self, args: &[&str]) {
        let endpoint = format!("--endpoints={}", self.url());
        let output = Command::new("etcdctl").env("ETCDCTL_API", "3").arg(endpoint).args(args).output();
        let output = output.expect("etcdctl (Debian: etcd-client) is needed");
        assert!(output.status.success(), "etcdctl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Kills it at once, as a crash would; the data stays.
    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again where it was.
    pub(crate) fn start(&mut self) {
        assert!(self.try_start(), "etcd does not start again: {}", self.log());
    }

    fn try_start(&mut self) -> bool {
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let log = File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let child = Command::new("etcd")
            .env_clear()
            .current_dir(self.dir.path())
            .args(["--name", "test", "--data-dir", "data", "--logger", "zap", "--log-level", "warn"])
            // Short, so that leases of a second are possible and a start takes a fraction of one.
            .args(["--heartbeat-interval", "20", "--election-timeout", "200"])
            .args(["--listen-client-urls", &self.url(), "--advertise-client-urls", &self.url()])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("test={peer}")])
            .args(&self.extra)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("etcd (Debian: etcd-server) is needed");
        let child = self.child.insert(child);
        let deadline = Instant::now() + START_TIMEOUT;
        while Instant::now() < deadline {
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("etcd's log: {}", self.log());
        }
        self.stop();
    }
}

/// A client, once its server answers.
pub(crate) async fn serving(config: EtcdConfig) -> Etcd {
    let etcd = Etcd::connect(config).await.unwrap();
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        match etcd.get("/weft/ready").await {
            Ok(_) => return etcd,
            Err(error) if Instant::now() > deadline => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

pub(crate) fn path(dir: &Path, name: &str) -> String {
    dir.join(name).to_str().unwrap().to_owned()
}

/// Below the range that the kernel gives to outgoing connections, so that nobody sits there while a server is stopped.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 9000) as u16;
    loop {
        let port = 20_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
