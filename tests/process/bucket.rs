//! A bucket's store of the tests' own: it keeps what is put there, and answers, refuses or loses its answer as told.

use std::collections::{BTreeMap, VecDeque};
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// What becomes of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Kept, and said so.
    Kept,
    /// Kept, and the connection closed without a word.
    Lost,
    /// Not kept: this status, and this code in its XML.
    Refused(u16, &'static str),
    /// Not kept, and no answer while the connection stands.
    Silent,
    /// Not kept: this status, and this page, as what stands before a store may say.
    Page(u16, &'static str),
    /// Kept, and this status, and this code in its XML.
    KeptBut(u16, &'static str),
}

/// One request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    pub path: String,
    pub body: Bytes,
    pub headers: BTreeMap<String, String>,
}

#[derive(Default)]
struct Inside {
    script: VecDeque<Answer>,
    always: Option<Answer>,
    puts: Vec<Put>,
    peers: Vec<IpAddr>,
    objects: BTreeMap<String, Bytes>,
    /// An object that was there was put once more, and kept as it was.
    met: usize,
}

#[derive(Clone)]
pub struct Bucket {
    pub address: SocketAddr,
    inside: Arc<Mutex<Inside>>,
}

impl Bucket {
    /// Each request is answered as the script says, then as any store would.
    pub async fn start(script: impl IntoIterator<Item = Answer>) -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST.into(), script).await
    }

    pub async fn start_at(ip: IpAddr, script: impl IntoIterator<Item = Answer>) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let inside = Arc::new(Mutex::new(Inside { script: script.into_iter().collect(), ..Inside::default() }));
        let bucket = Self { address, inside };
        let serving = bucket.clone();
        tokio::spawn(async move {
            while let Ok((socket, peer)) = listener.accept().await {
                let bucket = serving.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| bucket.clone().answer(request, peer));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), service)
                        .await;
                });
            }
        });
        bucket
    }

    /// From now on every request that the script does not name.
    pub fn always(&self, answer: Option<Answer>) {
        self.lock().always = answer;
    }

    /// The next request that the script does not name.
    pub fn then(&self, answer: Answer) {
        self.lock().script.push_back(answer);
    }

    /// This script, in the place of what is left of the one before.
    pub fn only(&self, answers: Vec<Answer>) {
        self.lock().script = answers.into();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inside> {
        self.inside.lock().expect("what was seen")
    }

    async fn answer(
        self,
        request: Request<hyper::body::Incoming>,
        peer: SocketAddr,
    ) -> Result<Response<Full<Bytes>>, std::io::Error> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
        let text = |value: &http::HeaderValue| value.to_str().expect("text").to_owned();
        let headers = head.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect();
        let put = Put { path: head.uri.path().to_owned(), body, headers };
        let answer = {
            let mut inside = self.lock();
            inside.puts.push(put.clone());
            inside.peers.push(peer.ip());
            inside.script.pop_front().or(inside.always).unwrap_or(Answer::Kept)
        };
        let xml = |status: u16, code: &str| {
            let body =
                format!("<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code><Message>so it is</Message></Error>");
            Response::builder().status(status).body(Full::new(Bytes::from(body))).expect("an answer")
        };
        match answer {
            Answer::Refused(status, code) => return Ok(xml(status, code)),
            Answer::Silent => std::future::pending().await,
            Answer::Page(status, page) => {
                let body = Full::new(Bytes::from_static(page.as_bytes()));
                return Ok(Response::builder()
                    .status(status)
                    .header("etag", "\"page\"")
                    .body(body)
                    .expect("an answer"));
            }
            Answer::Kept | Answer::Lost | Answer::KeptBut(..) => {}
        }
        let is_new = {
            let mut inside = self.lock();
            let is_there = inside.objects.contains_key(&put.path);
            if is_there {
                inside.met += 1;
            } else {
                inside.objects.insert(put.path.clone(), put.body.clone());
            }
            !is_there
        };
        match (answer, is_new) {
            (Answer::KeptBut(status, code), _) => Ok(xml(status, code)),
            (Answer::Lost, _) => Err(std::io::Error::other("its answer is lost")),
            (_, false) => Ok(xml(412, "PreconditionFailed")),
            (_, true) => {
                let kept = Response::builder().header("etag", "\"kept\"").body(Full::new(Bytes::new()));
                Ok(kept.expect("an answer"))
            }
        }
    }

    pub fn puts(&self) -> Vec<Put> {
        self.lock().puts.clone()
    }

    pub fn peers(&self) -> Vec<IpAddr> {
        self.lock().peers.clone()
    }

    /// How often one that was there was put again.
    pub fn met(&self) -> usize {
        self.lock().met
    }

    /// The lines of every object, by its path.
    pub fn objects(&self) -> BTreeMap<String, Vec<String>> {
        let lines = |bytes: &Bytes| {
            let mut text = String::new();
            flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text).expect("gzip");
            text.lines().map(str::to_owned).collect()
        };
        self.lock().objects.iter().map(|(path, bytes)| (path.clone(), lines(bytes))).collect()
    }
}
