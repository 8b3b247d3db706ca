//! TLS on the links of a run: a handshake takes its time, stalls, fails, or is put off.
//!
//! Nothing is sealed: what counts is what natsmux says before a handshake is over.

use natsmux::config::TlsMode;
use natsmux::upstream::brokers::liveness::TrunkId;
use natsmux::upstream::brokers::roster::Failure;
use natsmux::upstream::trunk::LinkId;

use super::broker::Life;
use super::net::{ConnId, MS, Segment, Time, Way};
use super::world::{Event, World};

/// Pause between two looks at a broker that is frozen.
const FROZEN: Time = 20 * MS;
/// What a broker says in plain text that takes no more handshakes.
const THROTTLED: &[u8] = b"-ERR 'Connection throttling is active. Please try again later.'\r\n";

impl World {
    /// natsmux begins a handshake.
    pub fn secure(&mut self, trunk: TrunkId, link: LinkId) {
        let (host, trunk, link) = (self.host, trunk.0, link.0);
        let event = Event::Handshake { host, trunk, link };
        self.after(2 * self.plan.weather.latency, event);
    }

    /// The broker has answered a ClientHello, or never will.
    pub fn handshake(&mut self, trunk: u64, link: u32) {
        let (trunk, link) = (TrunkId(trunk), LinkId(link));
        let io = self.daemon.trunks.get(&trunk);
        let Some((conn, broker)) = io.and_then(|io| io.conn_of(link)) else {
            return;
        };
        match self.brokers[broker].life {
            Life::Dead => return,
            Life::Frozen => {
                let (host, trunk, link) = (self.host, trunk.0, link.0);
                return self.after(FROZEN, Event::Handshake { host, trunk, link });
            }
            Life::Up => {}
        }
        if !self.brokers[broker].clients.contains_key(&conn) {
            return;
        }
        let lot = if self.plan.is_flawless || self.calm {
            100
        } else {
            self.rng.below(100)
        };
        match lot {
            0..5 => self.oracle.mark("TLS: a handshake stalls"),
            5..10 => {
                self.oracle.mark("TLS: a handshake fails");
                self.link_failed(trunk, link, Failure::TlsHandshake);
            }
            10..15 => {
                self.oracle.mark("TLS: throttled");
                self.send(conn, Way::Down, Segment::Bytes(THROTTLED.to_vec()));
                self.send(conn, Way::Down, Segment::Fin);
            }
            _ => self.finish_handshake(trunk, link, broker, conn),
        }
    }

    fn finish_handshake(&mut self, trunk: TrunkId, link: LinkId, broker: usize, conn: ConnId) {
        self.oracle.mark("TLS: a link is secured");
        if let Some(io) = self.daemon.trunks.get_mut(&trunk) {
            io.note_secured(link);
        }
        self.with_trunk(trunk, |machine, cx| machine.handle_secured(link, cx));
        if self.plan.tls == TlsMode::First {
            let hello = format!("INFO {} \r\n", self.broker_info(broker, conn));
            self.send(conn, Way::Down, Segment::Bytes(hello.into_bytes()));
        }
    }

    /// Judges what natsmux writes to a link.
    pub fn judge_secrecy(&mut self, is_secured: bool, link: u64) {
        if self.plan.tls != TlsMode::Off && !is_secured {
            self.oracle
                .fail("TLS", format!("link {link} is written to in plain text"));
        }
    }
}
