//! Every error of the API: RFC 9457 problem details with a code from a closed list.
//!
//! A [`Problem`] is a response in the making. Messages repeat no secret and no internal address; what a store says
//! of its files is for the operator's log, not for tenants.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use super::answers::{full, held};
use super::budget::Room;
use crate::intake::Refusal;
use crate::outcome::labelled;
use crate::send::parse::{self, Fault};
use crate::store::StoreError;

labelled! {
    /// Why a call was not done; also the label `reason` of `egressd_sends_refused_total`.
    ProblemCode {
        Shape = "shape",
        TooLarge = "too_large",
        UnsupportedType = "unsupported_type",
        Unauthorized = "unauthorized",
        Forbidden = "forbidden",
        Suspended = "suspended",
        NotFound = "not_found",
        MethodNotAllowed = "method_not_allowed",
        Conflict = "conflict",
        IdempotencyMismatch = "idempotency_mismatch",
        ResendIncomplete = "resend_incomplete",
        TenantFull = "tenant_full",
        NodeFull = "node_full",
        Draining = "draining",
        Store = "store",
    }
}

impl ProblemCode {
    /// The status that goes with it, unless the problem names another.
    fn status(self) -> StatusCode {
        match self {
            Self::Shape => StatusCode::BAD_REQUEST,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden | Self::Suspended => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict | Self::ResendIncomplete => StatusCode::CONFLICT,
            Self::IdempotencyMismatch => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TenantFull => StatusCode::TOO_MANY_REQUESTS,
            Self::NodeFull | Self::Draining | Self::Store => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Shape => "The call is not of the right shape",
            Self::TooLarge => "The call is too large",
            Self::UnsupportedType => "The body is not application/json",
            Self::Unauthorized => "A valid bearer token is needed",
            Self::Forbidden => "This caller may not do that",
            Self::Suspended => "The tenant or workflow is suspended",
            Self::NotFound => "There is no such thing here",
            Self::MethodNotAllowed => "This path does not take that method",
            Self::Conflict => "The execution has ended, or holds no more",
            Self::IdempotencyMismatch => "The Idempotency-Key came before with another body",
            Self::ResendIncomplete => "The original no longer holds all that a resend needs",
            Self::TenantFull => "The tenant's share is used up",
            Self::NodeFull => "The node is full",
            Self::Draining => "The node is shutting down",
            Self::Store => "The store is not available",
        }
    }
}

/// One problem of a body, with the place it stands at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = BodyProblem)]
pub struct BodyProblem {
    /// RFC 6901 pointer into the call's body; empty: the whole body.
    #[schema(example = "/0/method")]
    pub pointer: String,
    #[schema(example = "methods are written in upper case")]
    pub detail: String,
    #[schema(example = "write POST")]
    pub hint: Option<String>,
}

impl BodyProblem {
    /// About how much it takes, and again as JSON.
    fn likely_bytes(&self) -> usize {
        128 + self.pointer.len() + self.detail.len() + self.hint.as_ref().map_or(0, String::len)
    }
}

/// The body of every error.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct ProblemView<'a> {
    #[serde(rename = "type")]
    #[schema(example = "urn:egressd:problem:shape")]
    type_: String,
    title: &'a str,
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    detail: &'a str,
    #[schema(schema_with = super::openapi::problem_code)]
    code: &'static str,
    /// Every problem of a body that is not of the right shape.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(required = false)]
    errors: &'a [BodyProblem],
}

/// An answer that is an error.
#[derive(Debug)]
pub struct Problem(Box<Inner>);

#[derive(Debug)]
struct Inner {
    code: ProblemCode,
    status: StatusCode,
    detail: String,
    errors: Vec<BodyProblem>,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// What is said of it, where that was written already.
    written: Option<Body>,
}

impl Problem {
    pub fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let (errors, headers) = (Vec::new(), Vec::new());
        Self(Box::new(Inner { code, status: code.status(), detail, errors, headers, written: None }))
    }

    pub fn shape(detail: impl Into<String>) -> Self {
        Self::new(ProblemCode::Shape, detail)
    }

    pub fn not_found(what: &str) -> Self {
        Self::new(ProblemCode::NotFound, format!("there is no such {what}, or it is another tenant's"))
    }

    pub fn unauthorized(detail: &str) -> Self {
        Self::new(ProblemCode::Unauthorized, detail).header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
    }

    /// The router adds `Allow`.
    pub fn method_not_allowed(method: &http::Method) -> Self {
        let detail = format!("this path does not take {method}; the Allow header says what it takes");
        Self::new(ProblemCode::MethodNotAllowed, detail)
    }

    pub fn code(&self) -> ProblemCode {
        self.0.code
    }

    pub(crate) fn detail(&self) -> &str {
        &self.0.detail
    }

    pub fn status(mut self, status: StatusCode) -> Self {
        self.0.status = status;
        self
    }

    pub fn errors(mut self, errors: Vec<BodyProblem>) -> Self {
        self.0.errors = errors;
        self
    }

    fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }

    pub fn retry_after(self, seconds: u64) -> Self {
        self.header(RETRY_AFTER, HeaderValue::from(seconds.max(1)))
    }
}

impl From<Vec<parse::ShapeProblem>> for Problem {
    fn from(problems: Vec<parse::ShapeProblem>) -> Self {
        let only_size = problems.iter().all(|problem| problem.fault == Fault::TooLarge);
        let code = if only_size { ProblemCode::TooLarge } else { ProblemCode::Shape };
        let detail = match problems.as_slice() {
            [one] if one.pointer.is_empty() => one.detail.clone(),
            [one] => format!("{} {}", one.pointer, one.detail),
            several => format!("{} problems, each of them listed in `errors`; nothing was accepted", several.len()),
        };
        let errors = problems
            .into_iter()
            .map(|problem| BodyProblem { pointer: problem.pointer, detail: problem.detail, hint: problem.hint })
            .collect();
        Self::new(code, detail).errors(errors)
    }
}

/// Seconds after which a call is worth another try when the cause is not one that we can time.
pub const RETRY_SOON: u64 = 1;
const RETRY_STORE: u64 = 5;
const RETRY_NODE: u64 = 5;

impl Problem {
    /// With the numbers that only operators may know.
    pub(super) fn told(refusal: Refusal, operate: bool) -> Self {
        match refusal {
            Refusal::NodeFull { retry_after, .. } if operate => {
                Self::new(ProblemCode::NodeFull, refusal.to_string()).retry_after(retry_after)
            }
            refusal => refusal.into(),
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let detail = refusal.to_string();
        match refusal {
            Refusal::Suspended { .. } => Self::new(ProblemCode::Suspended, detail),
            Refusal::ExecutionEnded { .. } => Self::new(ProblemCode::Conflict, detail),
            Refusal::ExecutionFull { .. } => Self::new(ProblemCode::TooLarge, detail),
            Refusal::IdempotencyMismatch => Self::new(ProblemCode::IdempotencyMismatch, detail),
            Refusal::TenantFull { retry_after, .. } | Refusal::ShareFull { retry_after, .. } => {
                Self::new(ProblemCode::TenantFull, detail).retry_after(retry_after)
            }
            // How full it is, and for how long, is everybody's doing: no tenant learns it of the others.
            Refusal::NodeFull { .. } => {
                let detail = "this node has as many sends waiting as it may: try again later, or another node";
                Self::new(ProblemCode::NodeFull, detail).retry_after(RETRY_NODE)
            }
            Refusal::Draining => Self::new(ProblemCode::Draining, detail).retry_after(RETRY_SOON),
            Refusal::Store(error) => {
                tracing::warn!(%detail, "a call was refused: the store does not take it");
                let detail = match error {
                    StoreError::Unanswered(_) => {
                        "the store has not answered in time: without an Idempotency-Key, whatever it still accepts of \
                         this call ends unsent (interrupted) unless another node has begun it by then; with one, the \
                         same call again tells what it accepted"
                    }
                    _ => "the store cannot take this now: nothing was accepted, try again later",
                };
                Self::new(ProblemCode::Store, detail).retry_after(RETRY_STORE)
            }
        }
    }
}

impl Problem {
    /// With its words written here and now, in this room: they may be many times what was refused.
    pub(super) fn written(mut self, mut room: Room) -> Self {
        let likely: usize = self.0.errors.iter().map(BodyProblem::likely_bytes).sum();
        // Twice: what it is written from is there as well.
        if !room.cover_beyond(2 * likely) {
            return full();
        }
        let body = self.body();
        self.0.errors = Vec::new();
        self.0.written = Some(held(room, body));
        self
    }

    /// What is said of it, as `application/problem+json`.
    pub(crate) fn body(&self) -> Vec<u8> {
        let Inner { code, status, detail, errors, .. } = &*self.0;
        written(code.label(), code.title(), *status, detail, errors)
    }
}

/// Of an error whose code is of another list: the same form.
pub(crate) fn body_of(code: &'static str, title: &str, status: StatusCode, detail: &str) -> Vec<u8> {
    written(code, title, status, detail, &[])
}

fn written(code: &'static str, title: &str, status: StatusCode, detail: &str, errors: &[BodyProblem]) -> Vec<u8> {
    let type_ = format!("urn:egressd:problem:{code}");
    let view = ProblemView { type_, title, status: status.as_u16(), detail, code, errors };
    serde_json::to_vec(&view).unwrap_or_default()
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::BadCursor => Self::shape("cursor is not one that a list answered: start without one"),
            StoreError::NoSuchSend => Self::not_found("send"),
            error => {
                tracing::warn!(%error, "a call was refused: the store does not answer");
                Self::new(ProblemCode::Store, "the store cannot answer now: try again later").retry_after(RETRY_STORE)
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(mut self) -> Response {
        let body = self.0.written.take().unwrap_or_else(|| self.body().into());
        let Inner { status, headers, .. } = *self.0;
        let mut response = Response::new(body);
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        for (name, value) in headers {
            response.headers_mut().insert(name, value);
        }
        response
    }
}
