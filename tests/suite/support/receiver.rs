//! A receiver that follows a script: it counts what reaches it, byte for byte, and answers, lies, resets, drips or
//! keeps silent as told. Mock crates cannot do the last four.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

/// One step of a connection's script.
#[derive(Clone)]
pub enum Step {
    /// Reads one whole request: its head, and as many bytes as `Content-Length` says.
    Read,
    /// Reads a request's head and no more.
    ReadHead,
    /// Writes these bytes.
    Write(Bytes),
    /// Writes these bytes one by one, each after this long.
    Drip(Bytes, Duration),
    /// Writes these bytes again and again until the other side is gone.
    Endless(Bytes),
    /// Starts the script's next step after this long.
    Pause(Duration),
    /// Does nothing until the other side is gone.
    Hold,
    /// Closes with a reset instead of an orderly end.
    Reset,
}

pub fn write(bytes: impl Into<Bytes>) -> Step {
    Step::Write(bytes.into())
}

/// `200 OK` with a body of two bytes.
pub fn ok() -> Step {
    write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
}

/// What a receiver saw.
#[derive(Default)]
struct Seen {
    /// What each connection sent, in the order of their acceptance.
    connections: Vec<(SocketAddr, Vec<u8>)>,
    /// How each TLS handshake that succeeded went.
    handshakes: Vec<rustls::HandshakeKind>,
}

/// A listener with a script per connection. Stops when dropped.
pub struct Receiver {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    ended: watch::Receiver<usize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Receiver {
    /// Every connection goes through the same steps.
    pub async fn start(steps: impl Into<Vec<Step>>) -> Self {
        let steps = steps.into();
        Self::at([127, 0, 0, 1].into(), None, move |_| steps.clone()).await
    }

    /// As [`Self::start`], over TLS.
    pub async fn start_tls(acceptor: TlsAcceptor, steps: impl Into<Vec<Step>>) -> Self {
        let steps = steps.into();
        Self::at([127, 0, 0, 1].into(), Some(acceptor), move |_| steps.clone()).await
    }

    /// `script` is given the number of the connection, from 0.
    pub async fn at(
        ip: IpAddr,
        acceptor: Option<TlsAcceptor>,
        script: impl Fn(usize) -> Vec<Step> + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.expect("a loopback port");
        Self::on(listener, acceptor, script)
    }

    pub fn on(
        listener: TcpListener,
        acceptor: Option<TlsAcceptor>,
        script: impl Fn(usize) -> Vec<Step> + Send + 'static,
    ) -> Self {
        let address = listener.local_addr().expect("an address");
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (end, ended) = watch::channel(0);
        let log = seen.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            for number in 0.. {
                let Ok((stream, peer)) = listener.accept().await else { return };
                log.lock().unwrap().connections.push((peer, Vec::new()));
                let (log, steps, acceptor, end) = (log.clone(), script(number), acceptor.clone(), end.clone());
                connections.spawn(async move {
                    serve(stream, acceptor, steps, number, &log).await;
                    end.send_modify(|ended| *ended += 1);
                });
            }
        });
        Self { address, seen, ended, task }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The URL of a path, by address.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Where each connection came from.
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.seen.lock().unwrap().connections.iter().map(|(peer, _)| *peer).collect()
    }

    /// What each connection sent.
    pub fn received(&self) -> Vec<Vec<u8>> {
        self.seen.lock().unwrap().connections.iter().map(|(_, bytes)| bytes.clone()).collect()
    }

    /// How each TLS handshake that succeeded went.
    pub fn handshakes(&self) -> Vec<rustls::HandshakeKind> {
        self.seen.lock().unwrap().handshakes.clone()
    }

    /// Requests begun on any connection: a head that came to its end, or bytes of one that did not.
    pub fn requests(&self) -> usize {
        self.received().iter().map(|bytes| count_requests(bytes)).sum()
    }

    /// Waits until this many connections have been through their script.
    pub async fn ended(&self, connections: usize) {
        let mut seen = self.ended.clone();
        tokio::select! {
            ended = seen.wait_for(|ended| *ended >= connections) => drop(ended.expect("the receiver runs")),
            () = tokio::time::sleep(super::ground::LONG) => panic!("{} of {connections} connections ended", *self.ended.borrow()),
        }
    }
}

/// Requests in a stream of bytes, by head and `Content-Length`.
fn count_requests(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while !bytes.is_empty() {
        count += 1;
        match whole_request(bytes) {
            Some(length) => bytes = &bytes[length.min(bytes.len())..],
            None => break,
        }
    }
    count
}

fn head_length(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// The length of the request that the bytes begin with, once its head is there.
fn whole_request(bytes: &[u8]) -> Option<usize> {
    let head = head_length(bytes)?;
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let body = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
    Some(head + body.unwrap_or(0))
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

async fn serve(stream: TcpStream, acceptor: Option<TlsAcceptor>, steps: Vec<Step>, number: usize, log: &Mutex<Seen>) {
    stream.set_nodelay(true).expect("an option");
    if steps.iter().any(|step| matches!(step, Step::Reset)) {
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("an option");
    }
    let mut stream: Box<dyn Stream> = match acceptor {
        None => Box::new(stream),
        Some(acceptor) => match acceptor.accept(stream).await {
            Ok(stream) => {
                log.lock().unwrap().handshakes.extend(stream.get_ref().1.handshake_kind());
                Box::new(stream)
            }
            Err(_) => return,
        },
    };
    // Where the next request of this connection begins.
    let mut from = 0;
    for step in steps {
        match step {
            Step::Read | Step::ReadHead => loop {
                let wanted = {
                    let seen = log.lock().unwrap();
                    let bytes = &seen.connections[number].1[from..];
                    let wanted = if matches!(step, Step::Read) { whole_request(bytes) } else { head_length(bytes) };
                    wanted.filter(|wanted| *wanted <= bytes.len())
                };
                if let Some(wanted) = wanted {
                    from += wanted;
                    break;
                }
                if !read_some(&mut stream, number, log).await {
                    return;
                }
            },
            Step::Write(bytes) => {
                if stream.write_all(&bytes).await.is_err() || stream.flush().await.is_err() {
                    return;
                }
            }
            Step::Drip(bytes, every) => {
                for byte in bytes {
                    if stream.write_all(&[byte]).await.is_err() || stream.flush().await.is_err() {
                        return;
                    }
                    tokio::time::sleep(every).await;
                }
            }
            Step::Endless(bytes) => while stream.write_all(&bytes).await.is_ok() {},
            Step::Pause(time) => tokio::time::sleep(time).await,
            Step::Hold => while read_some(&mut stream, number, log).await {},
            Step::Reset => return,
        }
    }
    let _ = stream.shutdown().await;
    // What still comes is counted: an orderly end leaves the other direction open.
    while read_some(&mut stream, number, log).await {}
}

/// `false`: the other side is gone.
async fn read_some(stream: &mut Box<dyn Stream>, number: usize, log: &Mutex<Seen>) -> bool {
    let mut buffer = vec![0; 16 * 1024];
    match stream.read(&mut buffer).await {
        Ok(0) | Err(_) => false,
        Ok(length) => {
            log.lock().unwrap().connections[number].1.extend_from_slice(&buffer[..length]);
            true
        }
    }
}
