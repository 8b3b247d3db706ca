//! The table of subscriptions against a naive one.

use std::collections::BTreeMap;

use natsmux::ledger::{
    Seen, SessionId, Spent, Subscribed, Subscriptions, Unsubscribed, UpstreamSid,
};

/// What a subscription is, to someone who knows nothing of slots and generations.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Plain {
    upstream: String,
    subject: Vec<u8>,
    delivered: u64,
    base: u64,
    max: u64,
}

type Key = (u32, Vec<u8>);

/// The operations that `data` spells, three bytes each, on both tables.
pub fn subscriptions(data: &[u8]) {
    let mut table = Subscriptions::default();
    let mut model: BTreeMap<Key, Plain> = BTreeMap::new();
    let mut gone: Vec<UpstreamSid> = Vec::new();
    let mut pings = 1;
    for word in data.chunks_exact(3) {
        let (session, sid) = (u32::from(word[1] % 3), vec![b'a' + word[2] % 5]);
        let key = (session, sid.clone());
        match word[0] % 8 {
            0 | 1 => {
                let subject = vec![b'A' + word[2] % 4];
                let entered = table.subscribe(SessionId(session), &subject, None, &sid, pings);
                match (entered, model.get(&key)) {
                    (Subscribed::Duplicate { upstream, .. }, Some(known)) => {
                        assert_eq!(text(upstream), known.upstream);
                    }
                    (Subscribed::New(upstream), None) => {
                        let upstream = text(upstream);
                        let known = model.values().any(|plain| plain.upstream == upstream);
                        assert!(!known, "{upstream} is taken");
                        let plain = Plain {
                            upstream,
                            subject,
                            delivered: 0,
                            base: 0,
                            max: 0,
                        };
                        model.insert(key, plain);
                    }
                    other => panic!("{other:?}"),
                }
            }
            2 => {
                let max = u64::from(word[2] >> 4);
                let ended = table.unsubscribe(SessionId(session), &sid, Some(max), pings);
                match (ended, model.get_mut(&key)) {
                    (Unsubscribed::Unknown, None) => {}
                    (Unsubscribed::Limited(_, left), Some(plain)) => {
                        assert!(max > plain.delivered);
                        plain.max = max;
                        assert_eq!(left, max - plain.base);
                    }
                    (Unsubscribed::Retired(upstream), Some(plain)) => {
                        assert!(max <= plain.delivered);
                        assert_eq!(text(upstream), plain.upstream);
                        gone.push(upstream);
                        model.remove(&key);
                    }
                    other => panic!("{other:?}"),
                }
            }
            3 | 4 => {
                let Some(plain) = model.get_mut(&key) else {
                    continue;
                };
                let upstream = UpstreamSid::parse(plain.upstream.as_bytes()).expect("its own");
                let mut heard = Vec::new();
                let ended = table.deliver(upstream, true, Seen(pings), |session, sid| {
                    heard.push((session.0, sid.to_vec()));
                });
                assert_eq!(heard, [(session, sid)]);
                plain.delivered += 1;
                let spent = plain.max > 0 && plain.delivered >= plain.max;
                let expected = if spent {
                    Spent::One(upstream)
                } else {
                    Spent::Nothing
                };
                assert_eq!(ended, Some(expected));
                if spent {
                    gone.push(upstream);
                    model.remove(&key);
                }
            }
            5 => {
                pings += 1;
                table.prove(pings);
                for upstream in gone.drain(..) {
                    table.forget(upstream);
                    let heard = table.deliver(upstream, true, Seen(pings), |_, _| {});
                    assert_eq!(heard, None, "forgotten");
                }
            }
            6 => {
                table.forget_retired();
                gone.clear();
                table.rebase();
                let replayed: Vec<_> = table
                    .iter()
                    .map(|(upstream, sub)| (text(upstream), sub.subject.to_vec(), sub.left))
                    .collect();
                table.replayed(pings);
                for plain in model.values_mut() {
                    plain.base = plain.delivered;
                    let left = (plain.max > 0).then(|| plain.max - plain.base);
                    let sent = (plain.upstream.clone(), plain.subject.clone(), left);
                    assert!(replayed.contains(&sent), "{sent:?} of {replayed:?}");
                }
                assert_eq!(replayed.len(), model.len(), "each once");
            }
            _ => {
                let retired = table.retire_session(SessionId(session), pings).unsubscribe;
                let before = model.len();
                model.retain(|(owner, _), _| *owner != session);
                assert_eq!(retired.len(), before - model.len());
                gone.extend(retired);
            }
        }
        assert_eq!(table.len(), model.len());
        let any = model.keys().any(|(owner, _)| *owner == session);
        assert_eq!(table.has_any(SessionId(session)), any);
    }
}

fn text(upstream: UpstreamSid) -> String {
    String::from_utf8(upstream.text().as_bytes().to_vec()).expect("digits")
}
