//! What the promises are made of.

use super::*;

pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + second).expect("in range")
}

pub fn tenant(name: &str) -> TenantId {
    TenantId::new(name)
}

pub fn execution(name: &str) -> ExecutionId {
    ExecutionId::new(name)
}

/// An id as intake makes it: of version 7, by the time of acceptance.
pub fn id_at(created_at: Timestamp) -> SendId {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut tail = [0; 10];
    tail[2..].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    let milliseconds = u64::try_from(created_at.as_millisecond()).expect("after 1970");
    SendId(uuid::Builder::from_unix_timestamp_millis(milliseconds, &tail).into_uuid())
}

/// One send to be, with what differs from the usual.
#[derive(Clone)]
pub struct Draft {
    pub tenant: TenantId,
    pub url: String,
    /// A message, of which the body is the content, in place of a request to `url`.
    pub is_mail: bool,
    pub context: Context,
    pub created_at: Timestamp,
    pub body: Option<Bytes>,
    /// An `authorization` header that records never show.
    pub secret: Option<&'static str>,
    /// Whether records keep the body.
    pub keeps_body: bool,
}

pub fn draft() -> Draft {
    Draft {
        tenant: tenant("acme"),
        url: "https://api.example.com/orders?id=7".to_owned(),
        is_mail: false,
        context: Context::default(),
        created_at: at(0),
        body: Some(Bytes::from_static(b"{\"order\": 7}")),
        secret: None,
        keeps_body: true,
    }
}

impl Draft {
    pub fn of(mut self, name: &str) -> Self {
        self.tenant = tenant(name);
        self
    }
    pub fn in_execution(mut self, name: &str) -> Self {
        self.context.execution = Some(execution(name));
        self
    }
    pub fn in_workflow(mut self, name: &str) -> Self {
        self.context.workflow = Some(Arc::from(name));
        self
    }
    pub fn to(mut self, url: &str) -> Self {
        self.url = url.to_owned();
        self
    }
    pub fn mail(mut self) -> Self {
        let content = br#"{"html":"<p>7</p>","include_collaborators":true,"subject":"Order 7"}"#;
        (self.is_mail, self.body) = (true, Some(Bytes::from_static(content)));
        self
    }
    pub fn created(mut self, created_at: Timestamp) -> Self {
        self.created_at = created_at;
        self
    }

    pub fn send(&self) -> NewSend {
        let request = self.request();
        if self.is_mail { of_mail(request) } else { request }
    }

    fn request(&self) -> NewSend {
        let target = match CheckedUrl::parse(&self.url) {
            Ok(url) => Target::Url(url),
            Err(denial) => Target::Refused { shown: self.url.clone(), denial: denial.into() },
        };
        let line = |name: &'static str, value: &str| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).expect("a header value"))
        };
        let mut headers = vec![line("content-type", "application/json"), line("x-trace", "1"), line("x-trace", "2")];
        let mut shown: ShownHeaders = vec![
            ("content-type".to_owned(), vec!["application/json".to_owned()]),
            ("x-trace".to_owned(), vec!["1".to_owned(), "2".to_owned()]),
        ];
        if let Some(secret) = self.secret {
            headers.push(line("authorization", secret));
            shown.push(("authorization".to_owned(), vec!["[redacted hmac:01234567]".to_owned()]));
        }
        let shown_body = self.body.as_ref().map(|body| ShownBody {
            bytes: self.keeps_body.then(|| body.clone()),
            total: body.len() as u64,
            truncated: false,
            sha256: self.keeps_body.then_some([7; 32]),
        });
        NewSend {
            id: id_at(self.created_at),
            tenant: self.tenant.clone(),
            shown: ShownRequest {
                to: ShownTo::Http { method: Method::Post, url: target.shown().to_owned() },
                headers: shown,
                spelling: ["x-TRACE"].into_iter().collect(),
                dropped_headers: vec!["host".to_owned()],
                body: shown_body,
            },
            spec: Arc::new(SendSpec {
                to: To::Http(HttpRequest {
                    method: Method::Post,
                    target,
                    headers,
                    spelling: ["x-TRACE"].into_iter().collect(),
                    dropped_headers: vec!["host".to_owned()],
                    body: self.body.clone(),
                }),
                context: self.context.clone(),
                expires_in: Some(Duration::from_secs(60)),
            }),
            sealed: self.secret.is_some() || !self.keeps_body && self.body.is_some(),
            resend_of: None,
            created_at: self.created_at,
            expires_in: Duration::from_secs(60),
            course: Course::Claim,
        }
    }
}

/// Where the message of a draft is handed in.
pub fn relay() -> Destination {
    Destination { scheme: Scheme::Smtps, host: Host::Name("relay.example.net".into()), port: 465 }
}

/// The same as a message.
fn of_mail(mut new: NewSend) -> NewSend {
    let content = new.spec.body().cloned().expect("a message has a content");
    let email = Email::stored(content, relay()).expect("a message's content");
    new.spec = Arc::new(SendSpec { to: To::Email(email), ..(*new.spec).clone() });
    new.shown = ShownRequest {
        to: ShownTo::Email { relay: relay() },
        headers: Vec::new(),
        spelling: Default::default(),
        dropped_headers: Vec::new(),
        body: new.shown.body,
    };
    new
}

/// The same request with another body.
pub fn with_body(spec: &SendSpec, body: Option<Bytes>) -> SendSpec {
    let To::Http(request) = &spec.to else { panic!("a request: {spec:?}") };
    SendSpec { to: To::Http(HttpRequest { body, ..request.clone() }), ..spec.clone() }
}

/// One call of these sends, held by `hold`.
pub fn call(sends: Vec<NewSend>, hold: Option<&str>) -> Accept {
    Accept {
        tenant: sends[0].tenant.clone(),
        sends,
        hold: hold.map(execution),
        idempotency: None,
        sends_per_execution: 100,
    }
}

pub async fn accept_new(store: &impl Store, session: &Session, call: Accept) -> Vec<Option<u32>> {
    match store.accept(session, call).await {
        Ok(Accepted::New { indexes, .. }) => indexes,
        other => panic!("not accepted: {other:?}"),
    }
}

/// Accepts one send on its own.
pub async fn accept_one(store: &impl Store, session: &Session, draft: &Draft) -> SendId {
    let send = draft.send();
    let id = send.id;
    accept_new(store, session, call(vec![send], None)).await;
    id
}

/// A new life of the node.
pub async fn joined(store: &impl Store) -> Session {
    store.join(Arc::from(NODE)).await.expect("joined")
}

/// Claims all that waits, of every tenant.
pub async fn claimed(store: &impl Store, session: &Session) -> Vec<SendId> {
    let tenants = store.waiting().into_iter();
    let wants = tenants.map(|(tenant, _)| Want { tenant, room: 1_000_000, full: Vec::new() }).collect();
    let claimed = store.claim(session, wants, 1_000_000).await.expect("claimed");
    assert!(claimed.ended.is_empty() && !claimed.more);
    claimed.sends.into_iter().map(|send| send.id).collect()
}

/// How an execution's end is answered, but for its sends.
pub async fn end_execution(
    store: &impl Store,
    session: &Session,
    tenant: TenantId,
    execution: ExecutionId,
    ending: Ending,
    at: Timestamp,
) -> Result<ExecutionEnd, StoreError> {
    store.end_execution(session, tenant, execution, ending, at).await.map(|answer| answer.end)
}

/// Begins one send.
pub async fn begin_one(store: &impl Store, session: &Session, begin: Begin) -> Result<Started, StoreError> {
    store.begin(session, vec![begin]).await?.pop().expect("an answer for each")
}

pub fn begin_of(id: SendId, draft: &Draft, at: Timestamp) -> Begin {
    Begin { id, tenant: draft.tenant.clone(), spec: None, at }
}

pub fn answered(status: u16) -> ShownResponse {
    ShownResponse {
        status,
        version: "HTTP/1.1".to_owned(),
        headers: vec![("content-type".to_owned(), vec!["text/plain".to_owned()])],
        body: ShownBody {
            bytes: Some(Bytes::from_static(b"thank you")),
            total: 9,
            truncated: false,
            sha256: Some([9; 32]),
        },
        declared: Some(9),
    }
}

pub fn left_from(bound: &str, public: &str) -> Connection {
    let ip: IpAddr = bound.parse().expect("an address");
    Connection {
        source: Some(SocketAddr::new(ip, 40001)),
        public: Some(public.parse().expect("an address")),
        remote: Some("93.184.216.34:443".parse().expect("an address")),
        resolved: vec![
            ("93.184.216.34".parse().expect("an address"), Verdict::Allowed),
            ("64:ff9b::5db8:d822".parse().expect("an address"), Verdict::Skipped),
            ("10.0.0.1".parse().expect("an address"), Verdict::Denied(Code::PolicyAddress)),
        ],
        reused: true,
        tls: Some(TlsFacts {
            version: "TLSv1.3".to_owned(),
            cipher: "TLS13_AES_256_GCM_SHA384".to_owned(),
            alpn: Some("http/1.1".to_owned()),
            certificate: Some(Certificate {
                subject: "CN=api.example.com".to_owned(),
                issuer: "CN=an authority".to_owned(),
                names: vec!["api.example.com".to_owned(), "93.184.216.34".to_owned()],
                not_before: Some(at(10)),
                not_after: at(1_000_000),
                key: "ECDSA P-256".to_owned(),
                sha256: [3; 32],
            }),
        }),
    }
}

/// A delivery that got an answer.
pub fn finished(id: SendId, status: u16, started_at: Timestamp) -> Finished {
    Finished {
        id,
        ended: Ended::answered(status),
        sent_headers: Some(vec![("host".to_owned(), vec!["api.example.com".to_owned()])]),
        response: Some(answered(status)),
        connection: Some(left_from("10.0.0.10", "198.51.100.10")),
        would_block: Some(Code::PolicyDenied),
        timings: Timings {
            held: Some(Duration::ZERO),
            queued: Some(Duration::from_micros(800)),
            dns: Some(Duration::from_micros(1200)),
            connect: Some(Duration::from_millis(3)),
            tls: Some(Duration::from_millis(6)),
            write: Some(Duration::from_micros(100)),
            wait: Some(Duration::from_micros(20500)),
            read: Some(Duration::from_micros(200)),
            total: Some(Duration::from_micros(31100)),
        },
        released_at: Some(started_at),
        started_at: Some(started_at),
        finished_at: started_at + SignedDuration::from_millis(31),
        batch: None,
    }
}

/// A delivery that got none.
pub fn failed(id: SendId, code: Code, started_at: Timestamp) -> Finished {
    Finished {
        ended: Ended::because(Failure::recorded(code, Some(Phase::Connect), Processed::No, "tried, and was told no")),
        response: None,
        sent_headers: None,
        would_block: None,
        connection: None,
        ..finished(id, 200, started_at)
    }
}
