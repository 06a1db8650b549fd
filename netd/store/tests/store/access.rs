// SPDX-License-Identifier: Apache-2.0
//! Who may talk to etcd: TLS with client certificates, user and password, several endpoints.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use netd_store::{Class, Etcd, EtcdConfig, Store, StoreError};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

use crate::bench::{PATIENCE, events, eventually, text};
use crate::etcd_server::{EtcdServer, path, serving};

/// Passwords are hashed and certificates made slowly where the machine is busy; what is told then is no time-out.
const SLOW_REQUEST: Duration = Duration::from_secs(20);

type Authority = CertifiedIssuer<'static, KeyPair>;

/// A CA whose certificate lies at `<name>.pem`.
fn authority(dir: &Path, name: &str) -> Authority {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    fs::write(dir.join(format!("{name}.pem")), authority.pem()).unwrap();
    authority
}

/// A certificate at `<name>.pem` with its key at `<name>.key`.
fn certificate(dir: &Path, name: &str, host: &str, authority: &Authority) {
    let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
    // etcd's own gateway is a client with the server's certificate.
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    let signed = params.signed_by(&key, authority).unwrap();
    fs::write(dir.join(format!("{name}.pem")), signed.pem()).unwrap();
    fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
}

/// An etcd that wants client certificates; its own is for `host`.
fn server_for(host: &str) -> EtcdServer {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(dir.path(), "ca");
    let other = authority(dir.path(), "other-ca");
    certificate(dir.path(), "server", host, &ca);
    certificate(dir.path(), "client", "n1", &ca);
    certificate(dir.path(), "stranger", "n1", &other);
    let file = |name: &str| path(dir.path(), name);
    let arguments = [
        format!("--cert-file={}", file("server.pem")),
        format!("--key-file={}", file("server.key")),
        format!("--trusted-ca-file={}", file("ca.pem")),
        "--client-cert-auth".to_owned(),
    ];
    EtcdServer::start_in(dir, "https", arguments.into())
}

fn tls_config(server: &EtcdServer, ca: &str, client: Option<&str>) -> EtcdConfig {
    let file = |name: String| -> Option<PathBuf> { Some(server.dir.path().join(name)) };
    EtcdConfig {
        ca_file: file(format!("{ca}.pem")),
        cert_file: client.and_then(|client| file(format!("{client}.pem"))),
        key_file: client.and_then(|client| file(format!("{client}.key"))),
        request_timeout: SLOW_REQUEST,
        ..server.config()
    }
}

async fn first_error(config: EtcdConfig) -> StoreError {
    let begun = Instant::now();
    let error = Etcd::connect(config).await.unwrap().get("/weft/a").await.unwrap_err();
    assert!(begun.elapsed() < PATIENCE);
    error
}

#[tokio::test]
async fn tls_with_a_client_certificate_serves_and_others_are_turned_away() {
    let server = server_for("127.0.0.1");
    let etcd = serving(tls_config(&server, "ca", Some("client"))).await;
    let mut watch = etcd.watch("/weft/", 0).await.unwrap();
    let revision = etcd.put("/weft/a", text("1"), None).await.unwrap();
    assert_eq!(events(&mut watch, 1).await, format!("+/weft/a=1@{revision}"));
    assert_eq!(etcd.list("/weft/").await.unwrap().items.len(), 1);

    for (ca, client) in [("ca", None), ("ca", Some("stranger")), ("other-ca", Some("client"))] {
        let error = first_error(tls_config(&server, ca, client)).await;
        assert_eq!(error.class(), Class::Retry, "{error}");
        assert!(error.to_string().contains("ertificate"), "{ca} {client:?}: {error}");
    }
    let plain = EtcdConfig { endpoints: vec![server.url().replace("https", "http")], ..server.config() };
    assert_eq!(first_error(plain).await.class(), Class::Retry);
}

#[tokio::test]
async fn the_name_in_the_certificate_may_be_another_than_the_endpoint() {
    let server = server_for("etcd.example");
    let error = first_error(tls_config(&server, "ca", Some("client"))).await;
    assert!(error.to_string().contains("127.0.0.1"), "{error}");
    let named =
        EtcdConfig { server_name: Some("etcd.example".into()), ..tls_config(&server, "ca", Some("client")) };
    serving(named).await.put("/weft/a", text("1"), None).await.unwrap();
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let missing = EtcdConfig { ca_file: Some(dir.path().join("ca.pem")), ..config("127.0.0.1:1") };
    let error = Etcd::connect(missing).await.unwrap_err();
    assert!(error.to_string().contains("ca.pem"), "{error}");
    assert_eq!(error.class(), Class::Invalid);

    certificate(dir.path(), "client", "n1", &authority(dir.path(), "ca"));
    fs::write(dir.path().join("client.key"), "not PEM").unwrap();
    let broken = EtcdConfig {
        ca_file: Some(dir.path().join("ca.pem")),
        cert_file: Some(dir.path().join("client.pem")),
        key_file: Some(dir.path().join("client.key")),
        ..config("127.0.0.1:1")
    };
    for wrong in [broken, config("a b:1"), config("")] {
        assert_eq!(Etcd::connect(wrong.clone()).await.map(|_| wrong).unwrap_err().class(), Class::Invalid);
    }
}

fn config(endpoint: &str) -> EtcdConfig {
    EtcdConfig {
        endpoints: vec![endpoint.into()],
        request_timeout: Duration::from_secs(2),
        ..EtcdConfig::default()
    }
}

fn as_user(server: &EtcdServer, user: &str, password: &str) -> EtcdConfig {
    EtcdConfig {
        user: Some(user.into()),
        password: Some(password.into()),
        request_timeout: SLOW_REQUEST,
        ..server.config()
    }
}

#[tokio::test]
async fn a_user_may_do_what_its_role_allows_also_after_the_server_lost_its_tokens() {
    let mut server = EtcdServer::plain();
    server.client().await;
    let error = first_error(as_user(&server, "weft", "right")).await;
    assert_eq!(error.class(), Class::Invalid, "authentication is off: {error}");

    for args in [
        &["user", "add", "root:secret"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "weft:right"],
        &["role", "add", "weft"],
        &["role", "grant-permission", "weft", "--prefix=true", "readwrite", "/weft/"],
        &["user", "grant-role", "weft", "weft"],
        &["auth", "enable"],
    ] {
        server.etcdctl(args);
    }
    for config in [server.config(), as_user(&server, "weft", "wrong"), as_user(&server, "nobody", "right")] {
        let error = first_error(config).await;
        assert!(matches!(error, StoreError::Denied { .. }), "{error}");
        assert_eq!(error.class(), Class::Fatal);
    }

    let etcd = serving(as_user(&server, "weft", "right")).await;
    let lease = etcd.lease_grant(Duration::from_secs(60)).await.unwrap();
    etcd.put("/weft/alive", text("1"), Some(lease.id)).await.unwrap();
    etcd.lease_keep_alive(lease.id).await.unwrap();
    let mut watch = etcd.watch("/weft/", 0).await.unwrap();
    let revision = etcd.put("/weft/a", text("1"), None).await.unwrap();
    assert_eq!(events(&mut watch, 1).await, format!("+/weft/a=1@{revision}"));
    for error in [
        etcd.get("/elsewhere").await.map(|_| ()).unwrap_err(),
        etcd.put("/elsewhere", text("1"), None).await.map(|_| ()).unwrap_err(),
        etcd.list("/").await.map(|_| ()).unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::Denied { .. }), "{error}");
    }

    server.stop();
    server.start();
    eventually("the user is let in again", || async { etcd.list("/weft/").await.is_ok() }).await;
    let mut watch = etcd.watch("/weft/", 0).await.unwrap();
    let revision = etcd.put("/weft/a", text("2"), None).await.unwrap();
    assert_eq!(events(&mut watch, 1).await, format!("+/weft/a=2@{revision}"));
}

#[tokio::test]
async fn a_dead_endpoint_costs_no_request_when_another_serves() {
    let server = EtcdServer::plain();
    server.client().await;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoints = vec![
        "http://127.0.0.1:1".to_owned(),
        format!("http://{}", silent.local_addr().unwrap()),
        server.url(),
    ];
    let etcd = Etcd::connect(EtcdConfig { endpoints, ..server.config() }).await.unwrap();
    etcd.put("/weft/a", text("1"), None).await.unwrap();
    assert_eq!(etcd.endpoint().await, Some(server.url()));
}

#[tokio::test]
async fn an_endpoint_that_takes_connections_and_never_answers_is_a_time_out() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let error = first_error(config(&silent.local_addr().unwrap().to_string())).await;
    assert_eq!(error.class(), Class::Retry, "{error}");
    assert!(matches!(error, StoreError::Timeout { .. }), "{error}");
}
