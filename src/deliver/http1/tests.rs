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
}

impl AsyncRead for Peer {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // It answers what it was sent, or what it took of it.
        if self.taken.is_empty() && self.takes > 0 {
            return Poll::Pending;
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
        let mut http1 = Http1::new(Box::new(Peer { says, end, takes, taken: Vec::new() }));
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
async fn informational_answers_are_passed_over_and_bounded() {
    let hints = |count: usize| "HTTP/1.1 103 Hints\r\nx: 1\r\n\r\n".repeat(count) + "HTTP/1.1 204 Done\r\n\r\n";
    assert_eq!(exchange(hints(INFORMATIONAL_RESPONSES_MAX).as_bytes(), CLOSED, 1000).await, "204 ");
    let flood = hints(INFORMATIONAL_RESPONSES_MAX + 1);
    assert_eq!(exchange(flood.as_bytes(), CLOSED, 1000).await, "TooManyInformational");
    assert_eq!(exchange(b"HTTP/1.1 101 Other\r\n\r\n", CLOSED, 1000).await, "101 ");
}
