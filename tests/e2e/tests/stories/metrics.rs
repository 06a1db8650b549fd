// SPDX-License-Identifier: Apache-2.0
//! What an operator's tools ask netd: metrics, health, readiness; and who may ask its API for what.

use crate::{have, lab, service};
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use weft_lab::{Lab, PodSpec};

const CONNECTIONS: u32 = 30;
const NOBODY: &str = "65534";

#[test]
fn metrics_and_health() -> Result<()> {
    if !have("curl", "metrics") {
        return Ok(());
    }
    let Some(lab) = lab("metrics", 2)? else { return Ok(()) };
    lab.pod_add(&PodSpec::new("n1", "client"))?;
    lab.pod_add(&PodSpec::new("n2", "b1").label("app", "web"))?;
    let _b1 = lab.serve("b1", "b1", &[8080], &[])?;
    let vip = lab.apply(&service("web", "web"))?.results[0].cluster_ip.unwrap();

    for (path, wanted) in [("healthz", ("ok\n", "200")), ("readyz", ("ok\n", "200"))] {
        let (body, code) = get(&lab, path)?;
        assert_eq!((body.as_str(), code.as_str()), wanted, "/{path}");
    }
    assert_eq!(get(&lab, "nothing")?.1, "404");

    let before = scrape(&lab)?;
    assert_eq!(before.value("weft_ready", &[])?, 1.0);
    assert_eq!(before.value("weft_nodes", &[])?, 2.0);
    assert_eq!(before.value("weft_attachments", &[])?, 1.0, "of n1 only");
    assert_eq!(before.value("weft_pending_objects", &[])?, 0.0);

    let report = lab.probe("client", &["--to", &format!("{vip}:80"), "--count", &CONNECTIONS.to_string()])?;
    assert!(report.all_ok(), "{}", report.failures());
    let refused = lab.probe("client", &["--to", &format!("{vip}:81"), "--count", "3"])?;
    assert_eq!(refused.errors.get("refused"), Some(&3), "{}", refused.failures());
    let after = scrape(&lab)?;
    let web = [("service", "default/web:80/tcp")];
    let connections = "weft_service_connections_total";
    let more = after.value(connections, &web)? - before.value(connections, &web).unwrap_or_default();
    assert_eq!(more, f64::from(CONNECTIONS), "connections through the VIP");
    let undefined = [("service", "default/web:*")];
    assert_eq!(
        after.value("weft_service_refused_total", &undefined)?,
        3.0,
        "connections to a port it does not have"
    );
    for (name, labels) in before.samples.keys().filter(|(name, _)| is_counter(name)) {
        let labels: Vec<_> = labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let (old, new) = (before.value(name, &labels)?, after.value(name, &labels)?);
        assert!(new >= old, "{name} {labels:?} went back from {old} to {new}");
    }
    lab.down()
}

#[test]
fn only_root_writes_to_the_api() -> Result<()> {
    if !have("curl", "peers") || !have("setpriv", "peers") {
        return Ok(());
    }
    let Some(lab) = lab("peers", 1)? else { return Ok(()) };
    let pod = lab.pod_add(&PodSpec::new("n1", "a"))?;
    let service = "{\"objects\":[{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{\"name\":\"sneaky\"},\
                   \"spec\":{\"ports\":[{\"port\":80}]}}]}";
    let attachment =
        format!("{{\"network\":\"weft\",\"container_id\":\"{}\",\"ifname\":\"eth0\"}}", pod.container_id);
    let unknown = "{\"network\":\"weft\",\"container_id\":\"sneaky\",\"ifname\":\"eth0\"}";
    let writes = [
        ("apply", service),
        ("delete", "{\"kind\":\"Service\",\"namespace\":\"default\",\"name\":\"web\"}"),
        ("attachments/allocate", unknown),
        ("attachments/commit", attachment.as_str()),
        ("attachments/release", &attachment),
    ];
    for (path, body) in writes {
        // The socket is root's: others do not get in.
        let out = post(&lab, &["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"], path, body)?;
        assert_eq!(out.0, None, "{path}: a stranger got an answer: {}", out.1);
        // One of root's group gets in and may look, and no more.
        let out = post(&lab, &["--reuid", NOBODY, "--regid", "0", "--clear-groups"], path, body)?;
        let code = out.0.with_context(|| format!("{path}: no answer for root's group: {}", out.1))?;
        assert!((400..500).contains(&code), "{path}: {code} {}", out.1);
        let error: Value = serde_json::from_str(&out.1).with_context(|| out.1.clone())?;
        let message = error["message"].as_str().unwrap_or_default();
        assert!(message.contains("root") && message.contains(NOBODY), "{path}: {message}");
    }
    let looked = curl_socket(&lab, &["--reuid", NOBODY, "--regid", "0", "--clear-groups"], "status", &[])?;
    assert_eq!(looked.0, Some(200), "{}", looked.1);
    // Nothing came of it.
    let status = lab.status("n1")?;
    assert_eq!((status.pods, status.pending.len(), status.ready), (1, 0, true), "{status:?}");
    let services = lab.ask("n1", async |client| client.services().await)?;
    assert!(!services.iter().any(|service| service.name == "sneaky"));
    assert!(
        lab.exec("n1", &["ping", "-c1", "-W1", &pod.ips[0].to_string()])?.ok(),
        "the pod lost its network"
    );
    // The same as root, so that it was not the request that was wrong.
    let out = post(&lab, &["--reuid", "0"], "apply", service)?;
    assert_eq!(out.0, Some(200), "{}", out.1);
    lab.down()
}

/// Body and status code of a path of n1's metrics port.
fn get(lab: &Lab, path: &str) -> Result<(String, String)> {
    let url = format!("http://127.0.0.1:9157/{path}");
    let text = lab.exec("n1", &["curl", "-sS", "-w", "|%{http_code}", &url])?.text("curl")?;
    let (body, code) = text.rsplit_once('|').context("no status code")?;
    Ok((body.to_owned(), code.to_owned()))
}

fn post(lab: &Lab, who: &[&str], path: &str, body: &str) -> Result<(Option<u16>, String)> {
    curl_socket(lab, who, path, &["-H", "content-type: application/json", "-d", body])
}

/// A request to n1's API as somebody: the status code, none when the socket could not be opened, and the body.
fn curl_socket(lab: &Lab, who: &[&str], path: &str, options: &[&str]) -> Result<(Option<u16>, String)> {
    let socket = lab.state()?.node("n1")?.socket().display().to_string();
    let url = format!("http://netd/v1/{path}");
    let curl = ["curl", "-sS", "-w", "|%{http_code}", "--unix-socket", &socket];
    let out = lab.exec("n1", &[&["setpriv"], who, &curl, options, &[&url]].concat())?;
    // 7 is "failed to connect": anything else that fails is not what we are after.
    if out.code == Some(7) {
        return Ok((None, out.stderr));
    }
    let text = out.text("curl")?;
    let (body, code) = text.rsplit_once('|').context("no status code")?;
    Ok((Some(code.parse()?), body.to_owned()))
}

type Labels = BTreeMap<String, String>;

/// One scrape, checked against the OpenMetrics text form.
pub(crate) struct Scrape {
    samples: BTreeMap<(String, Labels), f64>,
}

impl Scrape {
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let found = self.samples.get(&(name.to_owned(), labels)).copied();
        found.with_context(|| {
            let names: BTreeSet<_> = self.samples.keys().collect();
            format!("no sample {name} with these labels; there are {names:?}")
        })
    }
}

pub(crate) fn scrape(lab: &Lab) -> Result<Scrape> {
    let url = "http://127.0.0.1:9157/metrics";
    let text = lab.exec("n1", &["curl", "-sSf", "-w", "|%{content_type}", url])?.text("curl")?;
    let (text, kind) = text.rsplit_once('|').context("no content type")?;
    assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
    parse(text)
}

/// OpenMetrics 1.0: each sample after the TYPE of its family, none twice, `# EOF` last.
fn parse(text: &str) -> Result<Scrape> {
    assert!(text.ends_with("# EOF\n"), "the text is cut off: {text}");
    let mut types = BTreeMap::new();
    let mut samples = BTreeMap::new();
    for line in text.lines().filter(|line| *line != "# EOF") {
        if let Some(comment) = line.strip_prefix("# ") {
            let [keyword, name, rest] = words(comment).with_context(|| line.to_owned())?;
            assert!(matches!(keyword, "HELP" | "TYPE" | "UNIT"), "{line}");
            if keyword == "TYPE" {
                assert!(name.starts_with("weft_"), "{line}");
                assert!(types.insert(name.to_owned(), rest.to_owned()).is_none(), "a second {line}");
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => {
                (name, parse_labels(labels.strip_suffix('}').with_context(|| line.to_owned())?)?)
            }
            None => (series, Labels::new()),
        };
        let family = ["_total", "_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix).filter(|family| types.contains_key(*family)))
            .unwrap_or(name);
        let kind = types.get(family).with_context(|| format!("no TYPE before {line}"))?;
        assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        let value = value.parse::<f64>().with_context(|| line.to_owned())?;
        assert!(value.is_finite(), "{line}");
        assert!(samples.insert((name.to_owned(), labels), value).is_none(), "a second {line}");
    }
    Ok(Scrape { samples })
}

fn words(comment: &str) -> Option<[&str; 3]> {
    let mut words = comment.splitn(3, ' ');
    Some([words.next()?, words.next()?, words.next()?])
}

/// `a="x",b="y"`; none of our values holds a quote or a comma.
fn parse_labels(text: &str) -> Result<Labels> {
    let label = |part: &str| -> Result<(String, String)> {
        let (key, value) = part.split_once('=').context("no =")?;
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).context("no quotes")?;
        Ok((key.to_owned(), value.to_owned()))
    };
    text.split(',').map(|part| label(part).with_context(|| text.to_owned())).collect()
}

fn is_counter(name: &str) -> bool {
    name.ends_with("_total")
}
