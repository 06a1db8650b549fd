// SPDX-License-Identifier: Apache-2.0
//! The user-space device: packets between a TUN and UDP sockets, sealed and opened on the way.
//!
//! A thread per device (`run`) waits for TUN and sockets. One read of the TUN is a super-packet of up to 64 KiB: its peer is
//! looked up once, its segments are sealed right into the send buffer, and leave in one system call. Received
//! datagrams come merged, are opened side by side in one buffer, and go to the TUN as super-packets again.
//! Nothing is allocated per packet.
//!
//! - `tun`, `udp`: the kernel's ends. `cipher`: boringtun's protocol. `peer`, `tables`: who is who.
//! - `tunnel`: what threads share; `configure`: changes to it. `worker`: the way of a packet; `pool`: several
//!   of them; `handshake`, `timers`: beside it.
//! - `program`, `running`: the process; `handover`: to the next one; `kernels`: what is not its business.

mod args;
mod cipher;
mod configure;
mod counters;
mod handover;
mod handshake;
mod kernels;
mod options;
mod peer;
mod pool;
pub mod probe;
mod program;
mod run;
mod running;
mod tables;
mod timers;
mod tun;
mod tunnel;
mod udp;
mod worker;

pub use options::EngineOptions;
pub use program::main;
pub use run::RunError;
pub use tun::TunError;
