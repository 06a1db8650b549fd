// SPDX-License-Identifier: Apache-2.0
//! `weft pod label`.

use serde_json::json;

use crate::fake_netd::{FakeNetd, json as parsed, stderr, stdout};

#[test]
fn labels_are_set_and_dropped() {
    let netd = FakeNetd::start(&[(200, json!({"labels": {"app": "web"}}))]);
    let output = netd.weft(&["pod", "label", "shop/web-0", "app=web", "tier-"]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), "pod shop/web-0 app=web\n"));
    let body = json!({"namespace": "shop", "name": "web-0", "labels": {"app": "web", "tier": null}});
    assert_eq!(netd.requests(), [("POST /v1/pods/label".to_owned(), body)]);
    let output = netd.weft(&["pod", "label", "web-0", "tier-", "--json"]);
    assert_eq!(parsed(&output), json!({"labels": {"app": "web"}}), "{}", stderr(&output));
}
