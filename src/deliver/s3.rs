//! One object, put into a bucket of the operator's S3-compatible store: one signed `PutObject` over a connection of its own.
//!
//! Endpoint, region and credentials are the configuration's at this moment; of the events there are the bucket and the
//! prefix. It is signed ([`sigv4`]) over the digest of the real bytes; the dial is the one that there is. Not here: what is put, and whether it is tried again ([`crate::batcher`]).

use std::sync::PoisonError;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};
use jiff::Timestamp;

use super::batch::Fate;
use super::http::Unanswered;
use super::sigv4;
use super::{Attempt, Deliverer, Found, Journey, Way};
use crate::clock;
use crate::config::S3Credentials;
use crate::outcome::words::{ExchangeCause, UnmadeCause};
use crate::outcome::{Code, Ended, Failure, Phase, Processed};
use crate::policy::{Asker, CheckedUrl, Denial, Purpose};
use crate::record::BatchId;
use crate::redact::{RawResponse, sha256};
use crate::send::{HeaderLines, HttpRequest, Method, Spelling, Target, TenantId};
use crate::world::Settings;

/// `PREFIX/YYYY/MM/DD/HH/YYYY-MM-DD-HH-MM-SS-ID.gz`, by when the batch closed, in UTC.
pub fn key(prefix: &str, closed_at: Timestamp, id: BatchId) -> String {
    let within = closed_at.strftime("%Y/%m/%d/%H/%Y-%m-%d-%H-%M-%S");
    if prefix.is_empty() { format!("{within}-{id}.gz") } else { format!("{prefix}/{within}-{id}.gz") }
}

/// What an answer means for a batch whose key is its own. A key that is taken was taken by it. The code of an error says
/// more than its status, where it gives one.
pub fn fate(status: u16, body: &[u8]) -> Fate {
    match (status, error_code(body)) {
        (200..=299 | 412, _) => Fate::There,
        // What was signed with or by when; what came damaged, too slowly or too often; the store's own trouble.
        (
            _,
            Some(
                "ExpiredToken"
                | "TokenRefreshRequired"
                | "RequestTimeTooSkewed"
                | "IncompleteBody"
                | "BadDigest"
                | "XAmzContentSHA256Mismatch"
                | "RequestTimeout"
                | "SlowDown"
                | "TooManyRequests"
                | "RequestLimitExceeded"
                | "Throttling"
                | "ThrottlingException"
                | "InternalError"
                | "ServiceUnavailable"
                | "OperationAborted"
                | "ConditionalRequestConflict",
            ),
        ) => Fate::MayPass,
        // A client that was too slow, a request that is under way at the same moment, a bucket that was made just now.
        (307 | 408 | 409 | 425 | 429 | 500..=599, _) => Fate::MayPass,
        _ => Fate::Over,
    }
}

/// Whether the store may have put what it answered so to: it has had the request, and does not say that it left it.
pub fn is_unsure(status: u16, body: &[u8]) -> bool {
    matches!(status, 408 | 500..=599) && error_code(body) != Some("SlowDown")
}

/// Why an answer that is a success does not prove that the object is there. What S3 gives is 200 with the ETag of what was
/// put and nothing behind it, once it has read all of it; or its own code for our condition. Anybody on the way can say 412.
fn unproven(answer: &RawResponse, all_out: bool, is_conditional: bool) -> Option<&'static str> {
    let mut tags = answer.headers.iter().filter(|(name, _)| *name == header::ETAG).map(|(_, value)| value.as_bytes());
    let is_tag = |tag: &[u8]| tag.iter().any(|byte| byte.is_ascii_alphanumeric());
    let has_tag = tags.next().is_some_and(is_tag) && tags.all(is_tag);
    let is_bare = answer.body.trim_ascii().is_empty() && answer.body_total == answer.body.len() as u64;
    match answer.status {
        412 if !is_conditional => Some("which was not asked for on any condition"),
        412 if error_code(&answer.body) != Some("PreconditionFailed") => Some("and not that the object is there"),
        202 | 203 | 205..=299 => Some("which is no answer to who puts something"),
        200..=299 if !all_out => Some("before it had read all of it"),
        200..=299 if !has_tag => Some("without an ETag"),
        200..=299 if !is_bare => Some("with a body, where there is nothing to say"),
        _ => None,
    }
}

/// The failure that an unproven success is.
pub(super) fn proven(mut attempt: Attempt, all_out: bool, host: &str) -> Attempt {
    if attempt.ended.error.is_some() {
        return attempt;
    }
    let Some(answer) = &attempt.response else { return attempt };
    let mut sent = attempt.sent_headers.iter().flatten();
    let is_conditional = sent.any(|(name, _)| *name == header::IF_NONE_MATCH);
    if let Some(why) = unproven(answer, all_out, is_conditional) {
        attempt.ended = Ended::because(ExchangeCause::NoProof { status: answer.status, why }.failure(host));
    } else if is_unsure(answer.status, &answer.body) {
        attempt.taken = Processed::Maybe;
    }
    attempt
}

/// The `Code` of an error's XML, where it is one word.
pub fn error_code(body: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(body).ok()?.trim_ascii_start();
    if !["<?xml", "<Error"].iter().any(|start| text.starts_with(start)) {
        return None;
    }
    let (_, rest) = text.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    (code.len() <= 64 && !code.is_empty() && code.bytes().all(|byte| byte.is_ascii_alphanumeric())).then_some(code)
}

impl Deliverer {
    /// The status that was answered.
    pub(super) async fn put_object(
        &self,
        settings: &Settings,
        tenant: &TenantId,
        bucket: &str,
        key: &str,
        content: Bytes,
        journey: &mut Journey,
    ) -> Result<u16, Failure> {
        let purpose = Purpose::Bucket;
        let gone = |what: &str| Failure::from(Denial::new(Code::PolicyNotAllowed, what));
        let Some(set_up) = &settings.config.destinations.s3 else {
            return Err(gone("S3 is not set up on this node any more: ask the operator for [destination.s3]"));
        };
        if !set_up.allows(bucket) {
            return Err(gone("the operator's list of buckets does not have this one any more: ask the operator"));
        }
        let url = set_up.url(bucket, key)?;
        let to = url.destination();
        journey.goes_to(to);
        let asker = Asker { tenant, workflow: None };
        let generation = self.pool.generation();
        let judged_by = self.world.in_force();
        if let Some(denial) = self.world.judge_endpoint(asker, to, purpose) {
            return Err(denial.into());
        }
        let file = set_up.credentials_file.clone();
        let credentials = match tokio::task::spawn_blocking(move || S3Credentials::read(&file)).await {
            Ok(Ok(credentials)) => credentials,
            Ok(Err(why)) => {
                tracing::error!(why = %why.detail, "the credentials for S3 cannot be used: batches wait for them");
                return Err(UnmadeCause::NoCredentials.failure());
            }
            Err(_) => return Err(UnmadeCause::Defect.failure()),
        };
        journey.secrets.push(credentials.access_key_id.as_str().into());
        let secrets = [Some(&credentials.secret_access_key), credentials.session_token.as_ref()];
        journey.secrets.extend(secrets.into_iter().flatten().map(|secret| secret.expose().into()));
        let digest = self.apart.run(tenant, digest(content.clone())).await;
        let unconditional = || self.unconditional.lock().unwrap_or_else(PoisonError::into_inner);
        let is_conditional = !unconditional().contains(to);
        let headers = signed(&url, is_conditional, &digest, &set_up.region, &credentials, clock::wall());
        let headers = headers.ok_or_else(|| UnmadeCause::Defect.failure())?;
        let asked = HttpRequest {
            method: Method::Put,
            target: Target::Url(url.clone()),
            headers,
            spelling: Spelling::default(),
            dropped_headers: Vec::new(),
            body: Some(content),
        };

        let mut in_flight = self.dialer.metrics().in_flight();
        journey.watch.enter(Phase::Dns);
        let look = self.dialer.look(asker, to, settings, purpose, &journey.inquiry).await;
        let Found { aliases, addresses, candidates } = journey.looked(look)?;
        let (asked, url) = (&asked, &url);
        let way = Way { tenant, asked, url, settings, carried: None, purpose, generation, reused: false };
        let channel = self.open(&way, &candidates, journey, &mut in_flight).await?;
        if !self.world.in_force().is(&judged_by) {
            let remote = channel.line().remote;
            self.dialer.judge_endpoint_again(asker, to, &aliases, &addresses, purpose, remote)?;
        }
        match self.exchange(&way, channel, journey).await {
            Ok(status) => {
                if status == NOT_IMPLEMENTED && is_conditional {
                    // The next try is made without the condition, which its key hardly needs.
                    unconditional().insert(to.clone());
                }
                Ok(status)
            }
            Err(Unanswered::Failed(failure)) => Err(failure),
            Err(Unanswered::Unwritten) => Err(journey.closed_unwritten()),
        }
    }
}

/// What a store answers to a header that it does not know.
const NOT_IMPLEMENTED: u16 = 501;

async fn digest(content: Bytes) -> String {
    sigv4::hexadecimal(&sha256(&content))
}

/// What an object is put with, its signature included. A key is one batch's own: on condition that it is not there yet,
/// nothing is written over.
fn signed(
    url: &CheckedUrl,
    is_conditional: bool,
    digest: &str,
    region: &str,
    credentials: &S3Credentials,
    at: Timestamp,
) -> Option<HeaderLines> {
    let mut lines = vec![(header::CONTENT_TYPE, HeaderValue::from_static("application/gzip"))];
    if is_conditional {
        lines.push((header::IF_NONE_MATCH, HeaderValue::from_static("*")));
    }
    let host = url.authority();
    let dated = sigv4::date(at);
    let mut ours = vec![("x-amz-content-sha256", digest), ("x-amz-date", dated.as_str())];
    ours.extend(credentials.session_token.as_ref().map(|token| ("x-amz-security-token", token.expose())));
    for (name, value) in ours {
        let mut value = HeaderValue::from_str(value).ok()?;
        value.set_sensitive(true);
        lines.push((HeaderName::from_static(name), value));
    }
    let signed = lines.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
    let signed = std::iter::once(("host", host.as_str())).chain(signed).collect();
    let (path, query) = (url.origin_form(), "");
    let request = sigv4::Request { method: "PUT", path: &path, query, headers: signed, payload: digest };
    let (id, secret) = (&credentials.access_key_id, credentials.secret_access_key.expose());
    let authorization = request.authorization(id, secret, region, at);
    let mut value = HeaderValue::from_str(&authorization).ok()?;
    value.set_sensitive(true);
    lines.push((header::AUTHORIZATION, value));
    Some(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;
    use crate::send::Place;
    use crate::send::SendId;

    #[test]
    fn a_key_says_when_its_batch_closed_and_which_it_is() {
        let closed_at: Timestamp = "2026-03-04T05:06:07.9Z".parse().expect("a time");
        let place = Place::S3 { bucket: "b".into(), prefix: "p".into() };
        let id = BatchId::of(SendId(uuid::Uuid::nil()), &TenantId::new("acme"), &place);
        assert_eq!(key("in/acme", closed_at, id), format!("in/acme/2026/03/04/05/2026-03-04-05-06-07-{id}.gz"));
        assert_eq!(key("", closed_at, id), format!("2026/03/04/05/2026-03-04-05-06-07-{id}.gz"));
    }

    #[test]
    fn what_an_answer_means_for_a_batch() {
        let error = |code: &str| format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>").into_bytes();
        for (status, body, wanted, unsure) in [
            (200, Vec::new(), Fate::There, false),
            (204, Vec::new(), Fate::There, false),
            (412, error("PreconditionFailed"), Fate::There, false),
            (429, Vec::new(), Fate::MayPass, false),
            (500, error("InternalError"), Fate::MayPass, true),
            (503, error("SlowDown"), Fate::MayPass, false),
            (503, error("ServiceUnavailable"), Fate::MayPass, true),
            (502, b"<html>Bad gateway</html>".to_vec(), Fate::MayPass, true),
            (504, Vec::new(), Fate::MayPass, true),
            (409, error("ConditionalRequestConflict"), Fate::MayPass, false),
            (400, error("RequestTimeout"), Fate::MayPass, false),
            (400, error("ExpiredToken"), Fate::MayPass, false),
            (403, error("ExpiredToken"), Fate::MayPass, false),
            (403, error("RequestTimeTooSkewed"), Fate::MayPass, false),
            (400, error("IncompleteBody"), Fate::MayPass, false),
            (400, error("BadDigest"), Fate::MayPass, false),
            (400, error("XAmzContentSHA256Mismatch"), Fate::MayPass, false),
            (408, Vec::new(), Fate::MayPass, true),
            (400, error("InvalidRequest"), Fate::Over, false),
            (301, error("PermanentRedirect"), Fate::Over, false),
            (403, error("AccessDenied"), Fate::Over, false),
            (403, error("SignatureDoesNotMatch"), Fate::Over, false),
            (404, error("NoSuchBucket"), Fate::Over, false),
        ] {
            assert_eq!(fate(status, &body), wanted, "{status} {}", String::from_utf8_lossy(&body));
            assert_eq!(is_unsure(status, &body), unsure, "{status} {}", String::from_utf8_lossy(&body));
        }
        assert_eq!(error_code(b"<Code>two words</Code>"), None);
        assert_eq!(error_code(b"<Code>"), None);
    }

    #[test]
    fn a_success_is_one_where_it_is_what_a_store_says() {
        let tag = || vec![(header::ETAG, HeaderValue::from_static("\"x\""))];
        let no_tag = vec![(header::ETAG, HeaderValue::from_static(""))];
        let behind = &*format!("{}<html>", " ".repeat(600));
        let met = "<?xml?><Error><Code>PreconditionFailed</Code></Error>";
        for (status, headers, body, all_out, is_conditional, is_proof) in [
            (200, tag(), "", true, true, true),
            (200, tag(), " \n", true, false, true),
            (201, tag(), "", true, true, true),
            (412, Vec::new(), met, true, true, true),
            (503, Vec::new(), "<html>", true, true, true),
            (412, Vec::new(), met, true, false, false),
            (412, Vec::new(), "", true, true, false),
            (412, tag(), "<html>Request blocked</html>", true, true, false),
            (412, Vec::new(), "<Error><Code>AccessDenied</Code></Error>", true, true, false),
            (200, no_tag.clone(), "", true, true, false),
            (200, vec![(header::ETAG, HeaderValue::from_static("\"\""))], "", true, true, false),
            (200, no_tag.into_iter().chain(tag()).collect(), "", true, true, false),
            (202, tag(), "", true, true, false),
            (299, tag(), "", true, true, false),
            (412, Vec::new(), "<html><Code>PreconditionFailed</Code></html>", true, true, false),
            (200, tag(), behind, true, true, false),
            (200, tag(), "{\"error\": \"quota\"}", true, true, false),
            (200, Vec::new(), "", true, true, false),
            (204, Vec::new(), "", true, true, false),
            (206, tag(), "", true, true, false),
            (200, tag(), "", false, true, false),
            (200, tag(), "<!DOCTYPE html><html>", true, true, false),
            (200, tag(), "<?xml?><Error><Code>InternalError</Code></Error>", true, true, false),
        ] {
            let answer = RawResponse {
                status,
                version: "HTTP/1.1",
                headers,
                body: Bytes::copy_from_slice(body.as_bytes()),
                body_total: body.len() as u64,
                body_truncated: false,
                body_sha256: [0; 32],
                declared: None,
            };
            let found = unproven(&answer, all_out, is_conditional);
            assert_eq!(found.is_none(), is_proof, "{status} {body} {all_out} {is_conditional}: {found:?}");
        }
    }

    fn of_the_examples() -> (S3Credentials, Timestamp) {
        let credentials = S3Credentials {
            access_key_id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret_access_key: Secret::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned()),
            session_token: None,
        };
        (credentials, "2013-05-24T00:00:00Z".parse().expect("a time"))
    }

    #[test]
    fn a_session_token_is_signed_and_every_header_of_ours_too() {
        let (mut credentials, at) = of_the_examples();
        credentials.session_token = Some(Secret::new("a+session/token==".to_owned()));
        let url = CheckedUrl::parse("http://127.0.0.1:9000/bucket/a%20b/c.gz").expect("a URL");
        let lines = signed(&url, true, &"0".repeat(64), "us-east-1", &credentials, at).expect("signed");
        let names: Vec<&str> = lines.iter().map(|(name, _)| name.as_str()).collect();
        for name in ["content-type", "if-none-match", "x-amz-security-token", "x-amz-date", "authorization"] {
            assert!(names.contains(&name), "{name}: {names:?}");
        }
        let (_, authorization) = lines.iter().find(|(name, _)| name == "authorization").expect("signed");
        let signed =
            "SignedHeaders=content-type;host;if-none-match;x-amz-content-sha256;x-amz-date;x-amz-security-token,";
        assert!(authorization.to_str().is_ok_and(|text| text.contains(signed)), "{authorization:?}");
    }
}
