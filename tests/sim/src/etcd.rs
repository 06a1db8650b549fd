// SPDX-License-Identifier: Apache-2.0
//! An etcd of the test's own: free ports on 127.0.0.1, data in a temporary folder, ended by its pid also on failure.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use netd_store::{Etcd, EtcdConfig, Store as _};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Far more than a start takes, also on a machine that is busy.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Short, so that an outage is noticed while a test waits for it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// A running etcd, or a stopped one whose data is there.
pub struct Server {
    dir: TempDir,
    port: u16,
    peer_port: u16,
    child: Option<Child>,
}

impl Server {
    /// Starts one without data.
    pub fn start_new() -> Result<Server> {
        let mut server = Server { dir: tempfile::tempdir()?, port: 0, peer_port: 0, child: None };
        let mut last = None;
        // Another process may take a port between the look and the bind.
        for _ in 0..5 {
            (server.port, server.peer_port) = (free_port()?, free_port()?);
            match server.start() {
                Ok(()) => return Ok(server),
                Err(error) => last = Some(error),
            }
            server.stop();
            let _ = fs::remove_dir_all(server.dir.path().join("data"));
        }
        bail!("{}", last.map(|error| format!("{error:#}")).unwrap_or_default())
    }

    /// Starts it, or starts it again where it was.
    pub fn start(&mut self) -> Result<()> {
        let (client, peer) = (self.url(), format!("http://127.0.0.1:{}", self.peer_port));
        let log = File::options().create(true).append(true).open(self.dir.path().join("log"))?;
        let child = Command::new("etcd")
            .env_clear()
            .current_dir(self.dir.path())
            .args(["--name", "sim", "--data-dir", "data", "--logger", "zap", "--log-level", "warn"])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("sim={peer}")])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("etcd (Debian: etcd-server) is needed")?;
        let child = self.child.insert(child);
        let begun = Instant::now();
        while begun.elapsed() < START_LIMIT && child.try_wait()?.is_none() {
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("etcd does not start: {}", fs::read_to_string(self.dir.path().join("log")).unwrap_or_default())
    }

    /// Kills it at once, as a crash would; the data stays.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// It answers nobody and closes nothing; what is sent meanwhile it may read after [`Server::thaw`].
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// It goes on.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// A connection of one's own, once the server answers on it.
    pub async fn client(&self) -> Result<Etcd> {
        let endpoints = vec![self.url()];
        let config = EtcdConfig { endpoints, request_timeout: REQUEST_TIMEOUT, ..EtcdConfig::default() };
        let etcd = Etcd::connect(config).await?;
        let begun = Instant::now();
        while let Err(error) = etcd.get("/ready").await {
            if begun.elapsed() > START_LIMIT {
                return Err(error.into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(etcd)
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("etcd does not run")?;
        Ok(kill(Pid::from_raw(i32::try_from(child.id())?), signal)?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Below the range that the kernel gives to outgoing connections, so that nobody sits there while the server is stopped.
fn free_port() -> Result<u16> {
    for _ in 0..1_000 {
        let port = fastrand::u16(20_000..30_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port between 20000 and 30000")
}
