// SPDX-License-Identifier: Apache-2.0
//! Makes an input small as long as something holds of it.

/// Looks at most: the input of a crash need not be the smallest.
const TRIES_MAX: usize = 10_000;

/// Parts up to this length, in bytes, are tried at every place.
const SHORT: usize = 16;

/// Cuts out ever smaller parts while `holds` says yes.
pub(crate) fn small(input: &[u8], mut holds: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
    let mut input = input.to_vec();
    let (mut tries, mut part) = (0, (input.len() / 2).max(1));
    loop {
        let (mut start, mut cut) = (0, false);
        while start < input.len() {
            tries += 1;
            if tries > TRIES_MAX {
                return input;
            }
            let end = (start + part).min(input.len());
            let without = [&input[..start], &input[end..]].concat();
            if holds(&without) {
                (input, cut) = (without, true);
            } else {
                // Long parts lie side by side, short ones anywhere.
                start += if part > SHORT { part } else { 1 };
            }
        }
        if !cut && part == 1 {
            return input;
        }
        part = match part {
            _ if cut => part.min(input.len()).max(1),
            // Few lengths of long parts, every length of short ones: words and values of JSON.
            _ if part > SHORT => part / 2,
            _ => (part - 1).max(1),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_matters_is_left() {
        let input = b"a long line with an x somewhere and a y behind it";
        assert_eq!(small(input, |bytes| bytes.contains(&b'x') && bytes.contains(&b'y')), b"xy");
        assert_eq!(small(b"", |_| true), b"");
    }
}
