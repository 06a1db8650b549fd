// SPDX-License-Identifier: Apache-2.0

//! A node forwards its pods' packets: the sysctls of that, for each family.

use std::fs;

use netd_plan::links::LINK_PREFIX;

use crate::{
    SysctlError, Sysctls,
    sysctl::{ROOT, read},
};

/// Where IPv6's settings of links are.
const IPV6_CONF: &str = "net/ipv6/conf";

/// Makes the node forward IPv4. Idempotent; the old value is on record.
pub fn forward_ipv4(sysctls: &mut Sysctls) -> Result<(), SysctlError> {
    sysctls.set("net/ipv4/ip_forward", "1").map(drop)
}

/// Makes the node forward IPv6, where the kernel has it. Idempotent; old values are on record.
///
/// A kernel that forwards takes no more router advertisements on links with accept_ra=1, and drops the default route that
/// it has from one. So links that take them now (all with accept_ra=1 that do not forward yet, and the `uplink` always) get
/// accept_ra=2 first.
pub fn forward_ipv6(sysctls: &mut Sysctls, uplink: &str) -> Result<(), SysctlError> {
    let links = fs::read_dir(format!("{ROOT}/{IPV6_CONF}")).into_iter().flatten().flatten();
    let mut links: Vec<String> = links.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    links.sort();
    for link in links {
        // Settings for all and for links to come are not a link's; our own links take no advertisements.
        if ["all", "default", "lo"].contains(&link.as_str()) || link.starts_with(LINK_PREFIX) {
            continue;
        }
        let value = |name: &str| read(&format!("{IPV6_CONF}/{link}/{name}")).unwrap_or_default();
        let listens = value("accept_ra") == "1" && (link == uplink || value("forwarding") == "0");
        if listens {
            sysctls.set_if_present(&format!("{IPV6_CONF}/{link}/accept_ra"), "2")?;
        }
    }
    sysctls.set_if_present(&format!("{IPV6_CONF}/all/forwarding"), "1").map(drop)
}
