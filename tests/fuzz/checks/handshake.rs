//! What a broker, or somebody in its place, says in plain text where TLS is to begin.

use std::hash::RandomState;
use std::rc::Rc;
use std::time::Duration;

use natsmux::clock::Instant;
use natsmux::config::{Admit, TlsMode};
use natsmux::net::{Outbox, Retention};
use natsmux::proto::connect::ConnectInfo;
use natsmux::upstream::brokers::admission::Admission;
use natsmux::upstream::brokers::liveness::TrunkId;
use natsmux::upstream::brokers::roster::Placement;
use natsmux::upstream::trunk::{Action, Trunk};
use natsmux::upstream::{Budgets, Bus, Roster, Settings, Turn};

/// An INFO that asks for the handshake.
const INFO: &[u8] = b"INFO {\"server_id\":\"a\",\"max_payload\":1024,\"tls_required\":true}\r\n";

/// Whatever it is, in however many pieces, the session lives on, nothing is written to the link,
/// and no PONG reaches the component. The first byte says where the rest is cut, and whether a
/// good INFO comes first.
pub fn handshake(data: &[u8]) {
    let Some((&choice, bytes)) = data.split_first() else {
        return;
    };
    let now = Instant::now();
    let addrs = ["tls://10.0.0.1:4222".parse().expect("an address")];
    let mut roster = Roster::new(&addrs, Placement::default(), Duration::from_secs(3), 1, now);
    roster.set_tls(TlsMode::Required);
    let settings = Settings {
        admit: Admit::Always,
        ..Settings::default()
    };
    let budgets = Budgets::new(1 << 20, 1 << 20, 1 << 20);
    let mut bus = Bus::new(
        settings,
        roster,
        Admission::new(RandomState::new()),
        budgets,
        now,
    );
    let connect = ConnectInfo::parse(br#"{"user":"u","pass":"secret"}"#).expect("options");
    let mut trunk = Trunk::new(TrunkId(0), Rc::new(connect));
    let out = Outbox::new(Retention::UntilWritten);
    let session = trunk.attach(out, true, &mut Turn::new(now, &mut bus));
    trunk.ping(session, &mut Turn::new(now, &mut bus));
    let mut pieces: Vec<&[u8]> = Vec::new();
    if choice & 1 == 1 {
        pieces.push(INFO);
    }
    let (first, second) = bytes.split_at(bytes.len() * usize::from(choice) / 256);
    pieces.extend([first, second]);
    let mut open = None;
    for piece in pieces {
        while let Some(action) = trunk.poll_action() {
            match action {
                Action::Dial { link, .. } => {
                    trunk.handle_connected(link, &mut Turn::new(now, &mut bus));
                    open = Some(link);
                }
                Action::Close { .. } => open = None,
                _ => {}
            }
        }
        if let Some(link) = open {
            trunk.handle_link_bytes(link, piece, &mut Turn::new(now, &mut bus));
            let written = trunk.link_out(link).is_some_and(|out| out.end() > 0);
            assert!(!written, "plain text is answered");
        }
    }
    assert!(
        trunk.closing(session).is_none(),
        "plain text ends a session"
    );
}
