//! The front door of the public web ports.

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;

use crate::failure::BoxError;
use crate::net::ClientAddr;

/// The body of an answer.
pub type WebBody = UnsyncBoxBody<Bytes, BoxError>;

/// What an engine answers to requests for the gateway's own name. An axum `Router` is adapted to it by its engine.
#[async_trait]
pub trait WebService: Send + Sync {
    /// Answers one request.
    async fn call(&self, request: Request<Incoming>, client: ClientAddr) -> Response<WebBody>;
}
