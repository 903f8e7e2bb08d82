//! One question to the name servers: sockets, patience and second chances.
//!
//! Each question has a socket of its own, so that a guesser needs the port, the id and the letters' case at once. A
//! truncated answer is asked for again over TCP. Datagrams that are not the answer to the question are passed over. A
//! server that fails is followed by the next at once, one that is silent by the next a little later. Not here: caching,
//! caps and policy.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::inquiry::{Inquiry, Unanswered};
use super::message::{Answer, Name, Question, Rcode, Reading, RecordType, Weighed};
use super::servers::Servers;
use crate::limits::{DNS_MESSAGE_BYTES_MAX, DNS_PATIENCE, DNS_PROBE_TIME, DNS_RESENT_AFTER, DNS_STRAY_DATAGRAMS_MAX};

/// What is read of a datagram: more than was asked for is a server that does not listen.
const DATAGRAM_BYTES_MAX: usize = 4096;

/// Whom a lookup asks, and where it notes what it hears.
pub struct Asking<'a> {
    pub servers: &'a Arc<Servers>,
    pub order: Vec<SocketAddr>,
    pub inquiry: &'a Inquiry,
    /// The lookup is not made once more: what is silent is waited for.
    pub last: bool,
}

/// All servers were asked and none gave a usable answer; the [`Inquiry`] has their reasons.
#[derive(Debug, PartialEq, Eq)]
pub struct AllFailed;

/// Puts the question to the servers in turn until one answers with addresses, aliases, or that there are none. Waits
/// forever while all are silent; where some have failed and the lookup will be made once more, only a little. Each
/// server costs one socket, however long it is silent.
pub async fn ask(asking: &Asking<'_>, name: &Name, kind: RecordType) -> Result<Reading, AllFailed> {
    let mut waiting = asking.order.iter();
    let mut open = FuturesUnordered::new();
    let mut failed = false;
    loop {
        open.extend(waiting.next().map(|server| exchange(asking, *server, name, kind)));
        let more = waiting.len() > 0;
        tokio::select! {
            biased;
            answer = open.next() => match answer {
                Some(Ok(reading)) => return Ok(reading),
                Some(Err(_)) => failed = true,
                None => return Err(AllFailed),
            },
            () = tokio::time::sleep(DNS_PATIENCE), if more || (failed && !asking.last) => {
                if !more {
                    return Err(AllFailed);
                }
            }
        }
    }
}

/// One question to one server, and what it came to.
async fn exchange(
    asking: &Asking<'_>,
    server: SocketAddr,
    name: &Name,
    kind: RecordType,
) -> Result<Reading, Unanswered> {
    asking.inquiry.asked(server, kind);
    let result = exchange_unnoted(asking, server, name, kind).await;
    asking.inquiry.heard(server, kind, result.as_ref().map(drop).map_err(|unanswered| *unanswered));
    result
}

/// With EDNS and, where the server does not know that, without.
async fn exchange_unnoted(
    asking: &Asking<'_>,
    server: SocketAddr,
    name: &Name,
    kind: RecordType,
) -> Result<Reading, Unanswered> {
    let judge = |answer: Answer<'_>| judge(answer, name, kind);
    let plain = Question::new(name, kind, false);
    if asking.servers.takes_edns(server) {
        let full = Question::new(name, kind, true);
        match over_udp(asking, server, kind, [&full, &plain], judge).await? {
            Judged::Usable(reading) => return Ok(reading),
            Judged::Failed(unanswered) => return Err(unanswered),
            Judged::NoEdns(_) => asking.servers.refused_edns(server),
        }
    }
    match over_udp(asking, server, kind, [&plain, &plain], judge).await? {
        Judged::Usable(reading) => Ok(reading),
        Judged::Failed(unanswered) => Err(unanswered),
        Judged::NoEdns(code) => Err(Unanswered::Refusal(code.0)),
    }
}

/// What an answer is worth.
enum Judged {
    Usable(Reading),
    Failed(Unanswered),
    /// The server could not read the question, which may be for its EDNS.
    NoEdns(Rcode),
}

fn judge(answer: Answer<'_>, name: &Name, kind: RecordType) -> Judged {
    match answer.rcode() {
        Rcode::NO_ERROR if answer.is_lame() => Judged::Failed(Unanswered::Lame),
        Rcode::NO_ERROR | Rcode::NX_DOMAIN => match answer.read(name, kind) {
            Some(reading) => Judged::Usable(reading),
            None => Judged::Failed(Unanswered::Garbage),
        },
        code @ (Rcode::FORM_ERR | Rcode::NOT_IMP | Rcode::BAD_VERS) => Judged::NoEdns(code),
        other => Judged::Failed(Unanswered::Refusal(other.0)),
    }
}

/// Sends the first question, and the second where nothing has come for a while; the answer to either will do. They
/// are one where there is no EDNS to leave out.
async fn over_udp<T>(
    asking: &Asking<'_>,
    server: SocketAddr,
    kind: RecordType,
    questions: [&Question; 2],
    judge: impl Fn(Answer<'_>) -> T,
) -> Result<T, Unanswered> {
    let socket = connected(server).await.map_err(unreachable)?;
    socket.send(questions[0].bytes()).await.map_err(unreachable)?;
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    let mut resend = std::pin::pin!(tokio::time::sleep(DNS_RESENT_AFTER));
    let mut strays = 0;
    while strays < DNS_STRAY_DATAGRAMS_MAX {
        let length = tokio::select! {
            length = socket.recv(&mut buffer) => length.map_err(unreachable)?,
            () = &mut resend => {
                asking.servers.suspect(server);
                socket.send(questions[1].bytes()).await.map_err(unreachable)?;
                resend.set(tokio::time::sleep(2 * DNS_RESENT_AFTER));
                continue;
            }
        };
        for (at, question) in questions.into_iter().enumerate() {
            match question.weigh(&buffer[..length]) {
                Weighed::Answer(answer) if !answer.is_truncated() => {
                    asking.servers.answered(server, at > 0);
                    return Ok(judge(answer));
                }
                Weighed::Answer(_) => {
                    asking.servers.answered(server, at > 0);
                    // Said now already: it may be silent over TCP.
                    asking.inquiry.heard(server, kind, Err(Unanswered::Truncated));
                    return over_tcp(server, question, judge).await.map_err(|_| Unanswered::Truncated);
                }
                // An old server, a broken one or a guess: a connection cannot be guessed.
                Weighed::OtherCase(_) | Weighed::Unreadable => return over_tcp(server, question, judge).await,
                Weighed::Stray => {}
            }
        }
        strays += 1;
    }
    over_tcp(server, questions[0], judge).await
}

#[allow(clippy::disallowed_methods, reason = "towards a configured name server, never a destination")]
async fn over_tcp<T>(
    server: SocketAddr,
    question: &Question,
    judge: impl Fn(Answer<'_>) -> T,
) -> Result<T, Unanswered> {
    let mut stream = TcpStream::connect(server).await.map_err(unreachable)?;
    let length = u16::try_from(question.bytes().len()).map_err(|_| Unanswered::Garbage)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(question.bytes());
    stream.write_all(&framed).await.map_err(unreachable)?;
    let length = stream.read_u16().await.map_err(unreachable)?;
    let mut buffer = vec![0; usize::from(length).min(DNS_MESSAGE_BYTES_MAX)];
    stream.read_exact(&mut buffer).await.map_err(unreachable)?;
    match question.weigh(&buffer) {
        // Over a connection the case is not needed to know whom the answer is from.
        Weighed::Answer(answer) | Weighed::OtherCase(answer) => Ok(judge(answer)),
        Weighed::Unreadable | Weighed::Stray => Err(Unanswered::Garbage),
    }
}

/// Whether this server says anything to a question that no tenant chose.
pub async fn lives(server: SocketAddr) -> bool {
    let question = Question::new(&Name::root(), RecordType::NS, false);
    let said = async {
        let socket = connected(server).await?;
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            socket.send(question.bytes()).await?;
            let half = tokio::time::sleep(DNS_PROBE_TIME / 2);
            let mut half = std::pin::pin!(half);
            loop {
                let length = tokio::select! {
                    length = socket.recv(&mut buffer) => length?,
                    () = &mut half => break,
                };
                if !matches!(question.weigh(&buffer[..length]), Weighed::Stray) {
                    return io::Result::Ok(());
                }
            }
        }
    };
    tokio::select! {
        said = said => said.is_ok(),
        () = tokio::time::sleep(DNS_PROBE_TIME) => false,
    }
}

async fn connected(server: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    Ok(socket)
}

fn unreachable(_: io::Error) -> Unanswered {
    Unanswered::Unreachable
}
