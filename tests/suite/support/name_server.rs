//! A name server on loopback, over UDP and TCP, that answers as a script says: truths, lies, other people's answers,
//! or nothing.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
};

/// A question as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Lower-case, without the final dot.
    pub name: String,
    pub kind: RecordType,
    pub over_tcp: bool,
    /// With EDNS.
    pub edns: bool,
    /// How many questions for this name and kind came before.
    pub before: usize,
}

/// What to answer.
#[derive(Clone, Debug)]
pub enum Reply {
    /// NOERROR with these records, which may be none.
    Records(Vec<Record>),
    /// Another code, with these records.
    Code(ResponseCode, Vec<Record>),
    Silence,
    /// The TC bit, and no records.
    Truncated,
    /// Over TCP: the connection is closed. Over UDP: silence.
    Close,
    /// Nothing in it, from a server that neither owns the name nor looks names up.
    Lame,
    /// After this long.
    Late(Duration, Box<Reply>),
    /// These records, and after them this record until the message is as long as can be.
    Stuffed(Vec<Record>, Box<Record>),
    /// Good records under an id that was not asked with, before silence.
    WrongId(Vec<Record>),
    /// Good records for a question that was not asked, before silence.
    OtherQuestion(String, Vec<Record>),
    /// The question's letters in lower case, whatever case it came in.
    LowerCase(Vec<Record>),
    /// The right id, and bytes that are no message.
    Garbage,
    /// First the wrong answer, then the right one.
    Both(Box<Reply>, Box<Reply>),
}

/// Of any characters but dots.
pub fn name(text: &str) -> Name {
    let mut name = Name::from_labels(text.split('.').map(str::as_bytes)).expect("a name");
    name.set_fqdn(true);
    name
}

pub fn address(owner: &str, ttl: u32, ip: &str) -> Record {
    let data = match ip.parse::<IpAddr>().expect("an address") {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    };
    Record::from_rdata(name(owner), ttl, data)
}

pub fn alias(owner: &str, ttl: u32, target: &str) -> Record {
    Record::from_rdata(name(owner), ttl, RData::CNAME(CNAME(name(target))))
}

type Script = Arc<dyn Fn(&Asked) -> Reply + Send + Sync>;

/// Stops when dropped.
pub struct NameServer {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    dead: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl NameServer {
    /// `script` is asked for every question, but those about the root: with these the appliance asks whether a name
    /// server lives.
    pub async fn start(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        // The same port for both: UDP takes the one that TCP was given.
        let (tcp, udp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().expect("an address")).await {
                break (tcp, udp);
            }
        };
        Self::serve(tcp, udp, script)
    }

    /// On sockets that are there, both of one port.
    pub fn on(
        tcp: std::net::TcpListener,
        udp: std::net::UdpSocket,
        script: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Self {
        tcp.set_nonblocking(true).and(udp.set_nonblocking(true)).expect("sockets that need not be waited for");
        let udp = UdpSocket::from_std(udp).expect("within a runtime");
        Self::serve(TcpListener::from_std(tcp).expect("within a runtime"), udp, script)
    }

    fn serve(tcp: TcpListener, udp: UdpSocket, script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let dead = Arc::new(AtomicBool::new(false));
        let script: Script = {
            let dead = dead.clone();
            Arc::new(move |asked| match asked {
                _ if dead.load(Relaxed) => Reply::Silence,
                Asked { kind: RecordType::NS, .. } => Reply::Records(Vec::new()),
                _ => script(asked),
            })
        };
        let address = tcp.local_addr().expect("an address");
        let over_udp = {
            let (script, asked) = (script.clone(), asked.clone());
            tokio::spawn(async move {
                let udp = Arc::new(udp);
                let mut buffer = [0; 4096];
                while let Ok((length, peer)) = udp.recv_from(&mut buffer).await {
                    let Some((question, mut reply)) = heard(&buffer[..length], false, &script, &asked) else {
                        continue;
                    };
                    let udp = udp.clone();
                    tokio::spawn(async move {
                        reply = in_time(reply).await;
                        for answer in encode(&question, reply) {
                            let _ = udp.send_to(&answer, peer).await;
                        }
                    });
                }
            })
        };
        let over_tcp = {
            let (script, asked) = (script.clone(), asked.clone());
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = tcp.accept().await {
                    let (script, asked) = (script.clone(), asked.clone());
                    tokio::spawn(async move {
                        while let Ok(length) = stream.read_u16().await {
                            let mut question = vec![0; usize::from(length)];
                            if stream.read_exact(&mut question).await.is_err() {
                                return;
                            }
                            let Some((question, reply)) = heard(&question, true, &script, &asked) else { return };
                            let reply = in_time(reply).await;
                            if matches!(reply, Reply::Close) {
                                return;
                            }
                            for answer in encode(&question, reply) {
                                let mut framed = (answer.len() as u16).to_be_bytes().to_vec();
                                framed.extend(answer);
                                let _ = stream.write_all(&framed).await;
                            }
                        }
                    });
                }
            })
        };
        Self { address, asked, dead, tasks: vec![over_udp, over_tcp] }
    }

    /// Answers every name and family with these addresses, for this many seconds.
    pub async fn with_addresses(ttl: u32, addresses: &[&str]) -> Self {
        let addresses: Vec<String> = addresses.iter().map(|address| (*address).to_owned()).collect();
        Self::start(move |asked| {
            let of_kind = |ip: &&String| ip.contains(':') == (asked.kind == RecordType::AAAA);
            Reply::Records(addresses.iter().filter(of_kind).map(|ip| address(&asked.name, ttl, ip)).collect())
        })
        .await
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Every question so far, but those about the root.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().iter().filter(|asked| asked.kind != RecordType::NS).cloned().collect()
    }

    /// Says nothing to anything from now on, or does again.
    pub fn set_dead(&self, dead: bool) {
        self.dead.store(dead, Relaxed);
    }
}

/// What the script says to a question.
fn heard(question: &[u8], over_tcp: bool, script: &Script, log: &Mutex<Vec<Asked>>) -> Option<(Message, Reply)> {
    let question = Message::from_vec(question).ok()?;
    let query = question.queries.first()?;
    // As it stands on the wire: a name may hold what no host name does.
    let labels = query.name().to_lowercase();
    let labels: Vec<_> = labels.iter().map(|label| String::from_utf8_lossy(label).into_owned()).collect();
    let name = labels.join(".");
    let asked = {
        let mut log = log.lock().unwrap();
        let before = log.iter().filter(|asked| asked.name == name && asked.kind == query.query_type).count();
        let asked = Asked { name, kind: query.query_type, over_tcp, edns: question.edns.is_some(), before };
        log.push(asked.clone());
        asked
    };
    let reply = script(&asked);
    Some((question, reply))
}

async fn in_time(reply: Reply) -> Reply {
    match reply {
        Reply::Late(after, reply) => {
            tokio::time::sleep(after).await;
            *reply
        }
        reply => reply,
    }
}

fn encode(question: &Message, reply: Reply) -> Vec<Vec<u8>> {
    let Some(query) = question.queries.first() else { return Vec::new() };
    let answer = |id: u16, query: Query, code: ResponseCode, records: Vec<Record>| {
        let mut message = Message::new(id, MessageType::Response, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.metadata.recursion_available = true;
        message.metadata.response_code = code;
        message.add_query(query);
        message.add_answers(records);
        message
    };
    let id = question.metadata.id;
    let ours = || query.clone();
    let message = match reply {
        Reply::Records(records) => answer(id, ours(), ResponseCode::NoError, records),
        Reply::Code(code, records) => answer(id, ours(), code, records),
        Reply::Silence | Reply::Close | Reply::Late(..) => return Vec::new(),
        Reply::Lame => {
            let mut message = answer(id, ours(), ResponseCode::NoError, Vec::new());
            message.metadata.recursion_available = false;
            message
        }
        Reply::Stuffed(records, more) => {
            let count = u16::try_from(records.len()).expect("few");
            let mut bytes = answer(id, ours(), ResponseCode::NoError, records).to_vec().expect("a message");
            let alone = answer(id, ours(), ResponseCode::NoError, vec![*more]).to_vec().expect("a message");
            let head = answer(id, ours(), ResponseCode::NoError, Vec::new()).to_vec().expect("a message").len();
            // Its name leads to the question, which stands in the same place, or is written out.
            let more = &alone[head..];
            let times = (usize::from(u16::MAX) - bytes.len()) / more.len();
            bytes.extend(more.repeat(times));
            bytes[6..8].copy_from_slice(&(count + u16::try_from(times).expect("few")).to_be_bytes());
            return vec![bytes];
        }
        Reply::Truncated => {
            let mut message = answer(id, ours(), ResponseCode::NoError, Vec::new());
            message.metadata.truncation = true;
            message
        }
        Reply::WrongId(records) => answer(id.wrapping_add(1), ours(), ResponseCode::NoError, records),
        Reply::OtherQuestion(other, records) => {
            answer(id, Query::query(name(&other), query.query_type), ResponseCode::NoError, records)
        }
        Reply::LowerCase(records) => {
            let lower = Query::query(query.name().to_lowercase(), query.query_type);
            answer(id, lower, ResponseCode::NoError, records)
        }
        Reply::Garbage => {
            let mut bytes = id.to_be_bytes().to_vec();
            bytes.extend([0xff; 20]);
            return vec![bytes];
        }
        Reply::Both(first, second) => {
            let mut both = encode(question, *first);
            both.extend(encode(question, *second));
            return both;
        }
    };
    vec![message.to_vec().expect("a message")]
}
