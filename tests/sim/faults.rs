//! What goes wrong, and how it ends.

use super::broker::Life;
use super::component::HEALING;
use super::net::{ConnId, Ends, MS, SECOND, Segment, Time, Way};
use super::plan::SMALL_PAYLOAD;
use super::world::{Event, World};

/// What a broker says whose user's credentials ran out.
pub const EXPIRED: &str = "User Authentication Expired";

impl World {
    /// One fault, chosen by chance.
    pub fn fault(&mut self) {
        if self.calm {
            return;
        }
        let broker = self.busy_broker();
        match self.rng.below(14) {
            0..4 => self.kill(broker),
            4 => self.freeze(broker),
            5 => self.duck(broker),
            6 => {
                self.trace(|| format!("broker {broker} finds connections stale"));
                for conn in self.links_of(broker) {
                    self.broker_close(broker, conn, Some("Stale Connection"));
                }
            }
            7 => self.cut_a_link(),
            8 => self.stall_a_pipe(),
            9 => self.lose_a_direction(),
            10 => {
                self.trace(|| format!("broker {broker} is full"));
                self.set_full(broker, true);
                for conn in self.links_of(broker) {
                    self.broker_close(broker, conn, None);
                }
            }
            11 if self.plan.identities && self.rng.percent(60) => self.remove_user(broker),
            11 if self.plan.auth => {
                self.trace(|| format!("broker {broker} refuses everybody"));
                self.brokers[broker].refuses = true;
                self.brokers[broker].willing_since = None;
                // A user that a reload removed, or credentials that ran out for good (R36).
                let mut text = *self.rng.pick(&["Authorization Violation", EXPIRED]);
                if self.plan.renewals > 0 {
                    // There may be newer ones.
                    text = "Authorization Violation";
                }
                for conn in self.links_of(broker) {
                    let host = self.conns[&conn].host;
                    if text == EXPIRED {
                        self.oracle.mark("credentials ran out");
                        self.expired_at.insert(host);
                    }
                    self.broker_close(broker, conn, Some(text));
                }
            }
            12 => self.broker_tell_all(broker, "PING\r\n"),
            _ => self.pause(),
        }
    }

    /// A broker with links, where there is one.
    fn busy_broker(&mut self) -> usize {
        let busy: Vec<usize> = (0..self.brokers.len())
            .filter(|no| !self.brokers[*no].clients.is_empty())
            .collect();
        if busy.is_empty() || self.rng.percent(20) {
            return self.rng.below(self.brokers.len() as u64) as usize;
        }
        *self.rng.pick(&busy)
    }

    fn links_of(&self, broker: usize) -> Vec<ConnId> {
        self.brokers[broker].clients.keys().copied().collect()
    }

    pub fn kill(&mut self, no: usize) {
        if self.brokers[no].life == Life::Dead {
            return;
        }
        self.trace(|| format!("broker {no} is killed"));
        self.oracle.mark("broker killed");
        self.broker_kill(no);
        if self.brokers.iter().all(|broker| broker.life == Life::Dead) {
            self.oracle.mark("no broker alive");
        }
        self.brokers[no].plan += 1;
        let plan = self.brokers[no].plan;
        let pause = self.rng.range(20 * MS, 2 * SECOND);
        self.after(pause, Event::Restart { broker: no, plan });
    }

    /// A broker that is dead starts again.
    pub fn restart(&mut self, no: usize, plan: u64) {
        if self.brokers[no].plan != plan {
            return;
        }
        self.trace(|| format!("broker {no} starts"));
        let now = self.now;
        let broker = &mut self.brokers[no];
        broker.life = Life::Up;
        broker.lame_duck = false;
        broker.starts += 1;
        broker.willing_since = (!broker.full && !broker.refuses).then_some(now);
        if !self.calm && !self.plan.is_flawless && self.rng.percent(20) {
            // Its configuration was changed meanwhile.
            self.plan.max_payload[no] = SMALL_PAYLOAD;
        }
    }

    fn freeze(&mut self, no: usize) {
        if self.brokers[no].life != Life::Up {
            return;
        }
        self.trace(|| format!("broker {no} freezes"));
        self.oracle.mark("broker frozen");
        let broker = &mut self.brokers[no];
        broker.life = Life::Frozen;
        broker.willing_since = None;
        broker.plan += 1;
        let plan = broker.plan;
        let pause = self.rng.range(20 * MS, 4 * SECOND);
        self.after(pause, Event::Thaw { broker: no, plan });
    }

    pub fn thaw(&mut self, no: usize, plan: u64) {
        if self.brokers[no].plan != plan {
            return;
        }
        self.trace(|| format!("broker {no} thaws"));
        self.brokers[no].life = Life::Up;
        let broker = &mut self.brokers[no];
        let is_willing = !broker.full && !broker.refuses && !broker.lame_duck;
        broker.willing_since = is_willing.then_some(self.now);
        for conn in std::mem::take(&mut self.brokers[no].backlog) {
            if self.conns.contains_key(&conn) {
                self.broker_accept(no, conn);
            }
        }
        let conns: Vec<ConnId> = self.conns.iter().filter(|(_, conn)| matches!(conn.ends, Ends::NatsmuxToBroker { broker, .. } if broker == no)).map(|(id, _)| *id).collect();
        for conn in conns {
            self.broker_read(no, conn);
        }
    }

    /// A broker with links is a lame duck, where another has been there for long enough to take
    /// them.
    pub fn duck_one(&mut self) {
        let no = self.busy_broker();
        let long = self.now.saturating_sub(100 * MS);
        let takes = |broker: &super::broker::Broker| {
            broker.willing_since.is_some_and(|since| since <= long)
        };
        let mut others = self.brokers.iter().enumerate();
        let has_other = others.any(|(other, broker)| other != no && takes(broker));
        if has_other && self.brokers[no].is_heard_by_all() {
            self.oracle.mark("move: a lame duck and no fault");
            self.duck(no);
        }
    }

    /// Lame duck: says so, takes no more connections, and ends after a while.
    fn duck(&mut self, no: usize) {
        if self.brokers[no].life != Life::Up || self.brokers[no].lame_duck {
            return;
        }
        self.trace(|| format!("broker {no} is a lame duck"));
        self.brokers[no].lame_duck = true;
        self.brokers[no].willing_since = None;
        let info = format!("INFO {} \r\n", self.broker_info(no, 0));
        self.broker_tell_all(no, &info);
        self.brokers[no].plan += 1;
        let plan = self.brokers[no].plan;
        let least = if self.plan.is_flawless {
            SECOND
        } else {
            50 * MS
        };
        let grace = self.rng.range(least, 2 * SECOND);
        self.after(grace, Event::Leave { broker: no, plan });
    }

    /// The lame duck's grace is over.
    pub fn leave(&mut self, no: usize, plan: u64) {
        if self.brokers[no].plan == plan {
            for conn in self.links_of(no) {
                self.broker_close(no, conn, None);
            }
            self.kill(no);
        }
    }

    fn a_link(&mut self) -> Option<ConnId> {
        let links: Vec<ConnId> = self
            .conns
            .iter()
            .filter(|(_, conn)| matches!(conn.ends, Ends::NatsmuxToBroker { .. }))
            .map(|(id, _)| *id)
            .collect();
        (!links.is_empty()).then(|| *self.rng.pick(&links))
    }

    /// Both ends see the connection break; what was on its way arrives in part.
    fn cut_a_link(&mut self) {
        let Some(conn) = self.a_link() else {
            return;
        };
        self.trace(|| format!("connection {conn} is cut"));
        self.oracle.mark("link cut");
        self.cut(conn, Way::Down, Segment::Reset);
        self.cut(conn, Way::Up, Segment::Reset);
        if self.rng.percent(50)
            && let Some(conn) = self.conns.get_mut(&conn)
        {
            conn.write_dead = true;
        }
    }

    fn stall_a_pipe(&mut self) {
        let Some(conn) = self.a_link() else {
            return;
        };
        let until = self.now + self.rng.range(10 * MS, 3 * SECOND);
        let way = *self.rng.pick(&[Way::Up, Way::Down]);
        self.trace(|| format!("connection {conn} stalls {way:?} until {until}"));
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.pipe(way).stalled_until = until;
        }
    }

    fn lose_a_direction(&mut self) {
        let Some(conn) = self.a_link() else {
            return;
        };
        let way = *self.rng.pick(&[Way::Up, Way::Down]);
        self.trace(|| format!("connection {conn} loses {way:?}"));
        self.oracle.mark("one direction lost");
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.pipe(way).lost = true;
        }
    }

    fn set_full(&mut self, no: usize, full: bool) {
        self.brokers[no].full = full;
        self.brokers[no].willing_since = None;
    }

    /// natsmux doesn't get the processor for a while.
    fn pause(&mut self) {
        let pause = self.rng.range(MS, 3 * SECOND);
        let host = self.rng.below(self.plan.hosts as u64) as usize;
        self.focus(host);
        self.trace(|| format!("natsmux {host} pauses for {} ms", pause / MS));
        self.oracle.mark("natsmux paused");
        self.daemon.paused_until = self.now + pause;
        self.after(pause, Event::Resume { host });
    }

    /// The end of the safety phase: everything is well from now on.
    pub fn calm_down(&mut self) {
        self.trace(|| "faults are over".into());
        self.calm = true;
        for host in 0..self.plan.hosts {
            self.focus(host);
            self.daemon.paused_until = 0;
            self.touch(host);
        }
        for no in 0..self.brokers.len() {
            let plan = self.brokers[no].plan;
            self.set_full(no, false);
            self.brokers[no].refuses = false;
            self.brokers[no].removed.clear();
            match self.brokers[no].life {
                Life::Dead => self.restart(no, plan),
                Life::Frozen => self.thaw(no, plan),
                Life::Up => {}
            }
            // A lame duck may finish: it is no fault.
            if self.brokers[no].lame_duck {
                self.leave(no, plan);
                let plan = self.brokers[no].plan;
                self.restart(no, plan);
            }
            self.brokers[no].plan += 1;
        }
        self.heal_pipes();
        self.components_ask();
        let at: Time = self.now + HEALING;
        self.at(at, Event::Judge);
    }

    fn heal_pipes(&mut self) {
        let now = self.now;
        let mut waiting = Vec::new();
        for (id, conn) in &mut self.conns {
            for way in [Way::Up, Way::Down] {
                let pipe = conn.pipe(way);
                pipe.stalled_until = pipe.stalled_until.min(now);
                if std::mem::take(&mut pipe.lost) {
                    waiting.extend(pipe.in_flight.iter().map(|_| (*id, way)));
                }
            }
        }
        for (conn, way) in waiting {
            self.after(MS, Event::Arrive { conn, way });
        }
    }
}
