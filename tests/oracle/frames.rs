//! A second parser of the client protocol, as naive as possible and independent of natsmux's.
//!
//! It understands what real brokers and clients write, one frame at a time, and refuses
//! everything else: a stream of natsmux's that it can't read is a violation by itself.

/// What goes towards a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Up {
    Connect(String),
    Ping,
    Pong,
    Publish(Publish),
    Subscribe {
        subject: Vec<u8>,
        group: Option<Vec<u8>>,
        sid: Vec<u8>,
    },
    Unsubscribe {
        sid: Vec<u8>,
        max: Option<u64>,
    },
}

/// What goes towards a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Down {
    Info(String),
    Message { sid: Vec<u8>, publish: Publish },
    Ping,
    Pong,
    Ok,
    Err(String),
}

/// A message, whichever way it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    pub subject: Vec<u8>,
    pub reply: Option<Vec<u8>>,
    /// Length of the headers at the start of the payload, for HPUB and HMSG.
    pub headers: Option<usize>,
    pub payload: Vec<u8>,
}

impl Publish {
    /// As PUB or HPUB (`sid` absent), or as MSG or HMSG.
    pub fn encode(&self, sid: Option<&[u8]>, out: &mut Vec<u8>) {
        let verb: &[u8] = match (self.headers.is_some(), sid.is_some()) {
            (false, false) => b"PUB ",
            (true, false) => b"HPUB ",
            (false, true) => b"MSG ",
            (true, true) => b"HMSG ",
        };
        out.extend_from_slice(verb);
        out.extend_from_slice(&self.subject);
        for part in sid.into_iter().chain(self.reply.as_deref()) {
            out.push(b' ');
            out.extend_from_slice(part);
        }
        if let Some(headers) = self.headers {
            out.extend_from_slice(format!(" {headers}").as_bytes());
        }
        out.extend_from_slice(format!(" {}\r\n", self.payload.len()).as_bytes());
        out.extend_from_slice(&self.payload);
        out.extend_from_slice(b"\r\n");
    }

    /// Whether it is the same message, of which a component with other options gets no headers.
    pub fn is_copy_of(&self, other: &Publish) -> bool {
        let body = |one: &Publish| one.payload[one.headers.unwrap_or(0)..].to_vec();
        let differ = self.headers.is_some() != other.headers.is_some();
        let is_same = self.subject == other.subject && self.reply == other.reply;
        self == other || (differ && is_same && body(self) == body(other))
    }

    /// Whether a broker made it up because nobody listened.
    pub fn is_no_responders(&self) -> bool {
        self.headers == Some(self.payload.len()) && self.payload.starts_with(b"NATS/1.0 503")
    }
}

/// Collects bytes and hands out whole frames.
#[derive(Debug, Default)]
pub struct Splitter {
    buffer: Vec<u8>,
    start: usize,
    /// Bytes of the whole frames handed out so far.
    pub consumed: u64,
}

impl Splitter {
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes of an unfinished frame.
    pub fn residue(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    pub fn next_up(&mut self) -> Result<Option<Up>, String> {
        self.next(parse_up)
    }

    pub fn next_down(&mut self) -> Result<Option<Down>, String> {
        self.next(parse_down)
    }

    fn next<T>(&mut self, parse: Parse<T>) -> Result<Option<T>, String> {
        let bytes = &self.buffer[self.start..];
        let Some(line_len) = bytes.windows(2).position(|pair| pair == b"\r\n") else {
            return Ok(None);
        };
        let (line, rest) = (&bytes[..line_len], &bytes[line_len + 2..]);
        let parsed = parse(line, rest).ok_or_else(|| {
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(120)]);
            format!("can't be read: {:?}", shown)
        })?;
        let Some((frame, payload_len)) = parsed else {
            return Ok(None);
        };
        let len = line_len + 2 + payload_len;
        self.start += len;
        self.consumed += len as u64;
        Ok(Some(frame))
    }
}

/// The outer `None` is a fault, the inner one an unfinished frame.
type Parse<T> = fn(&[u8], &[u8]) -> Option<Option<(T, usize)>>;

fn parse_up(line: &[u8], rest: &[u8]) -> Option<Option<(Up, usize)>> {
    let words = words(line);
    let (verb, args) = words.split_first()?;
    let verb = verb.to_ascii_uppercase();
    let whole = |up| Some(Some((up, 0)));
    match (verb.as_slice(), args) {
        (b"PING", _) => whole(Up::Ping),
        (b"PONG", _) => whole(Up::Pong),
        (b"CONNECT", [_, ..]) => {
            let json = String::from_utf8(line[b"CONNECT ".len()..].to_vec()).ok()?;
            (json.starts_with('{') && json.ends_with('}')).then_some(())?;
            whole(Up::Connect(json))
        }
        (b"SUB", [subject, group @ .., sid]) if group.len() < 2 => whole(Up::Subscribe {
            subject: subject.to_vec(),
            group: group.first().map(|group| group.to_vec()),
            sid: sid.to_vec(),
        }),
        (b"UNSUB", [sid, max @ ..]) if max.len() < 2 => {
            let max = match max.first() {
                Some(text) => Some(number(text)? as u64),
                None => None,
            };
            whole(Up::Unsubscribe {
                sid: sid.to_vec(),
                max: max.filter(|max| *max > 0),
            })
        }
        (b"PUB", [subject, reply @ .., total]) if reply.len() < 2 => {
            payload(subject, reply.first(), None, number(total)?, rest)
                .map(|frame| frame.map(|(publish, len)| (Up::Publish(publish), len)))
        }
        (b"HPUB", [subject, reply @ .., headers, total]) if reply.len() < 2 => payload(
            subject,
            reply.first(),
            Some(number(headers)?),
            number(total)?,
            rest,
        )
        .map(|frame| frame.map(|(publish, len)| (Up::Publish(publish), len))),
        _ => None,
    }
}

fn parse_down(line: &[u8], rest: &[u8]) -> Option<Option<(Down, usize)>> {
    let words = words(line);
    let (verb, args) = words.split_first()?;
    let whole = |down| Some(Some((down, 0)));
    let text = |skip: usize| String::from_utf8(line[skip..].to_vec()).ok();
    match (*verb, args) {
        (b"PING", []) => whole(Down::Ping),
        (b"PONG", []) => whole(Down::Pong),
        (b"+OK", []) => whole(Down::Ok),
        (b"-ERR", [_, ..]) => {
            let text = text(b"-ERR ".len())?;
            let inner = text.strip_prefix('\'')?.strip_suffix('\'')?;
            whole(Down::Err(inner.to_owned()))
        }
        (b"INFO", [_, ..]) => whole(Down::Info(text(b"INFO ".len())?)),
        (b"MSG", [subject, sid, reply @ .., total]) if reply.len() < 2 => {
            payload(subject, reply.first(), None, number(total)?, rest)
                .map(|frame| frame.map(|(publish, len)| (message(sid, publish), len)))
        }
        (b"HMSG", [subject, sid, reply @ .., headers, total]) if reply.len() < 2 => payload(
            subject,
            reply.first(),
            Some(number(headers)?),
            number(total)?,
            rest,
        )
        .map(|frame| frame.map(|(publish, len)| (message(sid, publish), len))),
        _ => None,
    }
}

fn message(sid: &[u8], publish: Publish) -> Down {
    Down::Message {
        sid: sid.to_vec(),
        publish,
    }
}

fn payload(
    subject: &[u8],
    reply: Option<&&[u8]>,
    headers: Option<usize>,
    total: usize,
    rest: &[u8],
) -> Option<Option<(Publish, usize)>> {
    if headers.is_some_and(|headers| headers > total) {
        return None;
    }
    if rest.len() < total + 2 {
        return Some(None);
    }
    if &rest[total..total + 2] != b"\r\n" {
        return None;
    }
    let publish = Publish {
        subject: subject.to_vec(),
        reply: reply.map(|reply| reply.to_vec()),
        headers,
        payload: rest[..total].to_vec(),
    };
    Some(Some((publish, total + 2)))
}

fn words(line: &[u8]) -> Vec<&[u8]> {
    line.split(|byte| *byte == b' ')
        .filter(|word| !word.is_empty())
        .collect()
}

fn number(text: &[u8]) -> Option<usize> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Whether a published subject matches a subscription's pattern.
pub fn matches(pattern: &[u8], subject: &[u8]) -> bool {
    let mut pattern = pattern.split(|byte| *byte == b'.');
    let mut subject = subject.split(|byte| *byte == b'.');
    loop {
        match (pattern.next(), subject.next()) {
            (None, None) => return true,
            (Some(b">"), Some(_)) => return true,
            (Some(b"*"), Some(_)) => {}
            (Some(ours), Some(theirs)) if ours == theirs => {}
            _ => return false,
        }
    }
}

/// Whether a broker takes it as the subject of a subscription.
pub fn is_subscribable(subject: &[u8]) -> bool {
    let tokens: Vec<_> = subject.split(|byte| *byte == b'.').collect();
    let full = tokens.iter().position(|token| *token == b">");
    tokens.iter().all(|token| !token.is_empty()) && full.is_none_or(|at| at + 1 == tokens.len())
}

/// The value of a key in JSON that no nesting hides: `true`, a number or a string.
pub fn json_value<'a>(json: &'a str, key: &str) -> Option<&'a str> {
    let at = json.find(&format!("\"{key}\":"))? + key.len() + 3;
    let rest = json[at..].trim_start_matches('"');
    let end = rest.find(['"', ',', '}'])?;
    Some(&rest[..end])
}
