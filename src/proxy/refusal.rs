//! What is refused, and how it is told: problem details as the API's (RFC 9457), with the header `Egressd-Code` for
//! clients that show no body of an answer to CONNECT. The codes are those of a send's record, or of the API.

use axum::body::Body;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, PROXY_AUTHENTICATE, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, Response, StatusCode, Version};

use super::caps::Full;
use crate::api::problem::{Problem, ProblemCode, body_of};
use crate::limits::TUNNEL_RETRY_SECONDS;
use crate::outcome::{Code, Failure, Outcome};
use crate::policy::{CheckedUrl, Host, without_internal_addresses};
use crate::store::NoRoom;

const EGRESSD_CODE: &str = "egressd-code";
/// Retention is applied by the minute.
const SHARE_RETRY_SECONDS: u64 = 60;

/// Why there is no tunnel.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    body: Vec<u8>,
    retry_after: Option<u64>,
    why: Why,
}

/// The same, of a tunnel that is remembered.
#[derive(Clone, Debug)]
pub struct Why {
    /// As metrics and logs have it.
    pub code: &'static str,
    /// Where it is one of the reasons for which a send fails.
    pub failure: Option<Box<Failure>>,
    detail: String,
}

impl Why {
    pub fn message(self) -> String {
        self.failure.map_or(self.detail, |failure| failure.message)
    }
}

impl From<Failure> for Why {
    fn from(failure: Failure) -> Self {
        Self { code: failure.code.label(), failure: Some(Box::new(failure)), detail: String::new() }
    }
}

impl Refusal {
    #[cfg(test)]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    fn of(code: ProblemCode, status: StatusCode, detail: &str) -> Self {
        let body = Problem::new(code, detail).status(status).body();
        let why = Why { code: code.label(), failure: None, detail: detail.to_owned() };
        Self { status, body, retry_after: None, why }
    }

    pub fn code(&self) -> &'static str {
        self.why.code
    }

    pub fn why(&self) -> Why {
        self.why.clone()
    }

    /// 407: whoever asks has not said who that is, or not in a way that is believed.
    pub fn unauthenticated(detail: &str) -> Self {
        Self::of(ProblemCode::Unauthorized, StatusCode::PROXY_AUTHENTICATION_REQUIRED, detail)
    }

    /// The same, of a token that was good when this was begun.
    pub fn revoked() -> Self {
        Self::unauthenticated("the token that this was asked for with may open no tunnels of this tenant any more")
    }

    pub fn not_absolute() -> Self {
        let detail = "this is a proxy: it takes CONNECT to a host and a port, and requests for absolute http URLs; the API is \
                      elsewhere";
        Self::of(ProblemCode::Shape, StatusCode::BAD_REQUEST, detail)
    }

    pub fn not_taken(method: &Method) -> Self {
        let detail = format!(
            "{method} is not what this proxy takes: it opens tunnels (CONNECT), and where plain_http is on it makes requests \
             for http URLs, but no TRACE"
        );
        Self::of(ProblemCode::MethodNotAllowed, StatusCode::METHOD_NOT_ALLOWED, &detail)
    }

    pub fn draining() -> Self {
        let detail = "this node is about to stop, and opens no more tunnels: use another, or this one a little later";
        let refusal = Self::of(ProblemCode::Draining, StatusCode::SERVICE_UNAVAILABLE, detail);
        Self { retry_after: Some(TUNNEL_RETRY_SECONDS), ..refusal }
    }

    /// The store does not take the records without which nothing is opened.
    pub fn unrecorded() -> Self {
        let detail = "the store takes no records of tunnels now, and none is opened without: try again later";
        let refusal = Self::of(ProblemCode::Store, StatusCode::SERVICE_UNAVAILABLE, detail);
        Self { retry_after: Some(TUNNEL_RETRY_SECONDS), ..refusal }
    }

    /// Of what is remembered.
    pub fn no_room(why: NoRoom) -> Self {
        let (code, detail, seconds) = match why {
            NoRoom::OfTenant => (
                ProblemCode::TenantFull,
                "this tenant has as many records of tunnels as it may: some go with their retention, or ask the operator for \
                 a larger store",
                SHARE_RETRY_SECONDS,
            ),
            NoRoom::AtAll => (
                ProblemCode::NodeFull,
                "as many tunnels are open as the store has room for: try again later, or another node",
                TUNNEL_RETRY_SECONDS,
            ),
        };
        let refusal = Self::of(code, StatusCode::TOO_MANY_REQUESTS, detail);
        Self { retry_after: Some(seconds), ..refusal }
    }

    /// All places for requests that are looked at are in use.
    pub fn no_place() -> Self {
        let detail = "this client has as many requests under way as there are places for";
        let refusal = Self::of(ProblemCode::NodeFull, StatusCode::TOO_MANY_REQUESTS, detail);
        Self { retry_after: Some(TUNNEL_RETRY_SECONDS), ..refusal }
    }

    /// By the policy, before anything was looked up.
    pub fn denied(failure: &Failure) -> Self {
        Self::because(failure, &failure.message)
    }

    /// On the way: without addresses that are not the caller's to know.
    pub fn failed(failure: &Failure, url: &CheckedUrl) -> Self {
        let written = match url.destination().host {
            Host::Address(address) => Some(address),
            Host::Name(_) => None,
        };
        Self::because(failure, &without_internal_addresses(&failure.message, |address| Some(address) == written))
    }

    fn because(failure: &Failure, message: &str) -> Self {
        let (status, title) = match failure.code {
            code if code.outcome() == Outcome::Blocked => {
                (StatusCode::FORBIDDEN, "The acceptable-use policy does not allow this destination")
            }
            Code::Timeout => (StatusCode::GATEWAY_TIMEOUT, "The destination was not reached in time"),
            _ => (StatusCode::BAD_GATEWAY, "The destination could not be reached"),
        };
        let body = body_of(failure.code.label(), title, status, message);
        Self { status, body, retry_after: None, why: failure.clone().into() }
    }

    /// A connection of HTTP/1 ends with it: whatever came behind a refused request is read by nobody. One of HTTP/2, whose
    /// streams are apart from each other, goes on.
    pub fn into_response(self, version: Version) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if version != Version::HTTP_2 {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        headers.insert(EGRESSD_CODE, HeaderValue::from_static(self.why.code));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            for scheme in ["Basic realm=\"egressd\"", "Bearer realm=\"egressd\""] {
                headers.append(PROXY_AUTHENTICATE, HeaderValue::from_static(scheme));
            }
        }
        response
    }
}

/// What the API says of the same: a shape, a scope, another tenant.
impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        let status = match problem.code() {
            ProblemCode::Shape => StatusCode::BAD_REQUEST,
            _ => StatusCode::FORBIDDEN,
        };
        Self::of(problem.code(), status, problem.detail())
    }
}

impl From<Full> for Refusal {
    fn from(full: Full) -> Self {
        let (code, detail) = match full {
            Full::All(_) => (
                ProblemCode::NodeFull,
                "this node has as many tunnels as it may: try again later, or another".to_owned(),
            ),
            Full::OfTenant(most) => (
                ProblemCode::TenantFull,
                format!("this tenant has {most} tunnels, as many as it may: close some, or ask the operator for more"),
            ),
            Full::OfDestination(most) => (
                ProblemCode::TenantFull,
                format!("this tenant has {most} tunnels to this host and port, as many as it may: close some of them"),
            ),
        };
        let refusal = Self::of(code, StatusCode::TOO_MANY_REQUESTS, &detail);
        Self { retry_after: Some(TUNNEL_RETRY_SECONDS), ..refusal }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::words::{ConnectCause, NameCause, Tried};
    use crate::policy::Denial;

    #[test]
    fn a_refusal_says_why_in_its_status_its_code_and_its_body() {
        let refused = ConnectCause::Refused { port: 443, from: None, tried: Tried::default() }.failure("example.com");
        let late = ConnectCause::Silent {
            total: std::time::Duration::from_secs(5),
            port: 443,
            from: Some([10, 0, 0, 1].into()),
            tried: Tried::default(),
        };
        let url = CheckedUrl::parse("http://example.com:443/").unwrap();
        let denied = Failure::from(Denial::new(Code::PolicyAddress, "no"));
        let suspended = Failure::from(Denial::new(Code::Suspended, "no"));
        for (refusal, status, code) in [
            (Refusal::failed(&refused, &url), 502, "connection_refused"),
            (Refusal::failed(&late.failure("example.com"), &url), 504, "timeout"),
            (Refusal::failed(&NameCause::NoName.failure("x"), &url), 502, NameCause::NoName.failure("x").code.label()),
            (Refusal::denied(&denied), 403, "policy_address"),
            (Refusal::denied(&suspended), 403, "suspended"),
            (Refusal::unauthenticated("who"), 407, "unauthorized"),
            (Refusal::draining(), 503, "draining"),
            (Full::OfTenant(1).into(), 429, "tenant_full"),
            (Full::OfDestination(1).into(), 429, "tenant_full"),
            (Full::All(1).into(), 429, "node_full"),
            (Refusal::no_room(NoRoom::OfTenant), 429, "tenant_full"),
            (Refusal::no_room(NoRoom::AtAll), 429, "node_full"),
            (Problem::shape("no").into(), 400, "shape"),
        ] {
            let body: serde_json::Value = serde_json::from_slice(&refusal.body).unwrap();
            assert_eq!((&body["status"], &body["code"]), (&status.into(), &code.into()), "{body}");
            assert!(!body.to_string().contains("10.0.0.1"), "{body}");
            let answer = refusal.into_response(Version::HTTP_11);
            let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
            assert_eq!(answer.status().as_u16(), status);
            assert_eq!(header(EGRESSD_CODE).as_deref(), Some(code));
            assert_eq!(header("connection").as_deref(), Some("close"));
            assert_eq!(header("retry-after").is_some(), [429, 503].contains(&status), "{code}");
            assert_eq!(header("proxy-authenticate").is_some(), status == 407, "{code}");
        }
    }
}
