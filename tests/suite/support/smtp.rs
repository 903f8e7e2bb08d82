//! A mail relay that speaks SMTP over real TLS and counts what it is handed; at any of its steps it answers something
//! else, floods, keeps silent or cuts the connection, as told.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

use super::tls::{Authority, Leaf};

/// Where a dialogue stands: what is answered next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Greeting,
    Ehlo,
    StartTls,
    /// The EHLO after STARTTLS, or the only one.
    EhloInTls,
    Auth,
    Mail,
    Rcpt,
    Data,
    /// In place of reading a message to its end.
    Content,
    Message,
}

/// What the relay does instead of what it should.
#[derive(Clone, Debug)]
pub enum Twist {
    /// These bytes in place of its reply; the dialogue goes on.
    Says(&'static str),
    /// These bytes again and again, until the other side is gone.
    Endless(&'static str),
    /// Nothing, until the other side is gone.
    Silent,
    Cut,
}

/// What it has seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub peers: Vec<IpAddr>,
    /// Every command of every connection, with whether it came over TLS.
    pub commands: Vec<(bool, String)>,
    /// What stood between DATA and its end, as it came.
    pub messages: Vec<String>,
}

pub struct Relay {
    pub address: SocketAddr,
    pub authority: Authority,
    seen: Arc<Mutex<Seen>>,
    steps: watch::Receiver<usize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Rules {
    tls: TlsAcceptor,
    implicit: bool,
    twists: Vec<(At, Twist)>,
    extensions: &'static [&'static str],
    seen: Arc<Mutex<Seen>>,
    steps: Arc<watch::Sender<usize>>,
}

pub const EXTENSIONS: &[&str] = &["SIZE 10000000", "AUTH PLAIN LOGIN"];

impl Relay {
    /// TLS from the first byte.
    pub async fn tls(twists: Vec<(At, Twist)>) -> Self {
        Self::start(true, EXTENSIONS, twists).await
    }

    /// STARTTLS.
    pub async fn start_tls(twists: Vec<(At, Twist)>) -> Self {
        Self::start(false, EXTENSIONS, twists).await
    }

    pub async fn start(implicit: bool, extensions: &'static [&'static str], twists: Vec<(At, Twist)>) -> Self {
        let authority = Authority::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (steps, seen_steps) = watch::channel(0);
        let seen = Arc::<Mutex<Seen>>::default();
        let tls = authority.server(&["127.0.0.1"], Leaf::Good, &[]);
        let (of_rules, steps) = (seen.clone(), Arc::new(steps));
        let rules = Rules { tls, implicit, twists, extensions, seen: of_rules, steps };
        let task = tokio::spawn(async move {
            while let Ok((socket, peer)) = listener.accept().await {
                rules.seen.lock().unwrap().peers.push(peer.ip());
                tokio::spawn(rules.clone().connection(socket));
            }
        });
        Self { address, authority, seen, steps: seen_steps, task }
    }

    pub fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}", self.address)
    }

    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    /// Ready once this many steps were come to, over all connections.
    pub async fn came_to(&self, steps: usize) {
        self.steps.clone().wait_for(|count| *count >= steps).await.expect("the relay stands");
    }
}

/// The dialogue is over.
struct Over;

impl From<std::io::Error> for Over {
    fn from(_: std::io::Error) -> Self {
        Self
    }
}

impl Rules {
    async fn connection(self, socket: TcpStream) {
        let tls = self.tls.clone();
        if self.implicit {
            if let Ok(stream) = tls.accept(socket).await {
                _ = self.dialogue(Lines::new(stream), true).await;
            }
            return;
        }
        let mut lines = Lines::new(socket);
        if self.until_tls(&mut lines).await.is_err() {
            return;
        }
        if let Ok(stream) = tls.accept(lines.io).await {
            _ = self.dialogue(Lines::new(stream), false).await;
        }
    }

    async fn until_tls(&self, lines: &mut Lines<TcpStream>) -> Result<(), Over> {
        self.answer(lines, At::Greeting, "220 relay.example.net ESMTP\r\n").await?;
        self.command(lines, false).await?;
        self.answer(lines, At::Ehlo, "250-relay.example.net\r\n250-SIZE 1000\r\n250 STARTTLS\r\n").await?;
        self.command(lines, false).await?;
        self.answer(lines, At::StartTls, "220 go ahead\r\n").await
    }

    async fn dialogue<S: AsyncRead + AsyncWrite + Unpin>(&self, mut lines: Lines<S>, greets: bool) -> Result<(), Over> {
        let lines = &mut lines;
        if greets {
            self.answer(lines, At::Greeting, "220 relay.example.net ESMTP\r\n").await?;
        }
        loop {
            let command = self.command(lines, true).await?;
            let word = command.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
            match word.as_str() {
                "EHLO" => {
                    let more: String = self.extensions.iter().map(|one| format!("250-{one}\r\n")).collect();
                    let says = format!("250-relay.example.net\r\n{more}250 HELP\r\n");
                    self.answer(lines, At::EhloInTls, &says).await?;
                }
                "AUTH" if command == "AUTH LOGIN" => {
                    lines.io.write_all(b"334 VXNlcm5hbWU6\r\n").await?;
                    self.command(lines, true).await?;
                    lines.io.write_all(b"334 UGFzc3dvcmQ6\r\n").await?;
                    self.command(lines, true).await?;
                    self.answer(lines, At::Auth, "235 welcome\r\n").await?;
                }
                "AUTH" => self.answer(lines, At::Auth, "235 welcome\r\n").await?,
                "MAIL" => self.answer(lines, At::Mail, "250 2.1.0 sender\r\n").await?,
                "RCPT" => self.answer(lines, At::Rcpt, "250 2.1.5 recipient\r\n").await?,
                "DATA" => {
                    self.answer(lines, At::Data, "354 end with a dot\r\n").await?;
                    if self.twisted(At::Content).is_some() {
                        self.answer(lines, At::Content, "").await?;
                    }
                    let message = lines.message().await?;
                    self.seen.lock().unwrap().messages.push(message);
                    self.answer(lines, At::Message, "250 2.0.0 queued as 4D3F\r\n").await?;
                }
                "QUIT" => {
                    _ = lines.io.write_all(b"221 bye\r\n").await;
                    return Ok(());
                }
                _ => lines.io.write_all(b"500 what?\r\n").await?,
            }
        }
    }

    fn twisted(&self, at: At) -> Option<&Twist> {
        self.twists.iter().find(|(step, _)| *step == at).map(|(_, twist)| twist)
    }

    async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        lines: &mut Lines<S>,
        at: At,
        usual: &str,
    ) -> Result<(), Over> {
        self.steps.send_modify(|count| *count += 1);
        match self.twisted(at) {
            None => lines.io.write_all(usual.as_bytes()).await?,
            Some(Twist::Says(says)) => lines.io.write_all(says.as_bytes()).await?,
            Some(Twist::Endless(says)) => loop {
                lines.io.write_all(says.as_bytes()).await?;
            },
            Some(Twist::Silent) => {
                lines.until_gone().await;
                return Err(Over);
            }
            Some(Twist::Cut) => {
                _ = lines.io.shutdown().await;
                return Err(Over);
            }
        }
        lines.io.flush().await?;
        Ok(())
    }

    async fn command<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        lines: &mut Lines<S>,
        tls: bool,
    ) -> Result<String, Over> {
        let line = lines.line().await?;
        self.seen.lock().unwrap().commands.push((tls, line.clone()));
        Ok(line)
    }
}

/// What comes, line by line.
struct Lines<S> {
    io: S,
    came: Vec<u8>,
}

impl<S: AsyncRead + Unpin> Lines<S> {
    fn new(io: S) -> Self {
        Self { io, came: Vec::new() }
    }

    async fn up_to(&mut self, end: &[u8]) -> Result<String, Over> {
        loop {
            if let Some(at) = self.came.windows(end.len()).position(|window| window == end) {
                let rest = self.came.split_off(at + end.len());
                let whole = std::mem::replace(&mut self.came, rest);
                return Ok(String::from_utf8_lossy(&whole[..at]).into_owned());
            }
            if self.io.read_buf(&mut self.came).await? == 0 {
                return Err(Over);
            }
        }
    }

    async fn line(&mut self) -> Result<String, Over> {
        self.up_to(b"\r\n").await
    }

    async fn message(&mut self) -> Result<String, Over> {
        self.up_to(b"\r\n.\r\n").await.map(|message| message + "\r\n")
    }

    async fn until_gone(&mut self) {
        let mut bytes = [0; 4096];
        while self.io.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
    }
}
