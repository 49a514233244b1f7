//! Going on in another process. Only by the control socket: whoever may open it may run programs as the gateway anyway, and
//! a token may not.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::Admin;
use super::auth::{Caller, Door};
use super::problem::{Answer, Input, Problem};
use crate::app::Order;
use crate::exit;

/// The longest that what is under way may take.
const MAX_DRAIN_S: u64 = 60;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// The program to go on with; the one that runs, as it is on the disk now, if none is named.
    #[serde(default)]
    binary: Option<PathBuf>,
    drain_s: u64,
}

pub(super) async fn upgrade(
    State(admin): State<Arc<Admin>>,
    Extension(door): Extension<Door>,
    caller: Caller,
    Input(wanted): Input<Wanted>,
) -> Answer<Json<Value>> {
    let Door::Socket { .. } = door else {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "an upgrade is begun on the gateway's own machine, with `tasuki upgrade`",
        ));
    };
    if std::process::id() == 1 {
        return Err(Problem::conflict(
            "the gateway is the first process of a container, which ends when this process does: start a container of the \
             new image in its place",
        ));
    }
    if wanted.drain_s > MAX_DRAIN_S {
        return Err(Problem::bad(format!(
            "the drain is {MAX_DRAIN_S} seconds at most"
        )));
    }
    let binary = match wanted.binary {
        Some(binary) if binary.is_absolute() => binary,
        Some(_) => return Err(Problem::bad("the program must be named by its whole path")),
        None => own_program()?,
    };
    let (answer, answered) = oneshot::channel();
    let order = Order {
        binary,
        drain: Duration::from_secs(wanted.drain_s),
        caller,
        answer,
    };
    admin
        .orders
        .try_send(order)
        .map_err(|_| Problem::conflict("another upgrade has begun already"))?;
    match answered.await {
        Ok(Ok(upgraded)) => Ok(Json(json!({ "upgraded": upgraded }))),
        Ok(Err(fail)) => Err(Problem::new(status_of(fail.code), fail.message)),
        Err(_) => Err(Problem::unavailable("the gateway is stopping")),
    }
}

/// The status that the command line turns into the exit code that the new process would have ended with.
fn status_of(code: u8) -> StatusCode {
    match code {
        exit::USAGE | exit::CONFIG => StatusCode::UNPROCESSABLE_ENTITY,
        exit::NO_PERMISSION => StatusCode::FORBIDDEN,
        _ => StatusCode::BAD_GATEWAY,
    }
}

/// The program of this process by its path; what lies there now may be newer.
fn own_program() -> Answer<PathBuf> {
    let path = std::env::current_exe()
        .map_err(|error| Problem::unavailable(format!("the gateway's own program is not known: {error}")))?;
    // proc(5): what was replaced is shown so.
    Ok(
        match path.to_str().and_then(|text| text.strip_suffix(" (deleted)")) {
            Some(before) => PathBuf::from(before),
            None => path,
        },
    )
}
