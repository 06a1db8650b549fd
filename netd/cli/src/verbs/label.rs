// SPDX-License-Identifier: Apache-2.0
//! `weft pod label`.

use netd_api::{Client, PodLabelReply, PodLabelRequest};

use super::explain;
use crate::args::{LabelChange, ObjectName};
use crate::output::Shown;
use crate::table::list;

pub(super) async fn label(
    client: &Client,
    name: &ObjectName,
    changes: &[LabelChange],
) -> anyhow::Result<Shown> {
    let reply = client.pod_label(&request(name, changes)).await.map_err(explain)?;
    Shown::new(text(name, &reply), &reply)
}

/// Where a key stands twice, the last one counts.
fn request(name: &ObjectName, changes: &[LabelChange]) -> PodLabelRequest {
    PodLabelRequest {
        namespace: name.namespace.clone(),
        name: name.name.clone(),
        labels: changes.iter().map(|change| (change.key.clone(), change.value.clone())).collect(),
    }
}

fn text(name: &ObjectName, reply: &PodLabelReply) -> String {
    let labels: Vec<String> = reply.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let labels = if labels.is_empty() { "has no labels".to_owned() } else { list(&labels) };
    format!("pod {}/{} {labels}\n", name.namespace, name.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_labels_are_told_after_a_change() {
        let name: ObjectName = "shop/web".parse().unwrap();
        let changes = ["app=web", "tier-", "app=api"].map(|text| text.parse::<LabelChange>().unwrap());
        let request = request(&name, &changes);
        assert_eq!(request.labels, [("app".into(), Some("api".into())), ("tier".into(), None)].into());
        let reply =
            PodLabelReply { labels: [("app".into(), "api".into()), ("env".into(), "x".into())].into() };
        assert_eq!(text(&name, &reply), "pod shop/web app=api,env=x\n");
        assert_eq!(text(&name, &PodLabelReply { labels: [].into() }), "pod shop/web has no labels\n");
    }
}
