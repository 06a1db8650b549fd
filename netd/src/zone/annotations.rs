// SPDX-License-Identifier: Apache-2.0
//! What a Service's annotations say about its names.

use std::collections::BTreeMap;

use dns_zone::{Views, Zone, ZoneKind, ZoneService, ZoneSettings};

/// Who may see a Service's names ([`Views`]).
pub(super) const VIEWS: &str = "weft.dev/dns-views";
/// Further names of a Service: `NAME` or `NAME.NAMESPACE`, between commas.
pub(super) const ALIASES: &str = "weft.dev/dns-aliases";

/// What is wrong with them, for who applies an object: the field, and why.
///
/// # Errors
/// The first annotation that is not understood.
pub(crate) fn check(annotations: &BTreeMap<String, String>) -> Result<(), String> {
    let field = |key: &str| format!("metadata.annotations[{key:?}]");
    if let Some(text) = annotations.get(VIEWS) {
        Views::parse(text).map_err(|error| format!("{}: {error}", field(VIEWS)))?;
    }
    let Some(text) = annotations.get(ALIASES) else { return Ok(()) };
    // A zone with this service alone says what is wrong with its names.
    let service =
        ZoneService { aliases: words(text), ..ZoneService::new("default", "a", ZoneKind::Headless) };
    let zone = Zone::new(ZoneSettings::new("cluster.local")).map_err(|error| error.to_string())?;
    let mut edit = zone.edit();
    edit.set_service(&service);
    match edit.finish(0).problems().into_iter().next() {
        Some(problem) => Err(format!("{}: {}", field(ALIASES), problem.reason)),
        None => Ok(()),
    }
}

pub(super) fn words(text: &str) -> Vec<String> {
    text.split(',').map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_annotation_that_is_wrong_is_named() {
        let told = |key: &str, text: &str| check(&BTreeMap::from([(key.to_owned(), text.to_owned())]));
        for (key, text) in [
            (VIEWS, "namespace=shop; app=web,tier"),
            (ALIASES, "sql, pg.other"),
            (ALIASES, ""),
            ("weft.dev/algorithm", "?"),
        ] {
            assert_eq!(told(key, text), Ok(()), "{key}: {text}");
        }
        let views = told(VIEWS, "app=web,,tier").unwrap_err();
        assert!(views.starts_with("metadata.annotations[\"weft.dev/dns-views\"]: rule 1"), "{views}");
        let aliases = told(ALIASES, "sql, a.b.c").unwrap_err();
        assert!(
            aliases.starts_with("metadata.annotations[\"weft.dev/dns-aliases\"]: alias \"a.b.c\""),
            "{aliases}"
        );
    }
}
