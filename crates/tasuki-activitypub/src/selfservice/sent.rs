//! A form as it arrives: of bounded size, from this page, and from an address that does not send too many.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Form;
use axum::body::Body;
use axum::extract::rejection::FormRejection;
use axum::extract::{FromRequest, Request};
use axum::response::Response;
use http::header::RETRY_AFTER;
use http::{HeaderValue, StatusCode};
use tasuki_core::EngineKind;
use tasuki_core::limits::{AddressRates, Rate};
use tasuki_core::net::ClientAddr;

use super::page::Step;
use super::session::is_from_elsewhere;
use super::words::Words;
use super::{off, shown};
use crate::engine::Inner;

/// Forms sent by one address.
const FORMS: AddressRates = AddressRates {
    address: Rate::per_minute(20, 10),
    prefix: Rate::per_minute(60, 30),
};

/// A form of bounded size from an address that does not send too many.
pub(super) struct Sent<T>(pub(super) T, pub(super) IpAddr);

impl<T: serde::de::DeserializeOwned> FromRequest<Arc<Inner>> for Sent<T> {
    type Rejection = Response;

    async fn from_request(request: Request<Body>, inner: &Arc<Inner>) -> Result<Self, Response> {
        if !inner.config.load().self_service {
            return Err(off());
        }
        let client = request.extensions().get::<ClientAddr>();
        let from = client.map_or(IpAddr::from([0, 0, 0, 0]), |client| client.0.ip());
        let from = tasuki_core::net::unmapped(from);
        if let Err(wait) = inner
            .deps
            .limits
            .take_from(EngineKind::Fediverse, "self_service", from, FORMS)
        {
            let mut response = shown(
                inner,
                StatusCode::TOO_MANY_REQUESTS,
                Some(&Words::TOO_MANY),
                Step::Begin,
            );
            let wait = HeaderValue::from(wait.as_secs().max(1));
            response.headers_mut().insert(RETRY_AFTER, wait);
            return Err(response);
        }
        if is_from_elsewhere(request.headers()) {
            let words = Some(&Words::FROM_ELSEWHERE);
            return Err(shown(inner, StatusCode::FORBIDDEN, words, Step::Begin));
        }
        match Form::<T>::from_request(request, inner).await {
            Ok(Form(form)) => Ok(Self(form, from)),
            Err(error) => {
                let status = match &error {
                    FormRejection::BytesRejection(_) => StatusCode::PAYLOAD_TOO_LARGE,
                    _ => StatusCode::BAD_REQUEST,
                };
                Err(shown(inner, status, Some(&Words::NOT_UNDERSTOOD), Step::Begin))
            }
        }
    }
}
