// SPDX-License-Identifier: Apache-2.0
//! Configures a WireGuard device of either kind as netd does, and shows what it reads back. `make vm` and the bench use it.
//!
//! ```text
//! device kernel|user DEVICE set KEY-FILE PORT PEER ENDPOINT ALLOWED-IP,…
//! device kernel|user DEVICE show
//! device kernel|user DEVICE many COUNT
//! ```

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netd_wireguard::{
    Device, DeviceChange, DeviceConfig, KernelDevice, PeerConfig, PrivateKey, PublicKey, UserDevice,
};

/// Where the tools of WireGuard look for sockets.
const SOCKET_DIR: &str = "/var/run/wireguard";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let [kind, ifname, verb, rest @ ..] = args.as_slice() else {
        bail!("device kernel|user DEVICE set|show|many …");
    };
    let device: Box<dyn Device> = match *kind {
        "kernel" => Box::new(KernelDevice::new(*ifname)),
        "user" => Box::new(UserDevice::new(SOCKET_DIR, *ifname)),
        other => bail!("no such kind of device: {other}"),
    };
    match (*verb, rest) {
        ("set", [key_file, port, peer, endpoint, allowed]) => {
            apply(device.as_ref(), one_peer(key_file, port, peer, endpoint, allowed)?).await
        }
        ("many", [count]) => apply(device.as_ref(), many_peers(count.parse()?)?).await,
        ("show", []) => show(device.as_ref()).await,
        _ => bail!("device kernel|user DEVICE set|show|many …"),
    }
}

fn one_peer(key_file: &str, port: &str, peer: &str, endpoint: &str, allowed: &str) -> Result<DeviceConfig> {
    let key: PrivateKey = std::fs::read_to_string(key_file).context(key_file.to_owned())?.trim().parse()?;
    let allowed_ips = allowed.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let config = PeerConfig { endpoint: Some(endpoint.parse()?), allowed_ips, ..PeerConfig::default() };
    let peers = [(peer.parse::<PublicKey>()?, config)].into();
    Ok(DeviceConfig {
        private_key: Some(key),
        listen_port: Some(port.parse()?),
        peers,
        ..DeviceConfig::default()
    })
}

/// Peers as a large cluster has them: two blocks and two overlay addresses each.
fn many_peers(count: u32) -> Result<DeviceConfig> {
    let mut config = DeviceConfig { private_key: Some(PrivateKey::generate()?), ..DeviceConfig::default() };
    for i in 0..count {
        let node = u128::from(i);
        let four = |base: u32, step: u32| Ipv4Addr::from_bits(base + i * step);
        let allowed_ips = [
            IpNet::from(Ipv4Net::new(four(0x0a40_0000, 64), 26)?),
            IpNet::from(Ipv4Net::new(four(0x0a80_0000, 1), 32)?),
            IpNet::from(Ipv6Net::new(Ipv6Addr::from_bits((0xfd64_u128 << 112) + (node << 6)), 122)?),
            IpNet::from(Ipv6Net::new(Ipv6Addr::from_bits((0xfd65_u128 << 112) + node), 128)?),
        ];
        let endpoint = SocketAddr::from((four(0xc612_0000, 1), 51820));
        let peer = PeerConfig {
            endpoint: Some(endpoint),
            persistent_keepalive: 0,
            allowed_ips: allowed_ips.into(),
            ..PeerConfig::default()
        };
        config.peers.insert(PrivateKey::generate()?.public(), peer);
    }
    Ok(config)
}

/// Applies the difference, says how long it took, and wants nothing left to change.
async fn apply(device: &dyn Device, desired: DeviceConfig) -> Result<()> {
    let observed = device.read().await?;
    let change = DeviceChange::between(&desired, None, &observed).context("nothing to change")?;
    let start = Instant::now();
    device.apply(&change).await?;
    let took = start.elapsed();
    let observed = device.read().await?;
    let left = DeviceChange::between(&desired, Some(&desired), &observed);
    ensure!(
        left.is_none(),
        "after it was applied, this is left: {}",
        left.map(|c| c.to_string()).unwrap_or_default()
    );
    print(&format!("{} peers in {} µs", desired.peers.len(), took.as_micros()));
    Ok(())
}

async fn show(device: &dyn Device) -> Result<()> {
    let state = device.read().await?;
    print(&format!("{} port {} fwmark {}", state.kind.as_str(), state.listen_port, state.fwmark));
    for (key, peer) in &state.peers {
        let handshake = peer.last_handshake.map(|at| at.as_secs());
        print(&format!(
            "{key} {:?} handshake {handshake:?} rx {} tx {}",
            peer.config, peer.rx_bytes, peer.tx_bytes
        ));
    }
    Ok(())
}

#[allow(clippy::print_stdout, reason = "the answer is the program's output")]
fn print(line: &str) {
    println!("{line}");
}
