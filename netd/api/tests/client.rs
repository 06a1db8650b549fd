// SPDX-License-Identifier: Apache-2.0
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

//! The client against servers that behave and servers that do not.

use std::path::PathBuf;
use std::time::Duration;

use netd_api::{
    ApiError, ApplyRequest, AttachmentId, Client, ClientError, Code, DeleteReply, DeleteRequest, ErrorClass,
    REPLY_BYTES_MAX, REQUEST_BYTES_MAX,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;

const TIMEOUT: Duration = Duration::from_millis(500);

fn id() -> AttachmentId {
    AttachmentId { network: "weft".into(), container_id: "c1".into(), ifname: "eth0".into() }
}

/// A socket on which each connection gets `answer` and is then held for `hold`. Gives back the first request, too.
fn serve(answer: String, hold: Duration) -> (TempDir, Client, tokio::task::JoinHandle<String>) {
    let run = tempfile::tempdir().unwrap();
    let socket = run.path().join("netd.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 64 * 1024];
        let read = stream.read(&mut request).await.unwrap();
        // The client may have had enough before the end.
        let _ = stream.write_all(answer.as_bytes()).await;
        tokio::time::sleep(hold).await;
        String::from_utf8_lossy(&request[..read]).into_owned()
    });
    (run, Client::new(socket, TIMEOUT), task)
}

fn http(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn a_request_is_posted_as_json_and_its_answer_decoded() {
    let (_run, client, server) =
        serve(http("200 OK", r#"{"revision":7,"existed":true,"later":1}"#), Duration::ZERO);
    let request = DeleteRequest { kind: "Service".into(), namespace: "default".into(), name: "web".into() };
    let reply = client.delete(&request).await.unwrap();
    assert_eq!(reply, DeleteReply { revision: 7, existed: true });

    let sent = server.await.unwrap();
    assert!(sent.starts_with("POST /v1/delete HTTP/1.1\r\n"), "{sent}");
    assert!(sent.contains("content-type: application/json\r\n"), "{sent}");
    assert!(sent.ends_with(r#"{"kind":"Service","namespace":"default","name":"web"}"#), "{sent}");
}

#[tokio::test]
async fn an_empty_object_is_enough_of_an_answer() {
    let (_run, client, _server) = serve(http("200 OK", "{}"), Duration::ZERO);
    client.release(&id()).await.unwrap();
}

#[tokio::test]
async fn without_netd_the_code_is_11() {
    let client = Client::new(PathBuf::from("/nonexistent/netd.sock"), TIMEOUT);
    let error = client.status().await.unwrap_err();
    assert!(matches!(error, ClientError::NotRunning { .. }), "{error}");
    assert_eq!(error.cni_code(), Code::TRY_AGAIN);
    assert!(error.to_string().contains("/nonexistent/netd.sock"), "{error}");

    // A socket file that a killed netd left.
    let run = tempfile::tempdir().unwrap();
    let socket = run.path().join("netd.sock");
    drop(UnixListener::bind(&socket).unwrap());
    assert!(matches!(Client::new(socket, TIMEOUT).status().await, Err(ClientError::NotRunning { .. })));
}

#[tokio::test]
async fn an_error_of_netd_keeps_its_class_and_code() {
    let body = serde_json::to_string(&ApiError::exhausted("no free address")).unwrap();
    let (_run, client, _server) = serve(http("503 Service Unavailable", &body), Duration::ZERO);
    let error = client.release(&id()).await.unwrap_err();
    assert_eq!((error.class(), error.cni_code()), (ErrorClass::Retry, Code::POOL_EXHAUSTED));
    assert_eq!(error.to_string(), "no free address");

    let body = serde_json::to_string(&ApiError::not_found("no such attachment")).unwrap();
    let (_run, client, _server) = serve(http("404 Not Found", &body), Duration::ZERO);
    assert!(client.check(&id()).await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn what_is_not_netds_answer_is_a_protocol_error() {
    for answer in [http("404 Not Found", "nothing here"), http("200 OK", "<html>"), http("200 OK", "[]")] {
        let (_run, client, _server) = serve(answer, Duration::ZERO);
        let error = client.status().await.unwrap_err();
        assert!(matches!(error, ClientError::Protocol { .. }), "{error}");
        assert_eq!(error.cni_code(), Code::IO);
    }
}

#[tokio::test]
async fn a_netd_that_dies_half_way_is_retried_by_the_runtime() {
    for answer in ["", "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"] {
        let (_run, client, _server) = serve(answer.into(), Duration::ZERO);
        let error = client.status().await.unwrap_err();
        assert!(matches!(error, ClientError::Disconnected { .. }), "{error}");
        assert_eq!(error.cni_code(), Code::TRY_AGAIN);
    }
}

#[tokio::test]
async fn a_netd_that_hangs_is_given_up_in_time() {
    let (_run, client, server) = serve(String::new(), Duration::from_secs(60));
    let error = client.status().await.unwrap_err();
    server.abort();
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
    assert_eq!(error.cni_code(), Code::TRY_AGAIN);
}

#[tokio::test]
async fn an_endless_answer_is_cut_off() {
    let (_run, client, _server) = serve(http("200 OK", &" ".repeat(REPLY_BYTES_MAX + 1)), Duration::ZERO);
    let client = Client::new(client.socket().to_owned(), Duration::from_secs(20));
    let error = client.status().await.unwrap_err();
    assert!(matches!(error, ClientError::Protocol { .. }), "{error}");
    assert!(error.to_string().contains("more than"), "{error}");
}

#[tokio::test]
async fn a_request_that_netd_would_refuse_is_not_sent() {
    let client = Client::new(PathBuf::from("/nonexistent/netd.sock"), TIMEOUT);
    let objects = vec!["x".repeat(REQUEST_BYTES_MAX).into()];
    let error = client.apply(&ApplyRequest { objects }).await.unwrap_err();
    assert!(matches!(error, ClientError::Protocol { .. }), "{error}");
}
