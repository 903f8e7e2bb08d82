//! A request bin: answers and remembers every request, with the address that it came from.
//!
//! For trying egressd out and for its tests: the receiver's word on the peer's address is the proof of a source.
//! Remembers the last [`REMEMBERED`] requests, of each body at most [`BODY_BYTES`].

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Json, Router};
use http_body_util::{BodyExt, Limited};
use serde::Serialize;
use tokio::net::TcpListener;

use crate::clock;

const REMEMBERED: usize = 1_000;
const BODY_BYTES: usize = 64 * 1024;
const DELAY_MAX: Duration = Duration::from_secs(60);

/// One request as it came.
#[derive(Clone, Debug, Serialize)]
pub struct Seen {
    pub at: String,
    pub peer: SocketAddr,
    pub method: String,
    /// Path and query.
    pub target: String,
    pub headers: Vec<(String, String)>,
    /// As text; bytes that are not UTF-8 are replaced. `null` when it is larger than the bin keeps.
    pub body: Option<String>,
}

#[derive(Clone, Default)]
pub struct RequestBin {
    seen: Arc<Mutex<VecDeque<Seen>>>,
    /// Takes a line per request.
    print: Option<fn(&str)>,
}

impl RequestBin {
    /// A bin that also hands a line per request on. What becomes of the line is no concern of who sent the request.
    pub fn printing(print: fn(&str)) -> Self {
        Self { print: Some(print), ..Self::default() }
    }

    /// Serves until the future is dropped.
    pub async fn serve(self, listener: TcpListener) -> std::io::Result<()> {
        let router = Router::new()
            .route("/_requests", get(Self::requests))
            .route("/_status/{status}", any(Self::status))
            .route("/_delay/{ms}", any(Self::delay))
            .route("/whoami", get(Self::whoami))
            .fallback(Self::answer)
            .with_state(self);
        axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>()).await
    }

    /// What was seen, oldest first.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    async fn note(&self, peer: SocketAddr, request: Request) {
        let (head, body) = request.into_parts();
        let body = Limited::new(body, BODY_BYTES).collect().await.ok().map(|body| body.to_bytes());
        let one = Seen {
            at: clock::wall().to_string(),
            peer,
            method: head.method.to_string(),
            target: head.uri.path_and_query().map_or_else(|| head.uri.to_string(), ToString::to_string),
            headers: lines(&head.headers),
            body: body.map(|body| String::from_utf8_lossy(&body).into_owned()),
        };
        if let Some(print) = self.print {
            let size = one.body.as_ref().map_or_else(|| format!("over {BODY_BYTES}"), |body| body.len().to_string());
            print(&format!("{} {} {} from {} ({size} bytes)", one.at, one.method, one.target, one.peer.ip()));
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() == REMEMBERED {
            seen.pop_front();
        }
        seen.push_back(one);
    }

    async fn requests(State(bin): State<Self>) -> Json<Vec<Seen>> {
        Json(bin.seen())
    }

    async fn whoami(ConnectInfo(peer): ConnectInfo<SocketAddr>) -> String {
        format!("{}\n", peer.ip().to_canonical())
    }

    async fn status(
        State(bin): State<Self>,
        ConnectInfo(peer): ConnectInfo<SocketAddr>,
        Path(status): Path<u16>,
        request: Request,
    ) -> Response {
        bin.note(peer, request).await;
        match StatusCode::from_u16(status) {
            Ok(status) if status.as_u16() >= 200 => (status, format!("you asked for {status}\n")).into_response(),
            _ => (StatusCode::BAD_REQUEST, "a status is a number from 200 to 999\n").into_response(),
        }
    }

    async fn delay(
        State(bin): State<Self>,
        ConnectInfo(peer): ConnectInfo<SocketAddr>,
        Path(ms): Path<u64>,
        request: Request,
    ) -> Response {
        bin.note(peer, request).await;
        tokio::time::sleep(Duration::from_millis(ms).min(DELAY_MAX)).await;
        format!("after {ms} ms\n").into_response()
    }

    async fn answer(
        State(bin): State<Self>,
        ConnectInfo(peer): ConnectInfo<SocketAddr>,
        request: Request<Body>,
    ) -> Response {
        bin.note(peer, request).await;
        (StatusCode::OK, "ok\n").into_response()
    }
}

fn lines(headers: &HeaderMap) -> Vec<(String, String)> {
    headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect()
}
