//! The command line's end of the control socket: HTTP over a Unix socket, one request for each command.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::exit::{self, Fail, Outcome};
use crate::runtime;

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
        runtime::block_on(async {
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
        })?
    }

    /// Whether somebody listens there.
    pub(crate) fn is_running(&self) -> bool {
        std::os::unix::net::UnixStream::connect(&self.socket).is_ok()
    }

    /// Writes an answer of any length to `out`; `before` sees its head and may refuse it.
    pub(crate) fn download(
        &self,
        path: &str,
        before: impl FnOnce(&http::HeaderMap) -> Outcome,
        out: &mut dyn std::io::Write,
    ) -> Outcome {
        runtime::block_on(async {
            let (response, line) = self.ask(http::Method::POST, path, None).await?;
            let (head, mut body) = response.into_parts();
            if !head.status.is_success() {
                let bytes = collected(body).await?;
                return Err(refused(head.status, &value_of(&bytes)));
            }
            before(&head.headers)?;
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|e| self.broken(&e))?;
                if let Some(piece) = frame.data_ref() {
                    out.write_all(piece)
                        .map_err(|e| Fail::io("the answer cannot be written", &e))?;
                }
            }
            drop(line);
            Ok(())
        })?
    }

    async fn exchange(&self, method: http::Method, path: &str, body: Option<Value>) -> Outcome<Value> {
        let (response, line) = self.ask(method, path, body).await?;
        let status = response.status();
        let bytes = collected(response.into_body()).await?;
        drop(line);
        let value = value_of(&bytes);
        if status.is_success() {
            Ok(value)
        } else {
            Err(refused(status, &value))
        }
    }

    /// Sends the request; the answer's body is still to come as long as the line is kept.
    async fn ask(
        &self,
        method: http::Method,
        path: &str,
        body: Option<Value>,
    ) -> Outcome<(http::Response<Incoming>, Line)> {
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
        let line = Line {
            _sender: sender,
            driver,
        };
        Ok((response, line))
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

/// A connection with a request under way.
struct Line {
    _sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<hyper::Result<()>>,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn collected(body: Incoming) -> Outcome<Bytes> {
    Ok(Limited::new(body, MAX_ANSWER_BYTES)
        .collect()
        .await
        .map_err(|e| Fail::new(exit::UNAVAILABLE, format!("the gateway's answer broke off: {e}")))?
        .to_bytes())
}

fn value_of(bytes: &Bytes) -> Value {
    if bytes.is_empty() {
        return Value::Null;
    }
    serde_json::from_slice(bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(bytes).into_owned()))
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
