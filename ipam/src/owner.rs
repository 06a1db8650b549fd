// SPDX-License-Identifier: Apache-2.0
//! Who an address belongs to.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Identity of an attachment: one interface of one container on one network (CNI specification 1.1, "parameters").
///
/// Text form is `network.container.ifname`, as in store keys. Dots, slashes, percent signs, blanks and control
/// characters inside a part are written as `%` and two hex digits, so that the text is never ambiguous.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttachmentKey {
    /// Name of the CNI network.
    pub network: String,
    /// Container ID that the runtime gave.
    pub container_id: String,
    /// Interface name inside the container.
    pub ifname: String,
}

/// Owner of an address. Text form (also in JSON): `node/<uuid>`, `attachment/<network>/<container ID>/<ifname>`,
/// `reserved/<why>`, `sticky/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Owner {
    /// An attachment of a pod.
    Attachment(AttachmentKey),
    /// The node itself: its overlay address.
    Node(Uuid),
    /// Nobody; kept free of use for the reason given.
    Reserved(String),
    /// A name whose addresses follow it from attachment to attachment and from node to node.
    Sticky(String),
}

/// The text does not name an owner or an attachment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OwnerError {
    /// Not three parts, or an empty one, or a broken `%` sequence.
    #[error("`{0}` is not an attachment: expected network.container.ifname")]
    Attachment(String),
    /// Not one of the kinds.
    #[error(
        "`{0}` is not an owner: expected node/UUID, attachment/NETWORK/CONTAINER/IFNAME, reserved/REASON or sticky/NAME"
    )]
    Owner(String),
}

impl AttachmentKey {
    /// Puts the three parts together.
    pub fn new(
        network: impl Into<String>,
        container_id: impl Into<String>,
        ifname: impl Into<String>,
    ) -> AttachmentKey {
        AttachmentKey { network: network.into(), container_id: container_id.into(), ifname: ifname.into() }
    }

    fn join(&self, separator: char) -> String {
        let parts = [&self.network, &self.container_id, &self.ifname];
        parts.map(|part| escape(part, separator)).join(&separator.to_string())
    }

    fn split(text: &str, separator: char) -> Option<AttachmentKey> {
        let mut parts = text.split(separator).map(unescape);
        let key =
            AttachmentKey { network: parts.next()??, container_id: parts.next()??, ifname: parts.next()?? };
        let complete = ![&key.network, &key.container_id, &key.ifname].into_iter().any(String::is_empty);
        (parts.next().is_none() && complete).then_some(key)
    }
}

impl fmt::Display for AttachmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.join('.'))
    }
}

impl FromStr for AttachmentKey {
    type Err = OwnerError;

    fn from_str(text: &str) -> Result<Self, OwnerError> {
        AttachmentKey::split(text, '.').ok_or_else(|| OwnerError::Attachment(text.to_owned()))
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Attachment(key) => write!(f, "attachment/{}", key.join('/')),
            Owner::Node(uuid) => write!(f, "node/{uuid}"),
            Owner::Reserved(why) => write!(f, "reserved/{why}"),
            Owner::Sticky(name) => write!(f, "sticky/{name}"),
        }
    }
}

impl FromStr for Owner {
    type Err = OwnerError;

    fn from_str(text: &str) -> Result<Self, OwnerError> {
        let owner = match text.split_once('/') {
            Some(("attachment", rest)) => AttachmentKey::split(rest, '/').map(Owner::Attachment),
            Some(("node", rest)) => rest.parse().ok().map(Owner::Node),
            Some(("reserved", why)) => Some(Owner::Reserved(why.to_owned())),
            Some(("sticky", name)) if !name.is_empty() => Some(Owner::Sticky(name.to_owned())),
            _ => None,
        };
        owner.ok_or_else(|| OwnerError::Owner(text.to_owned()))
    }
}

impl From<Owner> for String {
    fn from(owner: Owner) -> String {
        owner.to_string()
    }
}

impl TryFrom<String> for Owner {
    type Error = OwnerError;

    fn try_from(text: String) -> Result<Self, OwnerError> {
        text.parse()
    }
}

impl From<AttachmentKey> for Owner {
    fn from(key: AttachmentKey) -> Owner {
        Owner::Attachment(key)
    }
}

impl Owner {
    /// Who keeps an address of a block out of its node's use while the address belongs to a record of its own.
    pub fn granted(ip: IpAddr) -> Owner {
        Owner::Reserved(format!("{GRANTED}{ip}"))
    }

    /// The address, where this is [`Owner::granted`] of one.
    pub fn as_granted(&self) -> Option<IpAddr> {
        match self {
            Owner::Reserved(why) => why.strip_prefix(GRANTED)?.parse().ok(),
            Owner::Attachment(_) | Owner::Node(_) | Owner::Sticky(_) => None,
        }
    }
}

/// Begins the reason of an address that was granted to another node.
const GRANTED: &str = "address/";

/// A name as a part of a store key: as the parts of an [`AttachmentKey`] are written.
pub fn escape_part(part: &str) -> String {
    escape(part, '.')
}

/// The name that [`escape_part`] wrote; `None` where it would have written another text.
pub fn unescape_part(text: &str) -> Option<String> {
    unescape(text).filter(|part| escape_part(part) == text)
}

/// Owner of a further address found under an owner that has one: kept out of use, and visible. The text names the
/// address too, so that no two of them are equal.
pub(crate) fn duplicate_of(owner: &Owner, first: IpAddr, further: Option<IpAddr>) -> Owner {
    match further {
        Some(further) => Owner::Reserved(format!("{further}: {owner} already has {first}")),
        None => Owner::Reserved(format!("{owner} already has {first}")),
    }
}

fn escape(part: &str, separator: char) -> String {
    let mut text = String::with_capacity(part.len());
    for c in part.chars() {
        if c == separator || c == '%' || c == '/' || c.is_ascii_whitespace() || c.is_ascii_control() {
            text.push_str(&format!("%{:02x}", u32::from(c)));
        } else {
            text.push(c);
        }
    }
    text
}

fn unescape(text: &str) -> Option<String> {
    let mut part = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            part.push(byte);
            continue;
        }
        let high = char::from(bytes.next()?).to_digit(16)?;
        let low = char::from(bytes.next()?).to_digit(16)?;
        part.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(part).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_names_read_as_they_are() {
        let key = AttachmentKey::new("weft", "c0ffee", "eth0");
        assert_eq!(key.to_string(), "weft.c0ffee.eth0");
        assert_eq!(Owner::from(key).to_string(), "attachment/weft/c0ffee/eth0");
    }

    #[test]
    fn dots_inside_a_part_do_not_split_it() {
        let key = AttachmentKey::new("my.net", "a.b", "eth0.100");
        assert_eq!(key.to_string(), "my%2enet.a%2eb.eth0%2e100");
        assert_eq!(key.to_string().parse(), Ok(key.clone()));
        let owner = Owner::from(key);
        assert_eq!(owner.to_string(), "attachment/my.net/a.b/eth0.100");
        assert_eq!(owner.to_string().parse(), Ok(owner));
    }

    #[test]
    fn sticky_name_is_text_of_any_kind() {
        for name in ["db-0", "default/db-0", "02:00:00:00:00:01", "a b%c"] {
            let owner = Owner::Sticky(name.to_owned());
            assert_eq!(owner.to_string(), format!("sticky/{name}"));
            assert_eq!(owner.to_string().parse(), Ok(owner));
            assert_eq!(unescape_part(&escape_part(name)).as_deref(), Some(name));
            assert!(!escape_part(name).contains('/'));
        }
        assert_eq!(unescape_part("a%2F"), None, "only the spelling that we write");
        let ip: IpAddr = "fd00::5".parse().unwrap();
        assert_eq!(Owner::granted(ip).to_string(), "reserved/address/fd00::5");
        assert_eq!(Owner::granted(ip).as_granted(), Some(ip));
        assert_eq!(Owner::Reserved("fd00::5".to_owned()).as_granted(), None);
    }

    #[test]
    fn broken_text_is_refused() {
        for text in ["", "a.b", "a.b.c.d", "a..c", "a.b.%2", "a.b.%zz", "a.b.%ff"] {
            assert!(text.parse::<AttachmentKey>().is_err(), "{text}");
        }
        for text in ["", "node", "node/x", "attachment/a/b", "pod/a/b/c", "sticky/"] {
            assert!(text.parse::<Owner>().is_err(), "{text}");
        }
    }
}
