//! One try to bring a batch to where it goes. Never of a send: there is no [`Started`](crate::store::Started) here, and it
//! may be made again, with the same key and the same bytes.

use std::io::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use flate2::{Compression, GzBuilder, write::GzEncoder};
use http::HeaderValue;
use jiff::Timestamp;

use super::sql::Rows;
use super::{Attempt, Deliverer, Journey};
use crate::deadline::Deadline;
use crate::outcome::words::UnmadeCause;
use crate::outcome::{Code, Failure, Outcome, Processed};
use crate::record::BatchId;
use crate::redact::RawResponse;
use crate::send::{Event, Kind, Place, SendId, TenantId};

/// A batch, ready to go.
pub struct Parcel {
    pub id: BatchId,
    pub tenant: TenantId,
    pub place: Place,
    pub closed_at: Timestamp,
    /// The only place that it goes to, as [`crate::config::Config::placed`] has it.
    pub placed: Option<Box<str>>,
    pub content: Content,
}

/// What is carried. The same events make the same bytes.
pub enum Content {
    /// gzip of one line an event.
    Lines(Bytes),
    /// A row an event.
    Rows(Rows),
}

/// A [`Content`] in the making.
pub enum Packing {
    Lines(GzEncoder<Vec<u8>>),
    Rows(Rows),
}

impl Packing {
    pub fn new(place: &Place) -> Self {
        match place {
            // No time and no name stands in its head, so it tells of its events alone.
            Place::S3 { .. } => Self::Lines(GzBuilder::new().mtime(0).write(Vec::new(), Compression::new(6))),
            Place::Sql { .. } => Self::Rows(Rows::default()),
        }
    }

    /// Takes as long as the event is.
    pub fn add(&mut self, id: SendId, event: &Event) {
        match self {
            Self::Lines(lines) => {
                // Into memory, which takes all of it.
                let _ = lines.write_all(&event.line());
                let _ = lines.write_all(b"\n");
            }
            Self::Rows(rows) => rows.add(id, event),
        }
    }

    pub fn finish(self) -> Content {
        match self {
            Self::Lines(lines) => Content::Lines(lines.finish().unwrap_or_default().into()),
            Self::Rows(rows) => Content::Rows(rows),
        }
    }
}

/// What comes of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The batch is where it was to go, by this try or by one before.
    There,
    /// Another try may bring it there.
    MayPass,
    /// No other one does, before somebody has mended something.
    Over,
}

impl Fate {
    pub fn of(attempt: &Attempt) -> Self {
        match (&attempt.ended.error, &attempt.response) {
            // What the name servers said may be another thing the next time, and is judged anew then. What was stopped
            // before they were asked is the configuration's word or the operator's, and so are the last two.
            (Some(failure), _) if failure.code.outcome() == Outcome::Blocked => {
                let was_asked = attempt.timings.dns.is_some();
                let is_ordered = matches!(failure.code, Code::Suspended | Code::PolicyDenied | Code::PolicyNotAllowed);
                if was_asked && !is_ordered { Self::MayPass } else { Self::Over }
            }
            (Some(_), _) | (None, None) => Self::MayPass,
            (None, Some(answer)) => super::s3::fate(answer.status, &answer.body),
        }
    }
}

impl Deliverer {
    /// Ends at the deadline and not later, as any delivery.
    pub async fn carry(self: &Arc<Self>, parcel: Parcel, deadline: Deadline) -> Attempt {
        let mut journey = Journey::default();
        let run = Box::pin(async {
            let settings = self.world.settings();
            let placed = settings.config.placed(&parcel.tenant, &parcel.place);
            // Where nothing is set up any more it is told so.
            if let (Some(now), Some(then)) = (&placed, &parcel.placed)
                && **now != **then
            {
                tracing::warn!(batch = %parcel.id, %now, %then, "a batch may be where it was tried, and that is no longer set up");
                return Err(UnmadeCause::Moved.failure());
            }
            match (&parcel.place, &parcel.content) {
                (Place::S3 { bucket, prefix }, Content::Lines(lines)) => {
                    let key = super::s3::key(prefix, parcel.closed_at, parcel.id);
                    self.put_object(&settings, &parcel.tenant, bucket, &key, lines.clone(), &mut journey).await
                }
                (Place::Sql { table }, Content::Rows(rows)) => {
                    self.insert(&settings, &parcel.tenant, table, parcel.id, rows, deadline, &mut journey).await
                }
                // They are made for each other by their place.
                (Place::S3 { .. } | Place::Sql { .. }, _) => Err(UnmadeCause::Defect.failure()),
            }
        });
        let mut run = self.turns.take(&parcel.tenant, run);
        let result = deadline.bound(&mut run).await;
        let total = deadline.spent();
        drop(run.stop());
        let secrets = std::mem::take(&mut journey.secrets);
        let (all_out, host) = (journey.request_is_out(), journey.named().0.into_owned());
        let mut attempt = journey.end(result, &deadline, total);
        if parcel.place.kind() == Kind::S3 {
            attempt = super::s3::proven(attempt, all_out, &host);
        }
        attempt.ended.error = attempt.ended.error.map(Failure::of_a_try);
        if attempt.ended.error.as_ref().is_some_and(|error| error.processed != Processed::No) {
            attempt.taken = Processed::Maybe;
        }
        let answers = attempt.left_out.iter_mut().map(|left_out| &mut left_out.answer);
        for answer in attempt.response.iter_mut().chain(answers) {
            hide(answer, &secrets);
        }
        attempt
    }
}

/// Takes what it was signed or logged in with out of an answer: some servers say what they were sent.
fn hide(answer: &mut RawResponse, secrets: &[Box<str>]) {
    const HIDDEN: &str = "[redacted]";
    let told = |text: &[u8]| secrets.iter().any(|secret| !secret.is_empty() && holds(text, secret.as_bytes()));
    for (_, value) in &mut answer.headers {
        if told(value.as_bytes()) {
            *value = HeaderValue::from_static(HIDDEN);
        }
    }
    if told(&answer.body) {
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let secrets = secrets.iter().filter(|secret| !secret.is_empty());
        answer.body = secrets.fold(text, |text, secret| text.replace(&**secret, HIDDEN)).into();
    }
}

fn holds(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::outcome::{Ended, Timings};
    use crate::policy::{Destination, Host, Scheme};

    #[test]
    fn what_it_was_signed_with_is_in_no_answer() {
        let secrets: Vec<Box<str>> = ["AKID", "token/of+mine", ""].map(Into::into).into();
        for (body, shown) in [
            (
                "<CanonicalRequest>x-amz-security-token:token/of+mine AKID</CanonicalRequest>",
                "<CanonicalRequest>x-amz-security-token:[redacted] [redacted]</CanonicalRequest>",
            ),
            ("AccessDenied", "AccessDenied"),
        ] {
            let mut answer = RawResponse {
                status: 403,
                version: "HTTP/1.1",
                headers: vec![
                    (http::header::SERVER, HeaderValue::from_static("s")),
                    (http::header::VIA, HeaderValue::from_static("a token/of+mine")),
                ],
                body: Bytes::from(body),
                body_total: body.len() as u64,
                body_truncated: false,
                body_sha256: [0; 32],
                declared: None,
            };
            hide(&mut answer, &secrets);
            assert_eq!(answer.body, shown);
            assert_eq!(answer.headers[0].1, "s");
            assert_eq!(answer.headers[1].1, "[redacted]");
        }
    }

    #[test]
    fn what_name_servers_say_ends_no_batch_and_what_the_operator_says_does() {
        use std::time::Duration;
        for (code, was_asked, wanted) in [
            (Code::PolicyMixed, true, Fate::MayPass),
            (Code::PolicyAddress, true, Fate::MayPass),
            (Code::PolicyMetadata, true, Fate::MayPass),
            (Code::PolicySelf, true, Fate::MayPass),
            (Code::PolicyName, true, Fate::MayPass), // An alias.
            // An address that the configuration names: nothing changes by itself.
            (Code::PolicyAddress, false, Fate::Over),
            (Code::PolicyPort, false, Fate::Over),
            (Code::PolicyNotAllowed, true, Fate::Over),
            (Code::PolicyDenied, true, Fate::Over),
            (Code::Suspended, true, Fate::Over),
            (Code::Suspended, false, Fate::Over),
            (Code::Timeout, true, Fate::MayPass),
            (Code::DnsNotFound, true, Fate::MayPass),
        ] {
            let attempt = Attempt {
                ended: Ended::because(Failure::recorded(code, None, Processed::No, "")),
                sent_headers: None,
                response: None,
                connection: None,
                timings: Timings { dns: was_asked.then_some(Duration::ZERO), ..Timings::default() },
                would_block: None,
                left_out: Vec::new(),
                taken: Processed::No,
            };
            assert_eq!(Fate::of(&attempt), wanted, "{code} {was_asked}");
        }
    }

    #[test]
    fn the_same_events_make_the_same_bytes_and_read_back_line_by_line() {
        let place = Place::S3 { bucket: "b".into(), prefix: "p".into() };
        let way = Destination { scheme: Scheme::Https, host: Host::Name("s3.example.net".into()), port: 443 };
        let pack = || {
            let mut packing = Packing::new(&place);
            for payload in [r#"{"a": 1}"#, "[1,\n2]", r#""text""#, r#""two\nlines""#, r#""""#] {
                let event = Event::new(place.clone(), way.clone(), Bytes::from(payload)).expect("an event");
                packing.add(SendId(uuid::Uuid::nil()), &event);
            }
            match packing.finish() {
                Content::Lines(bytes) => bytes,
                Content::Rows(rows) => panic!("{rows:?}"),
            }
        };
        let bytes = pack();
        assert_eq!(bytes, pack());
        // RFC 1952 section 2.3: no flags, no time.
        assert_eq!(bytes[..8], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0]);
        let mut text = String::new();
        flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text).expect("gzip");
        assert_eq!(text, "{\"a\": 1}\n[1,2]\ntext\n\"two\\nlines\"\n\n");
    }
}
