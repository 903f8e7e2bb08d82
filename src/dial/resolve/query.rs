//! One question to the name servers, and what their answer says.
//!
//! Messages are `hickory-proto`'s; the sockets are ours, one per question, so that a guesser needs the port, the id
//! and the letters' case (draft-vixie-dnsext-dns0x20) at once. A truncated answer is asked for again over TCP.
//! Datagrams that are not the answer to the question are passed over. Not here: caching, caps and policy.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, StreamExt};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, RecordType},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::limits::{DNS_CNAMES_MAX, DNS_SERVERS_MAX, DNS_STRAY_DATAGRAMS_MAX};

/// Largest datagram asked for: what passes every path unfragmented (DNS flag day 2020).
const UDP_PAYLOAD: u16 = 1232;
/// What is read of a datagram: more than was asked for is a server that does not listen.
const DATAGRAM_BYTES_MAX: usize = 4096;
/// How long one server is waited for before the next is asked as well; the first question is then still open.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long an answer may take before the same datagram is sent once more: it, or the answer, may be lost.
const RESEND_AFTER: Duration = Duration::from_millis(1500);

/// Why no server gave a usable answer. The words name no server: they are for the send's author.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unanswered {
    #[error("the name servers answered {0}")]
    Refusal(String),
    #[error("the name servers' answer cannot be read")]
    Garbage,
    #[error("the name servers cannot be reached")]
    Unreachable,
}

/// Puts the question to the servers in turn, each a little after the one before, until one answers with addresses,
/// aliases, or that there are none. Fails when every server has failed; waits forever while they are silent. Each
/// server costs one socket, however long it is silent.
pub async fn ask(servers: &[SocketAddr], name: &Name, kind: RecordType) -> Result<Message, Unanswered> {
    let mut waiting = servers.iter().take(DNS_SERVERS_MAX);
    let mut open = FuturesUnordered::new();
    let mut told = Unanswered::Unreachable;
    loop {
        open.extend(waiting.next().map(|server| exchange(*server, name, kind)));
        let more = waiting.len() > 0;
        tokio::select! {
            biased;
            answer = open.next() => match answer {
                Some(Ok(message)) => return Ok(message),
                Some(Err(unanswered)) => told = unanswered,
                None => return Err(told),
            },
            () = tokio::time::sleep(PATIENCE), if more => {}
        }
    }
}

/// One question to one server, with EDNS and, where the server does not know that, without.
async fn exchange(server: SocketAddr, name: &Name, kind: RecordType) -> Result<Message, Unanswered> {
    let answer = exchange_once(server, name, kind, true).await?;
    let answer = match answer.metadata.response_code {
        ResponseCode::FormErr | ResponseCode::NotImp | ResponseCode::BADVERS => {
            exchange_once(server, name, kind, false).await?
        }
        _ => answer,
    };
    match answer.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => Ok(answer),
        other => Err(Unanswered::Refusal(other.to_str().to_owned())),
    }
}

async fn exchange_once(server: SocketAddr, name: &Name, kind: RecordType, edns: bool) -> Result<Message, Unanswered> {
    let mut cased = name.clone();
    cased.randomize_label_case();
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(cased, kind));
    if edns {
        let mut options = Edns::new();
        options.set_max_payload(UDP_PAYLOAD).set_version(0);
        question.set_edns(options);
    }
    let bytes = question.to_vec().map_err(|_| Unanswered::Garbage)?;
    match over_udp(server, &question, &bytes).await? {
        Datagram::Whole(answer) => Ok(answer),
        Datagram::AskOverTcp => over_tcp(server, &question, &bytes).await,
    }
}

enum Datagram {
    Whole(Message),
    AskOverTcp,
}

async fn over_udp(server: SocketAddr, question: &Message, bytes: &[u8]) -> Result<Datagram, Unanswered> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await.map_err(unreachable)?;
    socket.connect(server).await.map_err(unreachable)?;
    socket.send(bytes).await.map_err(unreachable)?;
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    let mut resend = std::pin::pin!(tokio::time::sleep(RESEND_AFTER));
    let mut strays = 0;
    while strays < DNS_STRAY_DATAGRAMS_MAX {
        let length = tokio::select! {
            length = socket.recv(&mut buffer) => length.map_err(unreachable)?,
            () = &mut resend => {
                socket.send(bytes).await.map_err(unreachable)?;
                resend.set(tokio::time::sleep(2 * RESEND_AFTER));
                continue;
            }
        };
        match weigh(&buffer[..length], question) {
            Weighed::Answer(answer) if answer.metadata.truncation => return Ok(Datagram::AskOverTcp),
            Weighed::Answer(answer) => return Ok(Datagram::Whole(answer)),
            Weighed::OtherCase => return Ok(Datagram::AskOverTcp),
            Weighed::Garbage => return Err(Unanswered::Garbage),
            Weighed::Stray => strays += 1,
        }
    }
    // Someone guesses: a connection cannot be guessed.
    Ok(Datagram::AskOverTcp)
}

#[allow(clippy::disallowed_methods, reason = "towards a configured name server, never a destination")]
async fn over_tcp(server: SocketAddr, question: &Message, bytes: &[u8]) -> Result<Message, Unanswered> {
    let mut stream = TcpStream::connect(server).await.map_err(unreachable)?;
    let length = u16::try_from(bytes.len()).map_err(|_| Unanswered::Garbage)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(bytes);
    stream.write_all(&framed).await.map_err(unreachable)?;
    let length = stream.read_u16().await.map_err(unreachable)?;
    let mut buffer = vec![0; usize::from(length)];
    stream.read_exact(&mut buffer).await.map_err(unreachable)?;
    match weigh(&buffer, question) {
        Weighed::Answer(answer) => Ok(answer),
        // Over a connection the case is not needed to know whom the answer is from.
        Weighed::OtherCase => Message::from_vec(&buffer).map_err(|_| Unanswered::Garbage),
        Weighed::Garbage | Weighed::Stray => Err(Unanswered::Garbage),
    }
}

fn unreachable(_: io::Error) -> Unanswered {
    Unanswered::Unreachable
}

enum Weighed {
    Answer(Message),
    /// The answer, with the question's letters in another case: an old server, or a guess.
    OtherCase,
    /// With our id, and unreadable.
    Garbage,
    /// Not an answer to this question.
    Stray,
}

fn weigh(bytes: &[u8], question: &Message) -> Weighed {
    if bytes.get(..2) != Some(&question.metadata.id.to_be_bytes()) {
        return Weighed::Stray;
    }
    let Ok(answer) = Message::from_vec(bytes) else { return Weighed::Garbage };
    if answer.metadata.message_type != MessageType::Response || answer.metadata.op_code != OpCode::Query {
        return Weighed::Stray;
    }
    match (answer.queries.as_slice(), question.queries.as_slice()) {
        // A server that cannot read the question does not repeat it.
        ([], _) if answer.metadata.response_code == ResponseCode::FormErr => Weighed::Answer(answer),
        ([theirs], [ours]) if theirs.query_type == ours.query_type && theirs.query_class == ours.query_class => {
            if theirs.name.eq_case(&ours.name) {
                Weighed::Answer(answer)
            } else if theirs.name == ours.name {
                Weighed::OtherCase
            } else {
                Weighed::Stray
            }
        }
        _ => Weighed::Stray,
    }
}

/// What an answer says of a name.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The chain from the asked name, in order; at most one more than may be followed.
    pub aliases: Vec<Name>,
    /// Addresses of the name at the chain's end, and of no other.
    pub addresses: Vec<IpAddr>,
    /// The least of all records used.
    pub ttl: u32,
    /// The name at the chain's end does not exist.
    pub gone: bool,
}

/// Only records that the question leads to count: whatever else an answer carries is passed over.
pub fn read(message: &Message, name: &Name, kind: RecordType) -> Reading {
    let mut reading = Reading { ttl: u32::MAX, ..Reading::default() };
    let mut at = name;
    let records = || message.answers.iter().filter(|record| record.dns_class == DNSClass::IN);
    while reading.aliases.len() <= DNS_CNAMES_MAX {
        let alias = records().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name == *at => Some((&target.0, record.ttl)),
            _ => None,
        });
        let Some((target, ttl)) = alias else { break };
        reading.aliases.push(target.clone());
        reading.ttl = reading.ttl.min(ttl);
        at = target;
    }
    for record in records().filter(|record| record.name == *at) {
        let address = match (&record.data, kind) {
            (RData::A(address), RecordType::A) => IpAddr::V4(address.0),
            (RData::AAAA(address), RecordType::AAAA) => IpAddr::V6(address.0),
            _ => continue,
        };
        reading.ttl = reading.ttl.min(record.ttl);
        if !reading.addresses.contains(&address) {
            reading.addresses.push(address);
        }
    }
    reading.gone = message.metadata.response_code == ResponseCode::NXDomain && reading.addresses.is_empty();
    reading
}
