// SPDX-License-Identifier: Apache-2.0
//! Keys: 32 bytes each, in base64 (`wg`, configuration files, the store) and in hex (the configuration protocol).
//!
//! Secrets are wiped when dropped, compared in constant time, and shown as `(hidden)`.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::STANDARD};
use boringtun::x25519;
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Bytes of every key (WG_KEY_LEN of include/uapi/linux/wireguard.h).
pub const KEY_LEN: usize = 32;
/// Characters of a key in base64, and in hex.
const BASE64_LEN: usize = 44;
const HEX_LEN: usize = 2 * KEY_LEN;

/// Why there is no key.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum KeyError {
    /// The text is not 32 bytes in base64. The text itself may be a secret and is not shown.
    #[error(
        "not a key in base64: expected {BASE64_LEN} characters that decode to {KEY_LEN} bytes (as `wg genkey` prints)"
    )]
    Base64,
    /// The text is not 32 bytes in hex.
    #[error("not a key in hex: expected {HEX_LEN} hexadecimal digits")]
    Hex,
    /// The system gives no random bytes.
    #[error("cannot make a key: the system gives no random bytes: {0}")]
    Random(String),
}

/// A peer's name: its Curve25519 public key. Shown in base64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; KEY_LEN]);

/// A Curve25519 private key, always clamped as RFC 7748 section 5 says, so that one key has one form.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PrivateKey([u8; KEY_LEN]);

/// A symmetric key that two peers share beside their own. All zeros is the same as none, and never is one of these where
/// `Option<PresharedKey>` comes from this crate.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; KEY_LEN]);

impl PublicKey {
    /// From base64.
    ///
    /// # Errors
    /// [`KeyError::Base64`].
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        Ok(Self(*base64_bytes(text)?))
    }

    /// From hex, in either case.
    ///
    /// # Errors
    /// [`KeyError::Hex`].
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        Ok(Self(*hex_bytes(text)?))
    }

    /// In base64.
    #[must_use]
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0)
    }

    /// In lower-case hex.
    #[must_use]
    pub fn to_hex(&self) -> String {
        hex(&self.0)
    }

    /// As they go over the wire.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// One of the few points of low order, all zeros among them (RFC 7748 section 6.1): what is agreed on with it is known to
    /// everybody, and WireGuard makes no handshake.
    #[must_use]
    pub fn is_low_order(&self) -> bool {
        // Every private key is a multiple of the order of these points, so that any tells.
        let any = x25519::StaticSecret::from([1; KEY_LEN]);
        !any.diffie_hellman(&x25519::PublicKey::from(self.0)).was_contributory()
    }
}

impl PrivateKey {
    /// A new one from the system's randomness.
    ///
    /// # Errors
    /// [`KeyError::Random`].
    pub fn generate() -> Result<Self, KeyError> {
        Ok(Self::from(*random_bytes()?))
    }

    /// From base64.
    ///
    /// # Errors
    /// [`KeyError::Base64`].
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        Ok(Self::from(*base64_bytes(text)?))
    }

    /// From hex. All zeros are clamped like any other bytes; in a request they mean no key, which the parser looks at.
    ///
    /// # Errors
    /// [`KeyError::Hex`].
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        Ok(Self::from(*hex_bytes(text)?))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        let secret = x25519::StaticSecret::from(self.0);
        PublicKey(x25519::PublicKey::from(&secret).to_bytes())
    }

    /// In base64; wiped when dropped.
    #[must_use]
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0))
    }

    /// In lower-case hex; wiped when dropped.
    #[must_use]
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(hex(&self.0))
    }

    /// The secret bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}

impl PresharedKey {
    /// A new one from the system's randomness.
    ///
    /// # Errors
    /// [`KeyError::Random`].
    pub fn generate() -> Result<Self, KeyError> {
        Ok(Self(*random_bytes()?))
    }

    /// From base64.
    ///
    /// # Errors
    /// [`KeyError::Base64`].
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        Ok(Self(*base64_bytes(text)?))
    }

    /// From hex.
    ///
    /// # Errors
    /// [`KeyError::Hex`].
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        Ok(Self(*hex_bytes(text)?))
    }

    /// In base64; wiped when dropped.
    #[must_use]
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0))
    }

    /// In lower-case hex; wiped when dropped.
    #[must_use]
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(hex(&self.0))
    }

    /// The secret bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}

impl From<[u8; KEY_LEN]> for PublicKey {
    fn from(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }
}

impl From<[u8; KEY_LEN]> for PrivateKey {
    fn from(mut bytes: [u8; KEY_LEN]) -> Self {
        bytes[0] &= 0b1111_1000;
        bytes[KEY_LEN - 1] = bytes[KEY_LEN - 1] & 0b0111_1111 | 0b0100_0000;
        let key = Self(bytes);
        bytes.zeroize();
        key
    }
}

impl From<[u8; KEY_LEN]> for PresharedKey {
    fn from(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::from_base64(text)
    }
}

impl FromStr for PrivateKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::from_base64(text)
    }
}

impl FromStr for PresharedKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::from_base64(text)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_base64())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

macro_rules! secret {
    ($($key:ident),*) => { $(
        impl PartialEq for $key {
            fn eq(&self, other: &Self) -> bool {
                is_same(&self.0, &other.0)
            }
        }

        impl Eq for $key {}

        impl fmt::Display for $key {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("(hidden)")
            }
        }

        impl fmt::Debug for $key {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($key), "(hidden)"))
            }
        }
    )* };
}

secret!(PrivateKey, PresharedKey);

/// Takes as long wherever the first difference is.
fn is_same(one: &[u8; KEY_LEN], other: &[u8; KEY_LEN]) -> bool {
    let difference = one.iter().zip(other).fold(0, |difference, (one, other)| difference | (one ^ other));
    std::hint::black_box(difference) == 0
}

fn random_bytes() -> Result<Zeroizing<[u8; KEY_LEN]>, KeyError> {
    let mut bytes = Zeroizing::new([0; KEY_LEN]);
    getrandom::fill(bytes.as_mut_slice()).map_err(|error| KeyError::Random(error.to_string()))?;
    Ok(bytes)
}

fn base64_bytes(text: &str) -> Result<Zeroizing<[u8; KEY_LEN]>, KeyError> {
    if text.len() != BASE64_LEN {
        return Err(KeyError::Base64);
    }
    // What 44 characters decode to at most; a key fills one less.
    let mut decoded = Zeroizing::new([0; KEY_LEN + 1]);
    let length = STANDARD.decode_slice(text, decoded.as_mut_slice()).map_err(|_| KeyError::Base64)?;
    let mut bytes = Zeroizing::new([0; KEY_LEN]);
    if length != KEY_LEN {
        return Err(KeyError::Base64);
    }
    bytes.copy_from_slice(&decoded[..KEY_LEN]);
    Ok(bytes)
}

fn hex_bytes(text: &str) -> Result<Zeroizing<[u8; KEY_LEN]>, KeyError> {
    let text = text.as_bytes();
    if text.len() != HEX_LEN {
        return Err(KeyError::Hex);
    }
    let mut bytes = Zeroizing::new([0; KEY_LEN]);
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Ok(bytes)
}

fn nibble(digit: u8) -> Result<u8, KeyError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(KeyError::Hex),
    }
}

fn hex(bytes: &[u8; KEY_LEN]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(HEX_LEN);
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)].into());
        text.push(DIGITS[usize::from(byte & 15)].into());
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // RFC 7748 section 6.1, Alice's.
    const PRIVATE: &str = "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a";
    const PUBLIC: &str = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";

    #[test]
    fn the_public_half_is_that_of_rfc_7748() {
        let key = PrivateKey::from_hex(PRIVATE).unwrap();
        assert_eq!(key.public().to_hex(), PUBLIC);
        // The RFC's scalar is not clamped; the key is.
        assert_eq!(key.as_bytes()[0], 0x70);
        assert_eq!(key.as_bytes()[31], 0x6a);
    }

    #[test]
    fn a_point_of_low_order_is_told_from_a_key() {
        // The u-coordinates 0, 1, p - 1 and one of order 8 (RFC 7748 section 6.1, Curve25519 paper).
        let order_8 = "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800";
        let minus_one = format!("ec{}7f", "ff".repeat(30));
        for low in [&"00".repeat(32), &format!("01{}", "00".repeat(31)), &minus_one, order_8] {
            assert!(PublicKey::from_hex(low).unwrap().is_low_order(), "{low}");
        }
        assert!(!PublicKey::from_hex(PUBLIC).unwrap().is_low_order());
        assert!(!PrivateKey::generate().unwrap().public().is_low_order());
    }

    #[test]
    fn generated_keys_differ_and_are_clamped() {
        let (one, other) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        assert_ne!(one, other);
        assert_ne!(one.public(), other.public());
        assert_eq!(PrivateKey::from(*one.as_bytes()), one);
        assert_ne!(PresharedKey::generate().unwrap(), PresharedKey::generate().unwrap());
    }

    #[test]
    fn secrets_are_not_shown() {
        let key = PrivateKey::from_hex(PRIVATE).unwrap();
        assert_eq!(format!("{key} {key:?}"), "(hidden) PrivateKey(hidden)");
        let key = PresharedKey::from_hex(PRIVATE).unwrap();
        assert_eq!(format!("{key} {key:?}"), "(hidden) PresharedKey(hidden)");
        let error = PrivateKey::from_base64(PRIVATE).unwrap_err();
        assert!(!error.to_string().contains("7707"), "{error}");
    }

    #[test]
    fn what_is_not_a_key_is_refused() {
        let good = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
        assert_eq!(PublicKey::from_base64(good).unwrap().to_string(), good);
        let bad_base64 = [
            "",
            "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk", // no padding
            "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBml=", // bits beyond the end
            "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBg==", // 31 bytes
            "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmkA", // 33 bytes
            "yAnz5TF-lXXJte14tji3zlMNq_hd2rYUIgJBgB3fBmk=", // the other alphabet
            " yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=", // a space
        ];
        for text in bad_base64 {
            assert_eq!(PublicKey::from_base64(text), Err(KeyError::Base64), "{text}");
        }
        for text in
            ["", "00", &PUBLIC[1..], &PUBLIC.replace('8', "g"), &format!("{PUBLIC}0"), &"é".repeat(32)]
        {
            assert_eq!(PublicKey::from_hex(text), Err(KeyError::Hex), "{text}");
        }
        assert_eq!(PublicKey::from_hex(&PUBLIC.to_uppercase()).unwrap().to_hex(), PUBLIC);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(bytes: [u8; KEY_LEN]) {
            let key = PublicKey::from(bytes);
            prop_assert_eq!(PublicKey::from_base64(&key.to_base64()).unwrap(), key);
            prop_assert_eq!(PublicKey::from_hex(&key.to_hex()).unwrap(), key);
            let key = PrivateKey::from(bytes);
            prop_assert_eq!(&PrivateKey::from_base64(&key.to_base64()).unwrap(), &key);
            prop_assert_eq!(&PrivateKey::from_hex(&key.to_hex()).unwrap(), &key);
            let key = PresharedKey::from(bytes);
            prop_assert_eq!(&PresharedKey::from_base64(&key.to_base64()).unwrap(), &key);
            prop_assert_eq!(&PresharedKey::from_hex(&key.to_hex()).unwrap(), &key);
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,50}|[A-Za-z0-9+/=]{44}|[0-9a-fA-F]{64}") {
            if let Ok(key) = PublicKey::from_base64(&text) {
                prop_assert_eq!(key.to_base64(), text.clone());
            }
            if let Ok(key) = PublicKey::from_hex(&text) {
                prop_assert_eq!(key.to_hex(), text.to_lowercase());
            }
        }
    }
}
