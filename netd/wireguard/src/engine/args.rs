// SPDX-License-Identifier: Apache-2.0
//! Flags and environment of `weft-wireguard`. All else is set over the configuration socket.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use super::options::EngineOptions;

/// WireGuard devices in user space. They are configured as any other: `wg set`, `wg show`, or netd.
#[derive(Debug, Parser)]
#[command(name = "weft-wireguard", version, about, max_term_width = 110)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub(crate) struct Args {
    /// Devices to run.
    #[arg(env = "WEFT_WIREGUARD_DEVICES", value_name = "DEVICE", value_delimiter = ',', default_values = ["weft.wg0", "weft.wg1"])]
    pub devices: Vec<String>,
    /// Where the configuration sockets lie, one `<device>.sock` each.
    #[arg(long, env = "WEFT_WIREGUARD_SOCKET_DIR", value_name = "DIR", default_value = "/var/run/wireguard")]
    pub socket_dir: PathBuf,
    /// Where a new version finds this one, to take over its devices.
    #[arg(long, env = "WEFT_WIREGUARD_RUN_DIR", value_name = "DIR", default_value = "/run/weft")]
    pub run_dir: PathBuf,
    /// error, warn, info, debug, trace, or a filter per module (tracing's EnvFilter).
    #[arg(long, env = "WEFT_WIREGUARD_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub log_level: String,
    /// text or json.
    #[arg(long, env = "WEFT_WIREGUARD_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Threads that seal and open, per device [default: 1 up to two cores, else cores - 1, at most 8].
    #[arg(long, env = "WEFT_WIREGUARD_WORKERS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: Option<u16>,
    /// Do not keep the devices when this process ends.
    #[arg(long, env = "WEFT_WIREGUARD_NO_PERSIST")]
    pub no_persist: bool,
    /// Take and give TCP packet by packet at the TUN.
    #[arg(long, env = "WEFT_WIREGUARD_NO_TSO")]
    pub no_tso: bool,
    /// Take and give UDP packet by packet at the TUN.
    #[arg(long, env = "WEFT_WIREGUARD_NO_USO")]
    pub no_uso: bool,
    /// Send datagrams one by one (in batches, without UDP_SEGMENT).
    #[arg(long, env = "WEFT_WIREGUARD_NO_UDP_GSO")]
    pub no_udp_gso: bool,
    /// Receive datagrams one by one (in batches, without UDP_GRO).
    #[arg(long, env = "WEFT_WIREGUARD_NO_UDP_GRO")]
    pub no_udp_gro: bool,
    /// Send packets in the clear, to measure the I/O alone. Both ends need it.
    #[cfg(feature = "bench")]
    #[arg(long)]
    pub cipher_off: bool,
}

/// The two forms of the log.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

impl Args {
    pub(crate) fn engine(&self) -> EngineOptions {
        let default = EngineOptions::default();
        EngineOptions {
            tso: !self.no_tso,
            uso: !self.no_uso,
            udp_gso: !self.no_udp_gso,
            udp_gro: !self.no_udp_gro,
            workers: self.workers.map_or(default.workers, usize::from),
            persist: !self.no_persist,
            #[cfg(feature = "bench")]
            cipher_off: self.cipher_off,
        }
    }
}
