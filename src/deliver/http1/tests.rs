use std::collections::VecDeque;

use tokio::io::{AsyncRead, AsyncWrite};

use super::*;

const CAPS: HeadCaps = HeadCaps { bytes: 4096, lines: 32 };

/// A peer that has said all it will, in pieces, and takes so many bytes.
struct Peer {
    says: VecDeque<Vec<u8>>,
    end: fn() -> io::Result<()>,
    takes: usize,
    taken: Vec<u8>,
    speaks: Speaks,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    /// It answers what it was sent, or what it took of it.
    Asked,
    /// It does not wait for that.
    Unasked,
    /// It takes nothing in until it has spoken, which it does when it has been looked at so often.
    First { looks: usize },
}

impl AsyncRead for Peer {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let unasked = self.taken.is_empty() && self.takes > 0;
        match &mut self.speaks {
            Speaks::Asked if unasked => return Poll::Pending,
            Speaks::First { looks } if *looks > 0 => {
                *looks -= 1;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            _ => {}
        }
        match self.says.pop_front() {
            Some(piece) => buf.put_slice(&piece),
            None => return Poll::Ready((self.end)()),
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Peer {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.speaks != Speaks::Asked && self.takes == 0 {
            return Poll::Pending;
        }
        let take = buf.len().min(self.takes - self.taken.len());
        if take == 0 {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.taken.extend_from_slice(&buf[..take]);
        Poll::Ready(Ok(take))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

const CLOSED: fn() -> io::Result<()> = || Ok(());
const CUT: fn() -> io::Result<()> = || Err(io::ErrorKind::UnexpectedEof.into());
const RESET: fn() -> io::Result<()> = || Err(io::ErrorKind::ConnectionReset.into());

/// `200 body`, or where it stopped; the same however the answer is cut.
async fn exchange(says: &[u8], end: fn() -> io::Result<()>, takes: usize) -> String {
    let mut told = Vec::new();
    for step in [1, 3, says.len().max(1)] {
        let says = says.chunks(step).map(<[u8]>::to_vec).collect();
        let mut http1 = Http1::new(Box::new(Peer { says, end, takes, taken: Vec::new(), speaks: Speaks::Asked }));
        let head = Bytes::from_static(b"POST / HTTP/1.1\r\n\r\n");
        told.push(match http1.send(head, Bytes::from_static(b"body"), false, false, CAPS).await {
            Err(stop) => format!("{stop:?}"),
            Ok(head) => {
                let mut body = format!("{} ", head.status);
                loop {
                    match http1.read().await {
                        Ok(Some(piece)) => body += &String::from_utf8_lossy(&piece),
                        Ok(None) => break body,
                        Err(stop) => break format!("{body} {stop:?}"),
                    }
                }
            }
        });
    }
    assert!(told.iter().all(|one| *one == told[0]), "{told:?}");
    told.remove(0)
}

#[tokio::test]
async fn an_answer_is_whole_only_where_its_framing_says_so() {
    const ENDED: &str = " Ended { tidy: true }";
    for (answer, end, told) in [
        ("content-length: 2\r\n\r\nok", RESET, "200 ok"),
        ("content-length: 3\r\n\r\nok", CLOSED, &format!("200 ok{ENDED}")),
        ("content-length: 3\r\n\r\nok", CUT, &format!("200 ok{ENDED}")),
        ("content-length: 3\r\n\r\nok", RESET, "200 ok Ended { tidy: false }"),
        ("content-length: 0\r\n\r\n", RESET, "200 "),
        ("\r\nall of it", CLOSED, "200 all of it"),
        ("\r\n", CLOSED, "200 "),
        // A length, or a chunk, tells a cut; the end of a connection does only where nobody else can make it.
        ("\r\nall of it?", CUT, "200 all of it? CutWithoutNotice"),
        ("\r\nall of it?", RESET, "200 all of it? Ended { tidy: false }"),
        ("transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", RESET, "200 ok"),
        ("transfer-encoding: chunked\r\n\r\n1\r\no\r\n1;x=\"y\"\r\nk\r\n00\r\na: b\r\n\r\n", RESET, "200 ok"),
        ("transfer-encoding: chunked\r\n\r\n2 \r\nok\r\n0\r\n\r\n", RESET, "200 ok"),
        ("transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n", CLOSED, &format!("200 ok{ENDED}")),
        ("transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\na: b\r\n", CLOSED, &format!("200 ok{ENDED}")),
        ("transfer-encoding: chunked\r\n\r\n2\r\nok\r\n", CLOSED, &format!("200 ok{ENDED}")),
        ("transfer-encoding: chunked\r\n\r\n3\r\nok", CLOSED, &format!("200 ok{ENDED}")),
        ("transfer-encoding: chunked\r\n\r\n", CLOSED, &format!("200 {ENDED}")),
    ] {
        let text = format!("HTTP/1.1 200 OK\r\n{answer}");
        assert_eq!(exchange(text.as_bytes(), end, 1000).await, *told, "{answer:?}");
    }
}

#[tokio::test]
async fn a_chunk_that_is_none_is_named() {
    for (chunks, line) in [
        ("zz\r\nok", "zz"),
        ("\r\nok", ""),
        ("+2\r\nok", "+2"),
        ("0x2\r\nok", "0x2"),
        ("2 x\r\nok", "2 x"),
        ("11111111111111111\r\n", "11111111111111111"),
        ("2\nok\r\n", "2"),
        ("2\r\nokX", "X"),
    ] {
        let text = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}");
        let told = exchange(text.as_bytes(), CLOSED, 1000).await;
        assert!(told.contains(&format!("Chunk {{ line: \"{line}")), "{chunks:?}: {told}");
    }
}

#[tokio::test]
async fn an_answer_that_has_come_is_read_though_the_request_was_not_taken() {
    let early = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno";
    for end in [CLOSED, RESET] {
        for takes in [1, 5, 20] {
            assert_eq!(exchange(early, end, takes).await, "413 no", "{takes}");
            assert!(exchange(b"", end, takes).await.starts_with("Ended"), "{takes}");
        }
    }
}

#[tokio::test]
async fn what_came_before_a_request_is_no_answer_to_it() {
    const SILENT: fn() -> io::Result<()> = || Err(io::ErrorKind::WouldBlock.into());
    for (says, line) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 200 OK"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK"),
        ("HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 204 No Content"),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 100 Continue"),
        ("HTTP/1.1 503 Busy\r\nconnection: close\r\n\r\n", "HTTP/1.1 503 Busy"),
        ("HTTP/1.1 408 Request Timeout\r\n\r\n", "HTTP/1.1 408 Request Timeout"),
        ("220 mail.example.com ESMTP\r\n", "220 mail.example.com ESMTP"),
        ("SSH-2.0-OpenSSH_9.2\r\n", "SSH-2.0-OpenSSH_9.2"),
        ("\r\n", ""),
        ("H", "H"),
    ] {
        // Known before anything is written; or met while the socket takes nothing yet.
        for (speaks, takes) in
            [(Speaks::Unasked, 1000), (Speaks::First { looks: 1 }, 0), (Speaks::First { looks: 9 }, 0)]
        {
            for again in [false, true] {
                for end in [CLOSED, RESET, SILENT] {
                    let says = VecDeque::from([says.as_bytes().to_vec()]);
                    let mut http1 = Http1::new(Box::new(Peer { says, end, takes, taken: Vec::new(), speaks }));
                    let head = Bytes::from_static(b"POST / HTTP/1.1\r\n\r\n");
                    let stop = http1.send(head, Bytes::from_static(b"body"), false, again, CAPS).await;
                    let told = format!("{:?}", stop.expect_err("no answer"));
                    // Another connection is used for it, where this one was kept; nothing of it was sent.
                    let due = if again { "NotFresh".to_owned() } else { format!("Unasked {{ line: {line:?} }}") };
                    assert_eq!(told, due, "{line:?} {speaks:?} again: {again}");
                    assert!(!http1.out.begun && !http1.is_ready(), "{line}");
                }
            }
        }
    }
}

#[tokio::test]
async fn informational_answers_are_passed_over_and_bounded() {
    let hints = |count: usize| "HTTP/1.1 103 Hints\r\nx: 1\r\n\r\n".repeat(count) + "HTTP/1.1 204 Done\r\n\r\n";
    assert_eq!(exchange(hints(INFORMATIONAL_RESPONSES_MAX).as_bytes(), CLOSED, 1000).await, "204 ");
    let flood = hints(INFORMATIONAL_RESPONSES_MAX + 1);
    assert_eq!(exchange(flood.as_bytes(), CLOSED, 1000).await, "TooManyInformational");
    assert_eq!(exchange(b"HTTP/1.1 101 Other\r\n\r\n", CLOSED, 1000).await, "101 ");
}
