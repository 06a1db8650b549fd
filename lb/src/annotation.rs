// SPDX-License-Identifier: Apache-2.0
//! Extras on a Service: annotations under `weft.dev/`.

use std::collections::BTreeMap;

use crate::IgnoredField;
use crate::shape::Mismatch;

const PREFIX: &str = "weft.dev/";

/// Extras that have a name and no effect yet.
const PLANNED: &[&str] =
    &["algorithm", "forwarding", "health-check", "outlier-detection", "slow-start", "weights"];

/// Annotations of others that change how a proxy treats a Service: named, because someone relies on them.
const FOREIGN_PREFIXES: &[&str] = &["service.kubernetes.io/", "service.alpha.kubernetes.io/"];

/// Names what is ignored; an annotation under our prefix that we do not know is an error, since a typing mistake
/// there would otherwise go unnoticed. Extras belong on Services: `planned` is false for other kinds.
pub(crate) fn check(
    annotations: &BTreeMap<String, String>,
    planned: bool,
    ignored: &mut Vec<IgnoredField>,
) -> Result<(), Mismatch> {
    for key in annotations.keys() {
        let path = format!("metadata.annotations[{key:?}]");
        match key.strip_prefix(PREFIX) {
            Some(extra) if planned && PLANNED.contains(&extra) => ignored.push(IgnoredField { path }),
            Some(_) if planned => {
                let known = PLANNED.join(", ");
                return Err(Mismatch {
                    field: path,
                    reason: format!("no such extra; under weft.dev/ there are: {known}"),
                });
            }
            Some(_) => {
                return Err(Mismatch {
                    field: path,
                    reason: "extras under weft.dev/ belong on a Service".to_owned(),
                });
            }
            None if FOREIGN_PREFIXES.iter().any(|prefix| key.starts_with(prefix)) => {
                ignored.push(IgnoredField { path });
            }
            None => {}
        }
    }
    Ok(())
}
