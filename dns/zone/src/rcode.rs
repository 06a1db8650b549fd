// SPDX-License-Identifier: Apache-2.0
//! Response codes.

use std::fmt;

/// A response code by its number in the IANA registry, the extended ones (RFC 6891) included. Displays its mnemonic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rcode(pub u16);

impl Rcode {
    /// Cookie wanted, or not ours (RFC 7873).
    pub const BADCOOKIE: Self = Self(23);
    /// An EDNS version that we do not speak (RFC 6891).
    pub const BADVERS: Self = Self(16);
    /// Not understood.
    pub const FORMERR: Self = Self(1);
    /// Answered.
    pub const NOERROR: Self = Self(0);
    /// A kind of request that we do not serve.
    pub const NOTIMP: Self = Self(4);
    /// There is no such name.
    pub const NXDOMAIN: Self = Self(3);
    /// Not for this client, or not now.
    pub const REFUSED: Self = Self(5);
    /// We cannot say.
    pub const SERVFAIL: Self = Self(2);

    const NAMES: [(Self, &'static str); 8] = [
        (Self::BADCOOKIE, "BADCOOKIE"),
        (Self::BADVERS, "BADVERS"),
        (Self::FORMERR, "FORMERR"),
        (Self::NOERROR, "NOERROR"),
        (Self::NOTIMP, "NOTIMP"),
        (Self::NXDOMAIN, "NXDOMAIN"),
        (Self::REFUSED, "REFUSED"),
        (Self::SERVFAIL, "SERVFAIL"),
    ];
}

impl fmt::Display for Rcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMES.iter().find(|(number, _)| number == self) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "RCODE{}", self.0),
        }
    }
}
