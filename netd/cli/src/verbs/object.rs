// SPDX-License-Identifier: Apache-2.0
//! `weft apply`, `weft delete`. Objects are checked here before netd is asked, with the same code as netd's, so that
//! a complaint names file, line and field, and a file with an error changes nothing.

use std::path::Path;

use anyhow::Context;
use netd_api::{ApplyReply, ApplyRequest, ApplyResult, Client, DeleteReply, DeleteRequest, NodePortInfo};
use serde_json::Value;

use super::explain;
use crate::args::DeleteArgs;
use crate::manifest::{self, Document};
use crate::output::Shown;
use crate::table::list;

/// Objects of one request: each is some transactions of the store, and all must fit into the client's time-out.
const BATCH_OBJECTS: usize = 500;
/// Bytes of one request, well below what netd takes.
const BATCH_BYTES: usize = netd_api::REQUEST_BYTES_MAX / 4 * 3;

pub(super) async fn apply(client: &Client, file: &Path) -> anyhow::Result<Shown> {
    let documents = manifest::read(file)?;
    documents.iter().try_for_each(check)?;
    let mut reply = ApplyReply { results: Vec::with_capacity(documents.len()), revision: 0 };
    for objects in batches(&documents) {
        let part = client.apply(&ApplyRequest { objects }).await.map_err(explain).with_context(|| {
            format!("{} of {} objects are applied; the rest is not", reply.results.len(), documents.len())
        })?;
        reply.results.extend(part.results);
        reply.revision = reply.revision.max(part.revision);
    }
    Ok(Shown { notes: ignored(&documents, &reply), ..Shown::new(applied(&reply), &reply)? })
}

pub(super) async fn delete(client: &Client, what: &DeleteArgs) -> anyhow::Result<Shown> {
    let requests = match (&what.file, &what.kind, &what.name) {
        (Some(file), ..) => {
            // As with apply, a file with an error changes nothing.
            let documents = manifest::read(file)?;
            documents.iter().try_for_each(known_kind)?;
            documents.iter().map(named).collect()
        }
        (None, Some(kind), Some(name)) => vec![DeleteRequest {
            kind: kind.clone(),
            namespace: name.namespace.clone(),
            name: name.name.clone(),
        }],
        // clap lets nothing else through.
        _ => Vec::new(),
    };
    let mut text = String::new();
    let mut replies = Vec::new();
    for request in &requests {
        let object = format!("{} {}/{}", request.kind, request.namespace, request.name);
        let reply =
            client.delete(request).await.map_err(explain).with_context(|| format!("deleting {object}"))?;
        text.push_str(&deleted(&object, &reply));
        replies.push(serde_json::json!({
            "object": object, "existed": reply.existed, "revision": reply.revision,
        }));
    }
    Shown::new(text, &replies)
}

/// The objects in order, in requests that netd takes and answers in time.
fn batches(documents: &[Document]) -> Vec<Vec<Value>> {
    let mut batches: Vec<Vec<Value>> = Vec::new();
    let mut bytes = usize::MAX;
    for document in documents {
        let size = document.object.to_string().len();
        match batches.last_mut() {
            Some(batch) if batch.len() < BATCH_OBJECTS && bytes.saturating_add(size) <= BATCH_BYTES => {
                batch.push(document.object.clone());
                bytes += size;
            }
            _ => {
                batches.push(vec![document.object.clone()]);
                bytes = size;
            }
        }
    }
    batches
}

fn check(document: &Document) -> anyhow::Result<()> {
    lb::parse_object(document.object.clone())
        .map(|_| ())
        .map_err(|error| anyhow::Error::new(document.error(&error.field, error.reason)))
}

fn known_kind(document: &Document) -> anyhow::Result<()> {
    match document.kind() {
        "Service" | "EndpointSlice" => Ok(()),
        other => {
            let reason = format!("{other:?} is not known here; Service and EndpointSlice are");
            Err(anyhow::Error::new(document.error("kind", reason)))
        }
    }
}

fn named(document: &Document) -> DeleteRequest {
    DeleteRequest {
        kind: document.kind().to_owned(),
        namespace: document.namespace().to_owned(),
        name: document.metadata("name").to_owned(),
    }
}

fn applied(reply: &ApplyReply) -> String {
    reply
        .results
        .iter()
        .map(|result| format!("{} {}{}\n", result.object, result.action, given(result)))
        .collect()
}

/// What was given to it: ` (10.96.3.4; node ports 80/TCP=30080; health check at 30090)`.
fn given(result: &ApplyResult) -> String {
    let mut parts = Vec::new();
    if !result.cluster_ips.is_empty() {
        parts.push(list(&result.cluster_ips));
    }
    if !result.node_ports.is_empty() {
        let port = |port: &NodePortInfo| format!("{}/{}={}", port.port, port.protocol, port.node_port);
        parts.push(format!("node ports {}", list(&result.node_ports.iter().map(port).collect::<Vec<_>>())));
    }
    parts.extend(result.health_check_node_port.map(|port| format!("health check at {port}")));
    if parts.is_empty() { String::new() } else { format!(" ({})", parts.join("; ")) }
}

fn deleted(object: &str, reply: &DeleteReply) -> String {
    format!("{object} {}\n", if reply.existed { "deleted" } else { "not found" })
}

/// One note for each field that Weft does not act upon, at its line.
fn ignored(documents: &[Document], reply: &ApplyReply) -> Vec<String> {
    let notes = documents.iter().zip(&reply.results).flat_map(|(document, result)| {
        result
            .ignored
            .iter()
            .map(|field| format!("note: {}", document.error(field, format!("ignored ({})", result.object))))
    });
    notes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  selector: {app: web}
  sessionAffinity: ClientIP
  ports:
  - port: 80
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec:
  ports:
  - name: pg
    port: 70000
";

    #[test]
    fn an_error_names_file_line_and_field() {
        let documents = manifest::parse("web.yaml", FILE).unwrap();
        check(&documents[0]).unwrap();
        let error = check(&documents[1]).unwrap_err().to_string();
        assert!(error.starts_with("web.yaml:17: spec.ports[0].port: "), "{error}");
    }

    #[test]
    fn results_and_ignored_fields_are_told() {
        let documents = manifest::parse("web.yaml", FILE).unwrap();
        let reply: ApplyReply = serde_json::from_value(serde_json::json!({
            "results": [
                {"object": "Service default/web", "action": "created", "ignored": ["spec.sessionAffinity"]},
                {"object": "Service shop/db", "action": "unchanged"},
                {"object": "Service shop/www", "action": "configured", "cluster_ips": ["10.96.0.7", "fd00:10:96::7"],
                 "node_ports": [{"port": 80, "protocol": "TCP", "node_port": 30080}], "health_check_node_port": 30090},
            ],
            "revision": 7,
        }))
        .unwrap();
        assert_eq!(
            applied(&reply),
            "Service default/web created\nService shop/db unchanged\n\
             Service shop/www configured (10.96.0.7,fd00:10:96::7; node ports 80/TCP=30080; health check at 30090)\n"
        );
        assert_eq!(
            ignored(&documents, &reply),
            ["note: web.yaml:7: spec.sessionAffinity: ignored (Service default/web)"]
        );
    }

    #[test]
    fn many_objects_go_in_several_requests_in_order() {
        let documents = manifest::parse("web.yaml", &FILE.replace("70000", "5432")).unwrap();
        let many: Vec<Document> = documents.iter().cycle().take(1_201).cloned().collect();
        let batches = batches(&many);
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [500, 500, 201]);
        let flat: Vec<Value> = batches.into_iter().flatten().collect();
        assert!(flat.iter().zip(&many).all(|(a, b)| *a == b.object));
    }

    #[test]
    fn a_file_names_what_to_delete() {
        let documents = manifest::parse("web.yaml", FILE).unwrap();
        let request = named(&documents[0]);
        assert_eq!((request.kind.as_str(), request.namespace.as_str()), ("Service", "default"));
        assert_eq!(
            deleted("Service a/b", &DeleteReply { revision: 1, existed: false }),
            "Service a/b not found\n"
        );
    }
}
