// SPDX-License-Identifier: Apache-2.0
//! The OPT record of a question (RFC 6891): sizes, DNSSEC OK, DNS cookies (RFC 7873). Other options are ignored.

/// RFC 7873, 4: octets of the client's part, and of both parts.
const COOKIE_CLIENT: usize = 8;
const COOKIE_MIN: usize = 16;
const COOKIE_MAX: usize = 40;

/// Number of the cookie option.
pub(crate) const OPTION_COOKIE: u16 = 10;
/// Number of the extended error option (RFC 8914).
pub(crate) const OPTION_ERROR: u16 = 15;

/// What a client says with an OPT record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edns {
    /// Octets of an UDP answer that it takes.
    pub udp_size: u16,
    /// EDNS version; a question with another than 0 is not served.
    pub version: u8,
    /// Wants DNSSEC records (RFC 3225); said back, and nothing else, for there are none.
    pub dnssec_ok: bool,
    /// Its cookie.
    pub cookie: Option<Cookie>,
}

/// A cookie of a client: its own part and, where it has been here, ours.
#[derive(Clone, PartialEq, Eq)]
pub struct Cookie {
    octets: [u8; COOKIE_MAX],
    len: u8,
}

impl Cookie {
    /// The part that the client made.
    #[must_use]
    pub fn client(&self) -> [u8; COOKIE_CLIENT] {
        let mut client = [0; COOKIE_CLIENT];
        client.copy_from_slice(&self.octets[..COOKIE_CLIENT]);
        client
    }

    /// The part that a server made: 8 to 32 octets, or none yet.
    #[must_use]
    pub fn server(&self) -> &[u8] {
        &self.octets[COOKIE_CLIENT..usize::from(self.len).max(COOKIE_CLIENT)]
    }
}

impl std::fmt::Debug for Cookie {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cookie").field("client", &self.client()).field("server", &self.server()).finish()
    }
}

impl Edns {
    /// From the fields of an OPT record; `None` where an option is cut or a cookie has no length of one.
    pub(crate) fn read(class: u16, ttl: u32, mut options: &[u8]) -> Option<Self> {
        let mut cookie = None;
        while !options.is_empty() {
            let (head, rest) = options.split_first_chunk::<4>()?;
            let [code, length] =
                [u16::from_be_bytes([head[0], head[1]]), u16::from_be_bytes([head[2], head[3]])];
            let value = rest.get(..usize::from(length))?;
            options = &rest[value.len()..];
            if code == OPTION_COOKIE && cookie.is_none() {
                let whole = value.len() == COOKIE_CLIENT || (COOKIE_MIN..=COOKIE_MAX).contains(&value.len());
                if !whole {
                    return None;
                }
                let mut octets = [0; COOKIE_MAX];
                octets[..value.len()].copy_from_slice(value);
                cookie = Some(Cookie { octets, len: value.len() as u8 });
            }
        }
        Some(Self { udp_size: class, version: (ttl >> 16) as u8, dnssec_ok: ttl & 0x8000 != 0, cookie })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_has_a_length_of_one() {
        let option = |length: usize| [&[0, 10, 0, length as u8][..], &vec![7; length]].concat();
        for length in [8, 16, 24, 40] {
            let edns = Edns::read(1232, 0x8000, &option(length)).unwrap();
            let cookie = edns.cookie.unwrap();
            assert_eq!((cookie.client(), cookie.server().len()), ([7; 8], length - 8));
        }
        for length in [0, 7, 9, 15, 41] {
            assert_eq!(Edns::read(1232, 0, &option(length)), None, "{length}");
        }
        assert_eq!(Edns::read(1232, 0, &[0, 3, 0]), None, "a cut option");
        let other = Edns::read(512, 0x0001_0000, &[0, 3, 0, 1, 65]).unwrap();
        assert_eq!((other.cookie, other.version, other.dnssec_ok), (None, 1, false));
    }
}
