//! Model components, each on a host of its own.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep_until, timeout};
use turmoil::net::TcpStream;

use super::frames::{Down, Splitter};
use super::plan::{Manner, Plan};
use super::rng::Rng;
use super::verdict::Verdict;

/// How long an answer may take once everything is well.
const PATIENCE: Duration = Duration::from_secs(5);

/// A component.
pub struct Component {
    pub no: usize,
    pub manner: Manner,
    pub plan: Plan,
    pub rng: Rng,
    pub verdict: Verdict,
}

struct Talk {
    stream: TcpStream,
    input: Splitter,
    /// Publishes that it wrote.
    sent: u64,
    /// For each PING that was not answered, the publishes before it.
    pings: Vec<u64>,
    /// The last publish heard of each publisher.
    heard: BTreeMap<usize, u64>,
    /// Its own last publish came back.
    echoed: u64,
    ended: bool,
}

impl Component {
    /// Its life, up to the end of the schedule.
    pub async fn live(mut self) -> turmoil::Result {
        let begin = Instant::now();
        let calm_at = begin + self.plan.calm_at;
        let mut talk = self.connect().await?;
        let end = match self.manner {
            Manner::Steady => calm_at,
            _ => begin + Duration::from_millis(self.rng.range(300, 4_000)),
        };
        while Instant::now() < end {
            self.act(&mut talk).await?;
            let pace = self.rng.below(self.plan.pace.as_millis() as u64 + 1);
            let until = Instant::now() + Duration::from_millis(pace);
            self.listen(&mut talk, until).await?;
            if talk.ended {
                self.verdict.fail("I15 unbroken", self.name("was closed"));
                return Ok(());
            }
        }
        match self.manner {
            Manner::Steady => self.last_questions(talk).await,
            Manner::Garbage => self.break_the_protocol(talk).await,
            Manner::Dies => {
                self.verdict.mark("a component dies in a frame");
                Ok(talk.stream.write_all(b"PUB to.0 100\r\nhalf of").await?)
            }
            Manner::HalfCloses => self.half_close(talk).await,
        }
    }

    fn name(&self, what: &str) -> String {
        format!("component {} {what}", self.no)
    }

    async fn connect(&mut self) -> io::Result<Talk> {
        // natsmux takes nobody before it has asked a broker, or 300 ms have passed (R17).
        let mut patience = 100;
        let stream = loop {
            match TcpStream::connect(("natsmux", 4222)).await {
                Err(_) if patience > 0 => patience -= 1,
                connected => break connected?,
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let mut talk = Talk {
            stream,
            input: Splitter::default(),
            sent: 0,
            pings: Vec::new(),
            heard: BTreeMap::new(),
            echoed: 0,
            ended: false,
        };
        let hello = format!(
            "CONNECT {{\"verbose\":false,\"pedantic\":false,\"protocol\":1}}\r\nPING\r\nSUB to.{} 1\r\nSUB work q 2\r\n",
            self.no
        );
        talk.pings.push(0);
        talk.stream.write_all(hello.as_bytes()).await?;
        Ok(talk)
    }

    async fn act(&mut self, talk: &mut Talk) -> io::Result<()> {
        let mut bytes = Vec::new();
        for _ in 0..self.rng.range(1, 6) {
            match self.rng.below(8) {
                0 => {
                    bytes.extend_from_slice(b"PING\r\n");
                    talk.pings.push(talk.sent);
                }
                1 => {
                    let temporary = self.rng.range(10, 99);
                    let line =
                        format!("SUB to.none.{temporary} {temporary}\r\nUNSUB {temporary}\r\n");
                    bytes.extend_from_slice(line.as_bytes());
                }
                _ => self.publish(talk, &mut bytes),
            }
        }
        // Often in two parts, so that frames come in pieces.
        let cut = self.rng.below(bytes.len() as u64 + 1) as usize;
        talk.stream.write_all(&bytes[..cut]).await?;
        if self.rng.percent(30) {
            tokio::time::sleep(Duration::from_millis(self.rng.range(1, 30))).await;
        }
        talk.stream.write_all(&bytes[cut..]).await
    }

    fn publish(&mut self, talk: &mut Talk, bytes: &mut Vec<u8>) {
        let subject = match self.rng.below(6) {
            0 => "work".to_owned(),
            _ => format!("to.{}", self.rng.below(self.plan.manners.len() as u64)),
        };
        self.publish_to(&subject, talk, bytes);
    }

    fn publish_to(&mut self, subject: &str, talk: &mut Talk, bytes: &mut Vec<u8>) {
        let size = if self.rng.percent(5) {
            self.rng.below(9_000)
        } else {
            0
        };
        let payload = format!(
            "{} {} {:size$}",
            self.no,
            talk.sent,
            "",
            size = size as usize
        );
        let frame = format!("PUB {subject} {}\r\n{payload}\r\n", payload.len());
        bytes.extend_from_slice(frame.as_bytes());
        if self.manner == Manner::Steady {
            self.verdict.published((self.no, talk.sent));
        }
        talk.sent += 1;
    }

    /// Reads until a point in time, or the end.
    async fn listen(&self, talk: &mut Talk, until: Instant) -> io::Result<()> {
        let mut buffer = [0; 4096];
        while !talk.ended {
            tokio::select! {
                biased;
                read = talk.stream.read(&mut buffer) => match read {
                    Ok(count) if count > 0 => self.hear(talk, &buffer[..count]),
                    _ => talk.ended = true,
                },
                () = sleep_until(until) => return Ok(()),
            }
        }
        Ok(())
    }

    fn hear(&self, talk: &mut Talk, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        self.verdict.note(&format!(
            "component {} <- {:.300}",
            self.no,
            text.escape_debug()
        ));
        talk.input.feed(bytes);
        loop {
            match talk.input.next_down() {
                Ok(Some(frame)) => self.heard(talk, frame),
                Ok(None) => return,
                Err(what) => return self.verdict.fail("I3 framing", self.name(&what)),
            }
        }
    }

    fn heard(&self, talk: &mut Talk, frame: Down) {
        match frame {
            Down::Pong if talk.pings.is_empty() => {
                self.verdict
                    .fail("R1 PONG", self.name("heard one too many"));
            }
            Down::Pong => {
                let count = talk.pings.remove(0);
                if self.manner == Manner::Steady {
                    self.verdict.pong(self.no, count);
                }
            }
            Down::Message { sid, publish } => {
                let own = format!("to.{}", self.no).into_bytes();
                let wanted = match &*sid {
                    b"1" => publish.subject == own,
                    b"2" => publish.subject == b"work",
                    _ => false,
                };
                if !wanted {
                    let text = format!("got {publish:?} for {sid:?}");
                    return self.verdict.fail("I1 isolation", self.name(&text));
                }
                let text = String::from_utf8_lossy(&publish.payload);
                let mut numbers = text.split(' ').map_while(|word| word.parse::<u64>().ok());
                let (Some(from), Some(number)) = (numbers.next(), numbers.next()) else {
                    return self.verdict.fail("I3 framing", self.name("got no number"));
                };
                let last = talk.heard.entry(from as usize).or_insert(0);
                *last = (*last).max(number);
                if from as usize == self.no {
                    talk.echoed = talk.echoed.max(number + 1);
                }
            }
            Down::Err(text) if self.manner != Manner::Garbage => {
                self.verdict.fail("I15 unbroken", self.name(&text));
            }
            Down::Ok => self.verdict.fail("R20", self.name("heard +OK")),
            Down::Info(_) | Down::Ping | Down::Err(_) => {}
        }
    }

    /// Everything must be answered once faults are over, and end with the drain.
    async fn last_questions(mut self, mut talk: Talk) -> turmoil::Result {
        talk.pings.push(talk.sent);
        talk.stream.write_all(b"PING\r\n").await?;
        let until = Instant::now() + PATIENCE;
        self.listen(&mut talk, until).await?;
        if !talk.pings.is_empty() {
            self.verdict
                .fail("I16 liveness", self.name("is owed a PONG"));
        }
        let mut bytes = Vec::new();
        let own = format!("to.{}", self.no);
        self.publish_to(&own, &mut talk, &mut bytes);
        talk.stream.write_all(&bytes).await?;
        let until = Instant::now() + Duration::from_secs(1);
        self.listen(&mut talk, until).await?;
        if talk.echoed != talk.sent {
            self.verdict
                .fail("I16 liveness", self.name("isn't subscribed"));
        }
        let until = Instant::now() + 2 * PATIENCE;
        self.listen(&mut talk, until).await?;
        if !talk.ended {
            self.verdict.fail("drain", self.name("was not closed"));
        }
        Ok(())
    }

    async fn break_the_protocol(self, mut talk: Talk) -> turmoil::Result {
        self.verdict.mark("garbage");
        talk.stream.write_all(b"HELLO there\r\n").await?;
        let until = Instant::now() + PATIENCE;
        self.listen(&mut talk, until).await?;
        if !talk.ended {
            self.verdict
                .fail("I15", self.name("sent garbage and lives"));
        }
        Ok(())
    }

    /// What came before the half-close is answered, and then natsmux closes too.
    async fn half_close(self, mut talk: Talk) -> turmoil::Result {
        self.verdict.mark("a half-close");
        talk.stream.write_all(b"PING\r\n").await?;
        talk.pings.push(talk.sent);
        talk.stream.shutdown().await?;
        // A broker may be away for as long as faults last, and PONGs wait for it.
        let patience = self.plan.calm_at + 2 * PATIENCE;
        let until = Instant::now() + patience;
        if timeout(patience, self.listen(&mut talk, until))
            .await
            .is_err()
            || !talk.ended
        {
            self.verdict.fail("half-close", self.name("was not closed"));
        } else if !talk.pings.is_empty() {
            self.verdict.fail("half-close", self.name("is owed a PONG"));
        }
        Ok(())
    }
}
