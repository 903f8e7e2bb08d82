//! Hiding members of JSON bodies by RFC 6901 pointers, in one pass over the bytes.
//!
//! Everything that is not hidden keeps its own bytes. The scanner never recurses and takes what receivers really
//! send: text cut off at the end, duplicate keys (each is hidden), several documents in a row. Where text that began
//! as JSON stops being it, the rest is hidden whole, because nobody can say any more what stands in it; so is it past
//! [`HIDDEN_VALUES_MAX`] values, each of which costs what a hundred bytes do, to read and in what is shown.

use super::{HIDDEN_BYTES, is_hidden};
use crate::limits::HIDDEN_VALUES_MAX;

/// Pointers, as their reference tokens.
#[derive(Clone, Debug, Default)]
pub struct Pointers(Vec<Vec<Token>>);

#[derive(Clone, Debug)]
struct Token {
    text: String,
    /// The element of an array that it names (RFC 6901 section 4: no leading zero). Known beforehand, because an array
    /// may have a million elements, each of which is asked for.
    index: Option<usize>,
}

impl Token {
    fn new(written: &str) -> Self {
        let text = written.replace("~1", "/").replace("~0", "~");
        let index = text.parse::<usize>().ok().filter(|index| index.to_string() == text);
        Self { text, index }
    }
}

impl Pointers {
    /// Each is empty (the whole document) or begins with `/`; that was checked at load.
    pub fn new(pointers: &[String]) -> Self {
        let split = |pointer: &String| pointer.split('/').skip(1).map(Token::new).collect();
        Self(pointers.iter().map(split).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The body with every named value replaced by a string; `None` where there is none. `says_json`: its
    /// `Content-Type` does, so that text of another shape is hidden rather than shown.
    pub fn hide(&self, body: &[u8], says_json: bool, hide: impl Fn(&[u8]) -> String) -> Option<Vec<u8>> {
        replaced(body, self.named(body, says_json), hide)
    }

    /// The same of a body in which others, or the same, were hidden before: what reads `[redacted hmac:…]` stays.
    pub fn hide_more(&self, body: &[u8], says_json: bool, hide: impl Fn(&[u8]) -> String) -> Option<Vec<u8>> {
        let mut named = self.named(body, says_json);
        // The rest was hidden where reading stops, which it does within what is there instead.
        let rest_at = body.len().checked_sub(HIDDEN_BYTES).filter(|at| is_hidden(&body[*at..])).unwrap_or(usize::MAX);
        named.retain(|Hidden { from, to, rest }| {
            let inner = body[*from..*to].strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
            if *rest { *from < rest_at } else { !inner.is_some_and(is_hidden) }
        });
        replaced(body, named, hide)
    }

    /// What is to be hidden, in order.
    fn named(&self, body: &[u8], says_json: bool) -> Vec<Hidden> {
        let start = if body.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        let begins_as_json = matches!(body[start..].iter().find(|byte| !is_space(**byte)), Some(b'{' | b'['));
        if !begins_as_json && !says_json {
            return Vec::new();
        }
        let mut scan = Scan { body, at: start, pointers: &self.0, levels: Vec::new(), hidden: Vec::new() };
        if scan.run().is_err() {
            // Begin no later than the value in which reading stopped.
            let from = scan.at.min(body.len());
            if from < body.len() {
                scan.hidden.push(Hidden { from, to: body.len(), rest: true });
            }
        }
        scan.hidden
    }
}

/// `None`: there is nothing to hide.
fn replaced(body: &[u8], hidden: Vec<Hidden>, hide: impl Fn(&[u8]) -> String) -> Option<Vec<u8>> {
    if hidden.is_empty() {
        return None;
    }
    let mut out = Vec::with_capacity(body.len());
    let mut copied = 0;
    for Hidden { from, to, rest } in hidden {
        out.extend_from_slice(&body[copied..from]);
        let shown = hide(&body[from..to]);
        if rest {
            out.extend_from_slice(shown.as_bytes());
        } else {
            out.push(b'"');
            out.extend_from_slice(shown.as_bytes());
            out.push(b'"');
        }
        copied = to;
    }
    out.extend_from_slice(&body[copied..]);
    Some(out)
}

struct Hidden {
    from: usize,
    to: usize,
    /// Not a value but everything that follows.
    rest: bool,
}

/// An open object or array.
struct Level {
    object: bool,
    /// The next element's index, in an array.
    index: usize,
    /// Pointers whose tokens equal the path down to this container, in full so far.
    matching: Vec<usize>,
    /// The first element, from the next one on, that any of them names: of an array.
    named: usize,
}

struct Scan<'a> {
    body: &'a [u8],
    at: usize,
    pointers: &'a [Vec<Token>],
    levels: Vec<Level>,
    hidden: Vec<Hidden>,
}

/// What was found is not JSON.
struct NotJson;

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

impl Scan<'_> {
    /// Reads documents to the end of the text; text that just ends is no error.
    fn run(&mut self) -> Result<(), NotJson> {
        loop {
            self.skip_space();
            // RFC 7464: a record separator may stand before each document.
            while self.peek() == Some(0x1e) {
                self.at += 1;
                self.skip_space();
            }
            if self.peek().is_none() {
                return Ok(());
            }
            let all = (0..self.pointers.len()).collect();
            self.value(all)?;
            while !self.levels.is_empty() {
                self.step()?;
            }
        }
    }

    fn peek(&self) -> Option<u8> {
        self.body.get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while self.peek().is_some_and(is_space) {
            self.at += 1;
        }
    }

    /// Inside the innermost container: its next member, or its end.
    fn step(&mut self) -> Result<(), NotJson> {
        self.skip_space();
        let depth = self.levels.len();
        let Some(level) = self.levels.last_mut() else { return Ok(()) };
        match self.body.get(self.at) {
            None => {
                self.levels.clear();
                return Ok(());
            }
            Some(b'}') if level.object => {
                self.at += 1;
                self.levels.pop();
                return Ok(());
            }
            Some(b']') if !level.object => {
                self.at += 1;
                self.levels.pop();
                return Ok(());
            }
            Some(b',') if level.index > 0 => {
                self.at += 1;
                self.skip_space();
                if self.peek().is_none() {
                    self.levels.clear();
                    return Ok(());
                }
            }
            Some(_) if level.index > 0 => return Err(NotJson),
            Some(_) => {}
        }
        let Some(level) = self.levels.last_mut() else { return Ok(()) };
        let index = level.index;
        level.index += 1;
        let (matching, mut named) = (std::mem::take(&mut level.matching), level.named);
        let below: Vec<usize>;
        if level.object {
            if self.peek() != Some(b'"') {
                return Err(NotJson);
            }
            let from = self.at;
            if !self.string()? {
                self.levels.clear();
                return Ok(());
            }
            let key = &self.body[from..self.at];
            let key = Key::read(key, !matching.is_empty());
            below = self.narrowed(&matching, depth, |token| key.is(&token.text));
            self.skip_space();
            match self.peek() {
                Some(b':') => self.at += 1,
                None => {
                    self.levels.clear();
                    return Ok(());
                }
                Some(_) => return Err(NotJson),
            }
        } else {
            below = if index < named {
                Vec::new()
            } else {
                self.narrowed(&matching, depth, |token| token.index == Some(index))
            };
            if index >= named {
                named = self.named_from(&matching, depth, index + 1);
            }
        }
        if let Some(level) = self.levels.last_mut() {
            level.matching = matching;
            level.named = named;
        }
        self.skip_space();
        if self.peek().is_none() {
            self.levels.clear();
            return Ok(());
        }
        self.value(below)
    }

    /// Those of `matching` whose token for this depth (1: the outermost container) fits.
    fn narrowed(&self, matching: &[usize], depth: usize, fits: impl Fn(&Token) -> bool) -> Vec<usize> {
        matching.iter().copied().filter(|&one| self.pointers[one].get(depth - 1).is_some_and(&fits)).collect()
    }

    /// The first element from `from` on that any of `matching` names at this depth.
    fn named_from(&self, matching: &[usize], depth: usize, from: usize) -> usize {
        let named = matching.iter().filter_map(|&one| self.pointers[one].get(depth - 1)?.index);
        named.filter(|&index| index >= from).min().unwrap_or(usize::MAX)
    }

    /// A value whose path equals the first tokens of `matching`. Opens a container, or passes a scalar.
    fn value(&mut self, matching: Vec<usize>) -> Result<(), NotJson> {
        let depth = self.levels.len();
        let from = self.at;
        if matching.iter().any(|&one| self.pointers[one].len() == depth) {
            let passed = self.pass();
            if passed.is_err() {
                self.at = from;
                return Err(NotJson);
            }
            if self.hidden.len() == HIDDEN_VALUES_MAX {
                self.at = from;
                return Err(NotJson);
            }
            self.hidden.push(Hidden { from, to: self.at, rest: false });
            return Ok(());
        }
        match self.peek() {
            // Nothing below can be named, so brackets are all that matters; levels stay as few as tokens.
            Some(b'{' | b'[') if matching.is_empty() => self.pass(),
            Some(open @ (b'{' | b'[')) => {
                self.at += 1;
                let named = self.named_from(&matching, depth + 1, 0);
                self.levels.push(Level { object: open == b'{', index: 0, matching, named });
                Ok(())
            }
            Some(b'"') => self.string().map(|_| ()),
            Some(_) => self.scalar(),
            None => Ok(()),
        }
    }

    /// Past a whole value, whatever is in it; by bracket depth alone.
    fn pass(&mut self) -> Result<(), NotJson> {
        let mut depth = 0_usize;
        loop {
            match self.peek() {
                None => return Ok(()),
                Some(b'{' | b'[') => {
                    depth += 1;
                    self.at += 1;
                }
                Some(b'}' | b']') if depth > 0 => {
                    depth -= 1;
                    self.at += 1;
                }
                Some(b'"') => _ = self.string()?,
                Some(byte) if depth > 0 && (is_space(byte) || matches!(byte, b',' | b':')) => self.at += 1,
                Some(_) => self.scalar()?,
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }

    /// Past a string; `false`: the text ended in it.
    fn string(&mut self) -> Result<bool, NotJson> {
        let from = self.at;
        self.at += 1;
        loop {
            match self.peek() {
                None => return Ok(false),
                Some(b'"') => {
                    self.at += 1;
                    return Ok(true);
                }
                Some(b'\\') => self.at = (self.at + 2).min(self.body.len()),
                Some(byte) if byte < 0x20 => {
                    self.at = from;
                    return Err(NotJson);
                }
                Some(_) => self.at += 1,
            }
        }
    }

    /// Past a number, `true`, `false` or `null`; also past what only looks like one, which hides nothing.
    fn scalar(&mut self) -> Result<(), NotJson> {
        let from = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.')) {
            self.at += 1;
        }
        if self.at == from { Err(NotJson) } else { Ok(()) }
    }
}

/// A member's name.
enum Key<'a> {
    Plain(&'a [u8]),
    /// It was written with escapes.
    Escaped(String),
    /// With escapes that JSON does not have, which a lenient reader may take for any name.
    Unreadable,
    NotAskedFor,
}

impl<'a> Key<'a> {
    /// As written, quotes included.
    fn read(written: &'a [u8], is_asked_for: bool) -> Self {
        let inner = &written[1..written.len() - 1];
        if !inner.contains(&b'\\') {
            return Self::Plain(inner);
        }
        if !is_asked_for {
            return Self::NotAskedFor;
        }
        serde_json::from_slice(written).map_or(Self::Unreadable, Self::Escaped)
    }

    fn is(&self, token: &str) -> bool {
        match self {
            Self::Plain(inner) => *inner == token.as_bytes(),
            Self::Escaped(text) => text == token,
            Self::Unreadable => true,
            Self::NotAskedFor => false,
        }
    }
}
