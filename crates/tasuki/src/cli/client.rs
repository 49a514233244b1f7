//! The command line's end of the control socket: HTTP over a Unix socket, one request for each command.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use crate::exit::{self, Fail, Outcome};

/// How long a gateway may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// No listing is longer than this.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// A running gateway, reached through its control socket.
pub(crate) struct Gateway {
    socket: PathBuf,
}

impl Gateway {
    /// The gateway that listens at `socket`.
    pub(crate) fn at(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Reads something.
    pub(crate) fn read(&self, path: &str) -> Outcome<Value> {
        self.call(http::Method::GET, path, None)
    }

    /// Sends one request and waits for its answer.
    pub(crate) fn call(&self, method: http::Method, path: &str, body: Option<Value>) -> Outcome<Value> {
        self.call_within(PATIENCE, method, path, body)
    }

    /// The same for a request that takes longer than others.
    pub(crate) fn call_within(
        &self,
        patience: Duration,
        method: http::Method,
        path: &str,
        body: Option<Value>,
    ) -> Outcome<Value> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Fail::new(exit::SOFTWARE, format!("cannot start the runtime: {e}")))?;
        runtime.block_on(async {
            tokio::time::timeout(patience, self.exchange(method, path, body))
                .await
                .map_err(|_| {
                    Fail::new(
                        exit::UNAVAILABLE,
                        format!(
                            "the gateway behind {} did not answer within {patience:?}",
                            self.socket.display()
                        ),
                    )
                })?
        })
    }

    async fn exchange(&self, method: http::Method, path: &str, body: Option<Value>) -> Outcome<Value> {
        let stream = tokio::net::UnixStream::connect(&self.socket)
            .await
            .map_err(|e| self.unreachable(&e))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.broken(&e))?;
        let driver = tokio::spawn(connection);
        let bytes = body.map(|b| b.to_string()).unwrap_or_default();
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "localhost")
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(bytes)))
            .map_err(|e| Fail::new(exit::USAGE, format!("{path:?} cannot be asked for: {e}")))?;
        let response = sender.send_request(request).await.map_err(|e| self.broken(&e))?;
        let status = response.status();
        let bytes = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await
            .map_err(|e| Fail::new(exit::UNAVAILABLE, format!("the gateway's answer broke off: {e}")))?
            .to_bytes();
        driver.abort();
        let value: Value = if bytes.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&bytes)
                .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()))
        };
        if status.is_success() {
            Ok(value)
        } else {
            Err(refused(status, &value))
        }
    }

    fn unreachable(&self, error: &std::io::Error) -> Fail {
        let socket = self.socket.display();
        match error.kind() {
            std::io::ErrorKind::PermissionDenied => Fail::new(
                exit::NO_PERMISSION,
                format!(
                    "{socket}: permission denied. The control socket belongs to the user that runs the gateway: \
                     run this command as that user, or as root"
                ),
            ),
            _ => Fail::new(
                exit::UNAVAILABLE,
                format!(
                    "no gateway is running here: its control socket was looked for at {socket} ({error}). \
                     Start one with `tasuki serve`, or name the one you mean with --data DIR or --config FILE"
                ),
            ),
        }
    }

    fn broken(&self, error: &hyper::Error) -> Fail {
        Fail::new(
            exit::UNAVAILABLE,
            format!(
                "the gateway behind {} closed the connection: {error}",
                self.socket.display()
            ),
        )
    }
}

/// A problem document (RFC 9457) as an exit.
fn refused(status: http::StatusCode, problem: &Value) -> Fail {
    let text = |key: &str| problem.get(key).and_then(Value::as_str);
    let message = text("detail")
        .or_else(|| text("title"))
        .map_or_else(|| format!("the gateway answered {status}"), str::to_owned);
    let code = match status.as_u16() {
        400 | 413 | 415 | 422 => exit::USAGE,
        401 | 403 => exit::NO_PERMISSION,
        404 | 409 | 410 => exit::DATA,
        429 | 502 | 503 | 504 => exit::UNAVAILABLE,
        _ => exit::SOFTWARE,
    };
    Fail::new(code, message)
}
