// SPDX-License-Identifier: Apache-2.0
//! A cluster's addressing without its kernels: the real [`netd::addressing::Addressing`] of many nodes, each with its own
//! journal on disk, against one store. Links to the store are cut and lose answers, nodes are killed and their machines
//! crash, clocks step.
//!
//! [`world::World`] has the store in memory and keeps the plain model beside it: which address is in use where.
//! [`fabric::Fabric`] is the same for the overlay: the plans of key generations and of paths, fed from records that come
//! late and in leaps.
//! [`race::Race`] has a real etcd ([`etcd::Server`]), and every node a task and a connection of its own.
#![allow(clippy::unwrap_used, reason = "a library of tests, which fail by panicking")]

pub mod cable;
pub mod etcd;
pub mod fabric;
pub mod node;
pub mod race;
pub mod rest;
pub mod wish;
pub mod world;
