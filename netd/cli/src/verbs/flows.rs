// SPDX-License-Identifier: Apache-2.0
//! `weft flows`: connections through services, as this node remembers them.

use netd_api::{Client, FlowInfo};

use super::explain;
use crate::args::ObjectName;
use crate::output::Shown;
use crate::table::Table;

pub(super) async fn flows(client: &Client, of: Option<&ObjectName>) -> anyhow::Result<Shown> {
    let of = of.map(|name| (name.namespace.as_str(), name.name.as_str()));
    let flows = client.flows(of).await.map_err(explain)?;
    Shown::new(text(&flows), &flows)
}

fn text(flows: &[FlowInfo]) -> String {
    let mut table =
        Table::new(["PATH", "PROTOCOL", "CLIENT", "ASKED FOR", "SERVICE", "BACKEND", "STATE", "SECONDS"]);
    for flow in flows {
        table.row([
            flow.path.clone(),
            flow.protocol.clone(),
            flow.client.clone(),
            flow.frontend.to_string(),
            flow.service.clone().unwrap_or_default(),
            flow.backend.map(|backend| backend.to_string()).unwrap_or_default(),
            flow.state.clone(),
            flow.age_secs.map(|secs| secs.to_string()).unwrap_or_default(),
        ]);
    }
    table.render("No connections through services.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_a_line() {
        let flows: Vec<FlowInfo> = serde_json::from_value(serde_json::json!([
            {"path": "socket", "protocol": "tcp", "client": "default/curl", "frontend": "10.96.0.7:80",
             "service": "default/web:80/tcp", "backend": "10.244.1.5:8080", "state": "open", "age_secs": 7},
            {"path": "packet", "protocol": "udp", "client": "192.0.2.9:4000", "frontend": "[2001:db8::1]:30053", "state": "new"},
        ]))
        .unwrap();
        assert_eq!(
            text(&flows),
            "PATH     PROTOCOL   CLIENT           ASKED FOR             SERVICE              BACKEND           STATE   SECONDS\n\
             socket   tcp        default/curl     10.96.0.7:80          default/web:80/tcp   10.244.1.5:8080   open    7\n\
             packet   udp        192.0.2.9:4000   [2001:db8::1]:30053   -                    -                 new     -\n"
        );
        assert_eq!(text(&[]), "No connections through services.\n");
    }
}
