//! `/v1/sends`: submitting, looking, listing.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::header::LOCATION;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::access::{Caller, Need, Tenants};
use super::answers::{self, Receipt, Turn};
use super::budget::Purpose;
use super::problem::{Problem, ProblemCode, ProblemView};
use super::search::{Search, Searched};
use super::view::{
    AcceptedView, PageView, RecordView, SearchedView, SendsView, Shown, Sight, likely_bytes, likely_bytes_of,
};
use super::{Shared, in_full, openapi, query, refused};
use crate::clock;
use crate::config::Config;
use crate::deliver::http::TRACEPARENT;
use crate::intake::{Refusal, Submit, Submitted};
use crate::limits;
use crate::record::{Record, State as SendState};
use crate::redact::sha256;
use crate::send::parse::{self, Bounds, Call, Mail, Sql};
use crate::send::trace::TraceParent;
use crate::send::{ExecutionId, SendId, TenantId};
use crate::store::{Accepted, IdempotencyKey, Reach};

pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

const PREFER: HeaderName = HeaderName::from_static("prefer");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// Records read at the same time for one answer.
const READS_AT_ONCE: usize = 64;
/// About what is left to say of a send whose record is gone.
const GONE_JSON_BYTES: usize = 64;
/// A guess at a record's JSON without its bodies.
pub(super) const RECORD_JSON_BYTES: usize = 1536;
/// What an answer begins with in room: a record of a list, and one with its bodies.
pub(super) const LISTED_JSON_BYTES: usize = 2 * RECORD_JSON_BYTES;
pub(super) const SHOWN_JSON_BYTES: usize = 16 * limits::KIB as usize;

/// How a call's sends are told of.
#[derive(Clone, Copy)]
pub(super) struct Telling {
    /// The call was an object.
    pub one: bool,
    /// Of each its id and state alone.
    pub minimal: bool,
}

/// Submit one send or several.
///
/// 202 only when every one of them is on disk. One send (an object) is answered with its record, several (an array)
/// with theirs in call order. A call with a problem of shape is refused whole; where a URL points is never one.
#[utoipa::path(
    post, path = "/v1/sends", operation_id = "submit_sends", tag = "sends",
    params(openapi::Tenant, openapi::Idempotency, openapi::Prefer, openapi::Trace),
    request_body(content = inline(openapi::Submission), content_type = "application/json", examples(
        ("one" = (summary = "One send", value = json!({"method": "POST", "url": "https://hooks.example.com/orders", "data": {"order": 1}}))),
        ("event" = (summary = "An event for a bucket, carried in a batch", value = json!({"s3": {"bucket": "logs", "prefix": "orders", "payload": {"order": 1}}}))),
        ("email" = (summary = "A message to the tenant's own address", value = json!({"email": {"subject": "Order 1", "text": "It has arrived."}}))),
        ("several" = (summary = "Several sends", value = json!([{"method": "GET", "url": "https://api.example.com/a"}, {"method": "GET", "url": "https://api.example.com/b", "params": {"page": 2}}])))
    )),
    responses(
        (status = 202, description = "Accepted and on disk", body = inline(openapi::SubmissionAnswer),
            headers(
                ("idempotency-replayed" = String, description = "`true`: an earlier call's sends"),
                ("preference-applied" = String, description = "`return=minimal`: as it was preferred"),
            )),
        (status = 400, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not of the right shape"),
        (status = 401, body = ProblemView<'static>, content_type = "application/problem+json", description = "No valid token"),
        (status = 403, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not allowed, or suspended"),
        (status = 413, body = ProblemView<'static>, content_type = "application/problem+json", description = "Too large"),
        (status = 415, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not JSON"),
        (status = 422, body = ProblemView<'static>, content_type = "application/problem+json", description = "The key came with another body"),
        (status = 429, body = ProblemView<'static>, content_type = "application/problem+json", description = "The tenant's queue is full"),
        (status = 503, body = ProblemView<'static>, content_type = "application/problem+json", description = "The node is full, draining, or its store cannot write"),
    ),
)]
pub(super) async fn submit(State(api): State<Arc<Shared>>, request: Request) -> Response {
    api.accept(None, "/v1/sends".to_owned(), request).await
}

impl Shared {
    /// Accepts a call's sends, held or not; `path` is what its idempotency key is scoped to.
    pub(super) async fn accept(&self, hold: Option<ExecutionId>, path: String, request: Request) -> Response {
        let mut sends = 1;
        match self.try_accept(hold, path, request, &mut sends).await {
            Ok(response) => response,
            Err(problem) => {
                refused(&problem, sends);
                problem.into_response()
            }
        }
    }

    async fn try_accept(
        &self,
        hold: Option<ExecutionId>,
        path: String,
        request: Request,
        count: &mut usize,
    ) -> Result<Response, Problem> {
        let config = self.world.config();
        let caller = Caller::admit(request.headers(), &config, Need::Submit)?;
        let tenant = caller.tenant(request.headers())?;
        query::none(request.uri().query())?;
        let key = idempotency_key(request.headers())?;
        let (trace, minimal) = (trace_of(request.headers()), prefers_minimal(request.headers()));
        let received = self.body(&caller, request).await?;
        let size = received.bytes.len();
        let idempotency = self.idempotency(key, &tenant, path, &received.bytes).await;
        let (bounds, held_by) = (bounds(&config, &tenant), hold.clone());
        let (redact_key, of) = (self.redact_key.clone(), tenant.clone());
        let begins = received.bytes.slice(..size.min(limits::INLINE_BYTES));
        let read = move |bytes: &Bytes| parse::call(bytes, &bounds, redact_key.of(&of), held_by.as_ref());
        let (call, mut room) = match self.read(received, &tenant, read).await {
            Ok(read) => read,
            // Limits may have been lowered since the first call, and a replay comes before any refusal.
            Err(problem) => {
                let room = self.budget.room(&caller.holder(), Purpose::Sending, 0).ok_or_else(answers::full)?;
                let Some(submitted) = self.replayed(idempotency).await? else { return Err(problem) };
                let one = begins.trim_ascii_start().first() == Some(&b'{');
                return self.accepted(tenant, &caller, Telling { one, minimal }, submitted, Receipt(room)).await;
            }
        };
        drop(begins);
        let (one, mut sends) = match call {
            Call::One(send) => (true, vec![*send]),
            Call::Many(sends) => (false, sends),
        };
        sends.iter_mut().for_each(|send| send.context.trace = trace);
        *count = sends.len();
        // The answer is about as large as the call was. The sends may take more; what records show of them is beside
        // them, twice, and shares their bodies.
        let taken: usize = sends.iter().map(|send| send.footprint() as usize).sum();
        let bodies: usize = sends.iter().filter_map(|send| send.body()).map(Bytes::len).sum();
        if !room.cover_beyond(size + 3 * taken - 2 * bodies + sends.len() * RECORD_JSON_BYTES) {
            return Err(answers::full());
        }
        let receipt = Receipt(room);
        let submit = Submit { tenant: tenant.clone(), sends, hold, idempotency, resend_of: None };
        let (submitted, receipt) = self.submit_in_full(submit, receipt).await?;
        let submitted = submitted.map_err(|refusal| Problem::told(refusal, caller.operate))?;
        self.accepted(tenant, &caller, Telling { one, minimal }, submitted, receipt).await
    }

    /// To the end, in the room that it takes, also where the caller hangs up.
    pub(super) async fn submit_in_full(
        &self,
        submit: Submit,
        receipt: Receipt,
    ) -> Result<(Result<Submitted, Refusal>, Receipt), Problem> {
        let intake = self.intake.clone();
        in_full(async move {
            let submitted = intake.submit(submit).await;
            (submitted, receipt)
        })
        .await
    }

    /// What a key is kept with: the digest of the body it came with.
    pub(super) async fn idempotency(
        &self,
        key: Option<String>,
        tenant: &TenantId,
        path: String,
        body: &Bytes,
    ) -> Option<IdempotencyKey> {
        let (key, body) = (key?, body.clone());
        let fingerprint = self.intake.apart().on(body.len(), tenant, move || sha256(&body)).await;
        Some(IdempotencyKey { tenant: tenant.clone(), path, key, fingerprint })
    }

    pub(super) async fn replayed(&self, key: Option<IdempotencyKey>) -> Result<Option<Submitted>, Problem> {
        let Some(key) = key else { return Ok(None) };
        Ok(match self.store.replay(key, clock::wall()).await? {
            Some(Accepted::Replayed(ids)) => Some(Submitted::Replayed(ids)),
            Some(Accepted::Mismatch) => {
                let detail = crate::intake::Refusal::IdempotencyMismatch.to_string();
                return Err(Problem::new(ProblemCode::IdempotencyMismatch, detail));
            }
            _ => None,
        })
    }

    /// 202: the sends of this call, or of the earlier one with the same key, as they are now.
    pub(super) async fn accepted(
        &self,
        tenant: TenantId,
        caller: &Caller,
        telling: Telling,
        submitted: Submitted,
        receipt: Receipt,
    ) -> Result<Response, Problem> {
        let Telling { one, minimal } = telling;
        let sight = Sight { operate: caller.operate, bodies: one };
        let (mut sends, replayed): (Vec<(SendId, Option<Record>)>, bool) = match submitted {
            Submitted::Accepted(records) => {
                (records.into_iter().map(|record| (record.id, Some(record))).collect(), false)
            }
            Submitted::Replayed(ids) => (self.records(&tenant, ids, one && !minimal).await?, true),
        };
        if minimal {
            let each = sends.iter().map(|(id, record)| AcceptedView::named(*id, record.as_ref().map(|one| one.state)));
            let mut response = written(one, each.collect(), receipt, (1 + sends.len()) * GONE_JSON_BYTES);
            if let (true, [(id, Some(_))]) = (one, sends.as_slice()) {
                locate(&mut response, *id);
            }
            response.headers_mut().insert(PREFERENCE_APPLIED, HeaderValue::from_static("return=minimal"));
            return Ok(marked(response, replayed));
        }
        sends.iter_mut().filter_map(|(_, record)| record.as_mut()).for_each(|record| self.intake.name_batch(record));
        if !one {
            // What is not shown is not looked into.
            let records = sends.iter_mut().filter_map(|(_, record)| record.as_mut());
            records.filter_map(|record| record.request.body.as_mut()).for_each(|body| body.bytes = None);
        }
        let records = sends.iter().filter_map(|(_, record)| record.as_ref());
        let bytes = records.map(|record| likely_bytes(record, one)).sum::<usize>() + sends.len() * GONE_JSON_BYTES;
        let redactor = self.intake.redactor();
        let write = move || {
            let visible = |(id, record): (SendId, Option<Record>)| (id, record.map(|record| redactor.visible(record)));
            let sends: Vec<_> = sends.into_iter().map(visible).collect();
            let each = sends.iter().map(|(id, record)| AcceptedView::new(*id, record.as_ref(), sight)).collect();
            let mut response = written(one, each, receipt, if one { 2 * bytes } else { bytes });
            if let (true, [(id, Some(_))]) = (one, sends.as_slice()) {
                locate(&mut response, *id);
            }
            response
        };
        Ok(marked(self.intake.apart().on(bytes, &tenant, write).await, replayed))
    }

    /// In the order of `ids`; of one that retention has dropped the id is left.
    async fn records(
        &self,
        tenant: &TenantId,
        ids: Vec<SendId>,
        bodies: bool,
    ) -> Result<Vec<(SendId, Option<Record>)>, Problem> {
        let reads = ids.iter().map(|id| self.store.record(Reach::One(tenant.clone()), *id, bodies));
        let reads: Vec<_> = reads.collect();
        let records: Vec<Option<Record>> = stream::iter(reads).buffered(READS_AT_ONCE).try_collect().await?;
        Ok(ids.into_iter().zip(records).collect())
    }

    /// A record with its bodies, read in this turn.
    pub(super) async fn read_record(
        &self,
        turn: Turn,
        tenants: Tenants,
        id: SendId,
    ) -> Result<(Turn, Record), Problem> {
        let store = self.store.clone();
        let (turn, record) = turn.reading(async move { store.record(tenants.reach(), id, true).await }).await?;
        Ok((turn, record.ok_or_else(|| Problem::not_found("send"))?))
    }

    /// The send that a path names, as this caller may see it.
    pub(super) async fn record(&self, tenants: &Tenants, id: SendId, bodies: bool) -> Result<Record, Problem> {
        self.store.record(tenants.clone().reach(), id, bodies).await?.ok_or_else(|| Problem::not_found("send"))
    }
}

/// An object for an object, an array's for an array.
fn written(one: bool, mut sends: Vec<AcceptedView<'_>>, receipt: Receipt, size: usize) -> Response {
    match sends.pop() {
        Some(send) if one => receipt.json(StatusCode::ACCEPTED, &send, size),
        last => {
            sends.extend(last);
            receipt.json(StatusCode::ACCEPTED, &SendsView { sends }, size)
        }
    }
}

fn locate(response: &mut Response, id: SendId) {
    if let Ok(location) = HeaderValue::try_from(format!("/v1/sends/{id}")) {
        response.headers_mut().insert(LOCATION, location);
    }
}

fn marked(mut response: Response, replayed: bool) -> Response {
    if replayed {
        response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    }
    response
}

pub(super) fn bounds(config: &Config, tenant: &TenantId) -> Bounds {
    let has_address = config.tenant(tenant).is_some_and(|tenant| tenant.mail.is_some());
    let mail = match &config.destinations.email {
        None => Mail::NotSetUp,
        Some(_) if !has_address => Mail::NoAddress,
        Some(email) => Mail::Relay(email.relay.clone()),
    };
    Bounds {
        request_body: config.limits.request_body,
        sends_per_request: config.limits.sends_per_request,
        mail,
        s3: config.destinations.s3.clone(),
        sql: match &config.destinations.sql {
            None => Sql::NotSetUp,
            Some(set_up) => match set_up.schema_of(tenant) {
                Ok(_) => Sql::Server(set_up.server.clone()),
                Err(why) => Sql::NoSchema(why),
            },
        },
    }
}

/// The call's place in a trace. One that is unreadable counts as absent, as the standard has it.
pub(super) fn trace_of(headers: &HeaderMap) -> Option<TraceParent> {
    let mut given = headers.get_all(TRACEPARENT).iter();
    let one = given.next().filter(|_| given.next().is_none());
    one.and_then(|value| value.to_str().ok()).and_then(TraceParent::parse)
}

/// RFC 7240: what is preferred of a name first counts, and what is not known is not looked at.
pub(super) fn prefers_minimal(headers: &HeaderMap) -> bool {
    let all = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    let mut of_return = all.filter_map(|one| {
        let (name, value) = one.split(';').next()?.split_once('=')?;
        name.trim().eq_ignore_ascii_case("return").then(|| value.trim().trim_matches('"'))
    });
    of_return.next() == Some("minimal")
}

pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all(&IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().map(str::trim).unwrap_or_default();
    if values.next().is_some() || text.is_empty() || text.len() > limits::IDEMPOTENCY_KEY_CHARS_MAX {
        let most = limits::IDEMPOTENCY_KEY_CHARS_MAX;
        return Err(Problem::shape(format!(
            "Idempotency-Key must be one value of 1 to {most} visible ASCII characters"
        )));
    }
    Ok(Some(text.to_owned()))
}

/// An id that is none reads as a send that is not there.
pub(super) fn send_id(path: Result<Path<String>, PathRejection>) -> Result<SendId, Problem> {
    path.ok().and_then(|Path(text)| text.parse().ok()).ok_or_else(|| Problem::not_found("send"))
}

/// The sends of a tenant, newest first.
#[utoipa::path(
    get, path = "/v1/sends", operation_id = "list_sends", tag = "sends",
    params(openapi::Tenant, openapi::Filters, openapi::Text, openapi::Paging),
    responses(
        (status = 200, description = "One page; bodies are left out", body = PageView<'static>),
        (status = 400, body = ProblemView<'static>, content_type = "application/problem+json", description = "A parameter is not right"),
        (status = 401, body = ProblemView<'static>, content_type = "application/problem+json", description = "No valid token"),
        (status = 403, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not allowed"),
        (status = 503, body = ProblemView<'static>, content_type = "application/problem+json", description = "The store cannot read, or too many answers are unread"),
    ),
)]
pub(super) async fn list(State(api): State<Arc<Shared>>, request: Request) -> Result<Response, Problem> {
    let caller = Caller::admit(request.headers(), &api.world.config(), Need::Read)?;
    let tenants = caller.tenants(request.headers())?;
    let (filter, page, text) = query::list(request.uri().query(), tenants, caller.operate)?;
    let cursor = page.cursor.map(|next| api.places.list_cursor(&next)).transpose()?;
    let search = |text: String| {
        Search::new(api.store.clone(), api.intake.clone(), caller.holder().in_line(), &text)
            .map_err(|error| Problem::shape(format!("this text cannot be looked for: {error}")))
    };
    let search = text.map(search).transpose()?;
    // One send after another, with its bodies.
    let (holder, likely) = (caller.holder(), page.limit * LISTED_JSON_BYTES);
    let turn = match &search {
        None => api.turns.turn(&holder, likely).await?,
        Some(_) => api.turns.turn_to_search(&holder, likely + SHOWN_JSON_BYTES).await?,
    };
    let store = api.store.clone();
    let listing = async move {
        Ok(match search {
            None => (store.list(filter, cursor, page.limit).await?, None),
            Some(search) => {
                let (page, searched) = Box::pin(search.page(filter, cursor, page.limit)).await?;
                (page, Some(searched))
            }
        })
    };
    let (turn, (mut page, searched)) = turn.reading(listing).await?;
    page.sends.iter_mut().for_each(|record| api.intake.name_batch(record));
    let next = page.next.map(|cursor| api.places.list(&cursor)).transpose()?;
    let sight = Sight { operate: caller.operate, bodies: false };
    let bytes = likely_bytes_of(&page.sends);
    let redactor = api.intake.redactor();
    let write = move || {
        let sends: Vec<_> = page.sends.into_iter().map(|send| redactor.visible(send)).collect();
        let sends = sends.iter().map(|record| RecordView::new(record, sight)).collect();
        let searched = searched.map(|Searched { sends, bytes, back_to }| SearchedView {
            sends,
            bytes,
            back_to: back_to.map(Shown),
        });
        turn.json(StatusCode::OK, &PageView { sends, next: next.as_deref(), searched })
    };
    api.intake.apart().on(bytes, &caller.holder().in_line(), write).await
}

/// One send's record, with its bodies.
#[utoipa::path(
    get, path = "/v1/sends/{id}", operation_id = "read_send", tag = "sends",
    params(
        openapi::Tenant,
        ("id" = String, Path, description = "The send's id"),
        ("wait" = Option<u32>, Query, description = "Answer as soon as the send is done, at the latest after so many seconds", minimum = 0, maximum = 30),
    ),
    responses(
        (status = 200, description = "The record", body = RecordView<'static>),
        (status = 400, body = ProblemView<'static>, content_type = "application/problem+json", description = "A parameter is not right"),
        (status = 401, body = ProblemView<'static>, content_type = "application/problem+json", description = "No valid token"),
        (status = 403, body = ProblemView<'static>, content_type = "application/problem+json", description = "Not allowed"),
        (status = 404, body = ProblemView<'static>, content_type = "application/problem+json", description = "No such send"),
        (status = 503, body = ProblemView<'static>, content_type = "application/problem+json", description = "The store cannot read, or too many answers are unread"),
    ),
)]
pub(super) async fn one(
    State(api): State<Arc<Shared>>,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let caller = Caller::admit(request.headers(), &api.world.config(), Need::Read)?;
    let tenants = caller.tenants(request.headers())?;
    let wait = query::wait(request.uri().query())?;
    let id = send_id(path)?;
    // Whoever waits keeps an id and a waker, not its call.
    drop(request);
    if let Some(seconds) = wait.filter(|seconds| *seconds > 0) {
        api.done(&tenants, id, Duration::from_secs(seconds)).await?;
    }
    let turn = api.turns.turn(&caller.holder(), SHOWN_JSON_BYTES).await?;
    let (turn, mut record) = api.read_record(turn, tenants, id).await?;
    api.intake.name_batch(&mut record);
    let (bytes, sight) = (likely_bytes(&record, true), Sight { operate: caller.operate, bodies: true });
    let redactor = api.intake.redactor();
    let write = move || turn.json(StatusCode::OK, &RecordView::new(&redactor.visible(record), sight));
    api.intake.apart().on(bytes, &caller.holder().in_line(), write).await
}

impl Shared {
    /// Ready when the send is done, or after `wait`, or when the process is about to stop. Nothing of its record is
    /// held meanwhile.
    async fn done(&self, tenants: &Tenants, id: SendId, wait: Duration) -> Result<(), Problem> {
        let ticket = self.events.wait_for(id);
        let mut finished = pin!(ticket.finished());
        // Before the look, so that an end in between is not missed.
        finished.as_mut().enable();
        if self.record(tenants, id, false).await?.state == SendState::Done {
            return Ok(());
        }
        let mut closing = self.closing.clone();
        tokio::select! {
            () = finished => {}
            () = tokio::time::sleep(wait) => {}
            _ = closing.wait_for(|closing| *closing) => {}
        }
        Ok(())
    }
}
