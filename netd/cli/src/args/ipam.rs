// SPDX-License-Identifier: Apache-2.0
//! The command line of `weft ipam`.

use clap::{Args as ClapArgs, Subcommand};
use ipnet::IpNet;

use super::values;

#[derive(Debug, Subcommand)]
pub(crate) enum IpamVerb {
    /// Pools, blocks, sticky names and this node's addresses, with their use
    Show,
    /// Compare all that is known of the addresses; exit code 1 where something does not agree
    Check,
    /// Mend what a check has proven, after saying what that will be
    Repair {
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Add, drain and remove pools
    #[command(subcommand)]
    Pool(PoolVerb),
    /// Names whose addresses follow them from node to node
    #[command(subcommand)]
    Sticky(StickyVerb),
}

#[derive(Debug, Subcommand)]
pub(crate) enum PoolVerb {
    /// Add a pool; nodes claim blocks from it at once
    Add(PoolAddArgs),
    /// Give nothing new from a pool; what is in use stays
    Drain {
        /// The pool
        name: String,
    },
    /// Take a drained pool into use again
    Undrain {
        /// The pool
        name: String,
    },
    /// Remove a pool from which no block is claimed
    Rm {
        /// The pool
        name: String,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PoolAddArgs {
    /// The pool's name
    pub(crate) name: String,
    /// Its addresses, such as 10.245.0.0/16
    #[arg(value_parser = cidr)]
    pub(crate) cidr: IpNet,
    /// Prefix length of the blocks that nodes claim [default: 26 for IPv4, 122 for IPv6]
    #[arg(long, value_name = "N")]
    pub(crate) block_prefix: Option<u8>,
    /// A label that a node must have to claim from the pool; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = values::label)]
    pub(crate) node_selector: Vec<(String, String)>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StickyVerb {
    /// Let a sticky name give its addresses up; refused while a pod has them
    Rm {
        /// The sticky name
        name: String,
    },
}

fn cidr(text: &str) -> Result<IpNet, String> {
    let cidr: IpNet = text.parse().map_err(|_| "expected a CIDR such as 10.245.0.0/16".to_owned())?;
    if cidr.addr() == cidr.network() {
        return Ok(cidr);
    }
    Err(format!("host bits are set; did you mean {}?", cidr.trunc()))
}

#[cfg(test)]
mod tests {
    use super::super::{Args, Verb};
    use super::*;
    use clap::Parser as _;

    #[test]
    fn a_pool_has_a_cidr_without_host_bits() {
        let parse = |line: &str| Args::try_parse_from(line.split(' '));
        let line = "weft ipam pool add big fd00:10:245::/56 --block-prefix 120 --node-selector zone=a --node-selector gpu=";
        let Verb::Ipam(IpamVerb::Pool(PoolVerb::Add(args))) = parse(line).unwrap().verb else {
            panic!("not a pool");
        };
        assert_eq!((args.cidr.to_string().as_str(), args.block_prefix), ("fd00:10:245::/56", Some(120)));
        assert_eq!(args.node_selector, [("zone".into(), "a".into()), ("gpu".into(), String::new())]);
        let error = parse("weft ipam pool add big 10.245.0.1/16").unwrap_err().to_string();
        assert!(error.contains("did you mean 10.245.0.0/16?"), "{error}");
        for wrong in [
            "weft ipam pool add big",
            "weft ipam pool add big 10.0.0.0",
            "weft ipam pool rm",
            "weft ipam sticky",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
