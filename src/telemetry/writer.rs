//! Where log lines are written: on a thread of its own, so that nobody waits for whoever reads them.
//!
//! What reads stderr (a terminal that is held, a log shipper that hangs) may stop reading for as long as it likes.
//! Lines wait for it up to a bound; past that they are left out, and the next one says how many.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use crate::limits::{LOG_BYTES_WAITING, LOG_FLUSH};

/// Hands lines over; each `write` is a whole one.
#[derive(Clone, Debug)]
pub struct Lines {
    shared: Arc<Shared>,
    to: Sender<Message>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Bytes of lines on their way.
    waiting: AtomicUsize,
    left_out: AtomicU64,
}

enum Message {
    Line(Box<[u8]>),
    /// Answered once all before it is written.
    Flush(Sender<()>),
}

impl Lines {
    /// Written to `out`, of which `left_out` makes the line that tells how many there is no room for.
    pub fn start(out: impl Write + Send + 'static, left_out: fn(u64) -> String) -> io::Result<Self> {
        let (to, from) = mpsc::channel();
        let shared = Arc::<Shared>::default();
        let theirs = shared.clone();
        std::thread::Builder::new().name("log".to_owned()).spawn(move || write(out, &from, &theirs, left_out))?;
        Ok(Self { shared, to })
    }

    /// Waits until what was handed over is written, or for [`LOG_FLUSH`] where nobody reads it.
    pub fn flush(&self) {
        self.flush_within(LOG_FLUSH);
    }

    fn flush_within(&self, time: Duration) -> bool {
        let (done, written) = mpsc::channel();
        // Its other end lives as long as the process.
        let _ = self.to.send(Message::Flush(done));
        written.recv_timeout(time) != Err(RecvTimeoutError::Timeout)
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let before = self.shared.waiting.fetch_add(line.len(), Ordering::Relaxed);
        if before + line.len() > LOG_BYTES_WAITING {
            self.shared.waiting.fetch_sub(line.len(), Ordering::Relaxed);
            self.shared.left_out.fetch_add(1, Ordering::Relaxed);
        } else {
            let _ = self.to.send(Message::Line(line.into()));
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// Errors are nobody's to hear: where they would be told is what fails.
fn write(mut out: impl Write, from: &Receiver<Message>, shared: &Shared, told: fn(u64) -> String) {
    for message in from {
        match message {
            Message::Line(line) => {
                let _ = out.write_all(&line);
                shared.waiting.fetch_sub(line.len(), Ordering::Relaxed);
            }
            Message::Flush(done) => drop(done),
        }
        let left_out = shared.left_out.swap(0, Ordering::Relaxed);
        if left_out > 0 {
            let _ = out.write_all(told(left_out).as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn whoever_does_not_read_holds_nobody_up_and_is_told_what_there_was_no_room_for() {
        let (mut reader, writer) = io::pipe().unwrap();
        let writer = std::fs::File::from(OwnedFd::from(writer));
        let mut lines = Lines::start(writer, |count| format!("{count} left out\n")).unwrap();
        let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
        let count = 4 * LOG_BYTES_WAITING / line.len();
        // Far more than the pipe holds: each would wait for the reader.
        for _ in 0..count {
            lines.write_all(&line).unwrap();
        }
        assert!(!lines.flush_within(Duration::from_millis(10)), "nobody has read");
        let reading = std::thread::spawn(move || {
            let mut read = String::new();
            io::Read::read_to_string(&mut reader, &mut read).unwrap();
            read
        });
        assert!(lines.flush_within(PATIENCE));
        lines.write_all(b"the last\n").unwrap();
        assert!(lines.flush_within(PATIENCE));
        drop(lines);
        let read = reading.join().unwrap();
        let told = read.lines().filter_map(|line| line.strip_suffix(" left out")?.parse::<usize>().ok());
        let (left_out, written) = (told.sum::<usize>(), read.matches('x').count() / 1023);
        assert_eq!(left_out + written, count, "none is lost sight of");
        assert!(left_out > count / 2, "{left_out} of {count}: what waits is bounded");
        assert!(read.ends_with("the last\n"));
    }
}
