//! The table of a trunk's subscriptions.

use super::*;

fn replay(table: &mut Subscriptions) -> impl Iterator<Item = (UpstreamSid, &Subscription)> {
    table.rebase();
    table.iter()
}

const ALICE: SessionId = SessionId(0);
const BOB: SessionId = SessionId(1);

fn new(table: &mut Subscriptions, session: SessionId, subject: &str, sid: &str) -> UpstreamSid {
    match table.subscribe(session, subject.as_bytes(), None, sid.as_bytes(), 1) {
        Subscribed::New(upstream) => upstream,
        Subscribed::Duplicate(_) => panic!("{sid} is taken"),
    }
}

#[test]
fn a_session_gets_back_exactly_its_own_sid() {
    let mut table = Subscriptions::default();
    let a = new(&mut table, ALICE, "a", "007");
    let b = new(&mut table, BOB, "a", "007");
    assert_ne!(a, b);
    let recipient = table.deliver(b, true).expect("live");
    assert_eq!((recipient.session, recipient.sid), (BOB, &b"007"[..]));
}

#[test]
fn a_live_sid_keeps_its_first_subject() {
    let mut table = Subscriptions::default();
    let first = new(&mut table, ALICE, "a", "1");
    assert_eq!(
        table.subscribe(ALICE, b"b", None, b"1", 1),
        Subscribed::Duplicate(first)
    );
    assert_eq!(table.len(), 1);
}

#[test]
fn max_counts_from_the_sub_and_removes_exactly_there() {
    let mut table = Subscriptions::default();
    let sid = new(&mut table, ALICE, "a", "1");
    for _ in 0..3 {
        assert!(table.deliver(sid, true).is_some());
    }
    assert_eq!(
        table.unsubscribe(ALICE, b"1", Some(5)),
        Unsubscribed::Limited(sid, 5)
    );
    assert!(table.deliver(sid, true).is_some());
    assert!(!table.take_spent());
    assert!(table.deliver(sid, true).is_some());
    assert!(table.take_spent());
    assert!(table.is_empty());
    table.forget(sid);
    assert!(table.deliver(sid, true).is_none());
}

#[test]
fn what_was_sent_before_the_broker_got_to_the_max_is_still_delivered() {
    let mut table = Subscriptions::default();
    let sid = new(&mut table, ALICE, "a", "1");
    table.unsubscribe(ALICE, b"1", Some(1));
    assert!(table.deliver(sid, true).is_some());
    assert!(table.deliver(sid, true).is_some());
    assert_eq!(replay(&mut table).count(), 0);
}

#[test]
fn a_sid_is_uncertain_while_only_the_broker_knows() {
    let mut table = Subscriptions::default();
    new(&mut table, ALICE, "a", "1");
    assert!(table.is_uncertain(ALICE, b"1", 0));
    assert!(!table.is_uncertain(ALICE, b"1", 1));
    assert!(!table.is_uncertain(ALICE, b"2", 0));
    table.unsubscribe(ALICE, b"1", Some(9));
    assert!(table.is_uncertain(ALICE, b"1", 1));
}

#[test]
fn a_max_that_is_reached_already_removes_at_once() {
    let mut table = Subscriptions::default();
    let sid = new(&mut table, ALICE, "a", "1");
    for _ in 0..3 {
        table.deliver(sid, true);
    }
    assert_eq!(
        table.unsubscribe(ALICE, b"1", Some(3)),
        Unsubscribed::Retired(sid)
    );
}

#[test]
fn a_no_responders_status_does_not_count() {
    let mut table = Subscriptions::default();
    let sid = new(&mut table, ALICE, "a", "1");
    table.unsubscribe(ALICE, b"1", Some(1));
    assert!(table.deliver(sid, false).is_some());
    assert!(!table.take_spent());
    assert!(table.deliver(sid, true).is_some());
    assert!(table.take_spent());
}

#[test]
fn replay_tells_the_new_broker_what_remains() {
    let mut table = Subscriptions::default();
    let sid = new(&mut table, ALICE, "a", "1");
    table.deliver(sid, true);
    table.unsubscribe(ALICE, b"1", Some(5));
    let remaining: Vec<_> = replay(&mut table).map(|(_, sub)| sub.left()).collect();
    assert_eq!(remaining, [Some(4)]);
    table.deliver(sid, true);
    assert_eq!(
        table.unsubscribe(ALICE, b"1", Some(7)),
        Unsubscribed::Limited(sid, 6)
    );
    let remaining: Vec<_> = replay(&mut table).map(|(_, sub)| sub.left()).collect();
    assert_eq!(remaining, [Some(5)]);
}

#[test]
fn what_was_sent_before_the_unsub_is_still_delivered() {
    let mut table = Subscriptions::default();
    let sid = new(&mut table, ALICE, "a", "1");
    assert_eq!(
        table.unsubscribe(ALICE, b"1", None),
        Unsubscribed::Retired(sid)
    );
    assert!(table.deliver(sid, true).is_some());
    table.forget(sid);
    assert!(table.deliver(sid, true).is_none());
}

#[test]
fn a_late_message_does_not_reach_the_sids_next_user() {
    let mut table = Subscriptions::default();
    let old = new(&mut table, ALICE, "a", "1");
    table.unsubscribe(ALICE, b"1", None);
    let new_sid = new(&mut table, ALICE, "b", "1");
    assert!(table.deliver(old, true).is_none());
    assert!(table.deliver(new_sid, true).is_some());
}

#[test]
fn an_upstream_sid_is_never_used_twice() {
    let mut table = Subscriptions::default();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..100 {
        let sid = new(&mut table, ALICE, "a", "1");
        assert!(seen.insert(sid));
        table.unsubscribe(ALICE, b"1", None);
        table.forget(sid);
    }
    assert_eq!(table.slots.len(), 1);
}

#[test]
fn retiring_a_session_leaves_the_others() {
    let mut table = Subscriptions::default();
    let a = new(&mut table, ALICE, "a", "1");
    new(&mut table, BOB, "a", "1");
    assert_eq!(table.retire_session(ALICE), [a]);
    assert!(!table.has_any(ALICE));
    assert!(table.has_any(BOB));
}

#[test]
fn the_newest_of_equal_subscriptions_is_the_rejected_one() {
    let mut table = Subscriptions::default();
    new(&mut table, ALICE, "a", "1");
    new(&mut table, BOB, "a", "1");
    assert_eq!(
        table.reject(b"a", None).map(|(session, _)| session),
        Some(BOB)
    );
    assert_eq!(table.reject(b"a", Some(b"g")), None);
    assert_eq!(table.len(), 1);
}

#[test]
fn a_subscription_keeps_its_three_texts_apart() {
    let mut table = Subscriptions::default();
    table.subscribe(ALICE, b"a.*", Some(b"work"), b"007", 1);
    table.subscribe(ALICE, b"b", None, b"8", 1);
    let texts: Vec<_> = replay(&mut table)
        .map(|(_, sub)| (sub.subject(), sub.queue_group(), sub.sid()))
        .collect();
    let (group, none): (Option<&[u8]>, Option<&[u8]>) = (Some(b"work"), None);
    assert_eq!(
        texts,
        [
            (&b"a.*"[..], group, &b"007"[..]),
            (&b"b"[..], none, &b"8"[..])
        ]
    );
}

#[test]
fn only_live_subscriptions_are_counted_named_and_limited() {
    let mut table = Subscriptions::default();
    assert!(table.is_empty());
    let plain = new(&mut table, ALICE, "a", "1");
    let limited = new(&mut table, ALICE, "b", "2");
    let gone = new(&mut table, ALICE, "c", "3");
    table.unsubscribe(ALICE, b"2", Some(3));
    table.unsubscribe(ALICE, b"3", Some(3));
    table.unsubscribe(ALICE, b"3", None);
    assert_eq!((table.len(), table.is_empty()), (2, false));
    assert_eq!(table.live_sids().collect::<Vec<_>>(), [plain, limited]);
    let limits = [plain, limited, gone].map(|sid| table.is_limited(sid));
    assert_eq!(limits, [false, true, false]);
    let remaining: Vec<_> = replay(&mut table).map(|(_, sub)| sub.left()).collect();
    assert_eq!(remaining, [None, Some(3)]);
}

#[test]
fn what_a_pong_proves_is_not_what_a_broker_refuses() {
    let mut table = Subscriptions::default();
    let subscribe = |table: &mut Subscriptions, sid: &str, covered_by| {
        table.subscribe(ALICE, b"a", None, sid.as_bytes(), covered_by);
    };
    subscribe(&mut table, "1", 1);
    subscribe(&mut table, "2", 2);
    subscribe(&mut table, "3", 3);
    table.prove(2);
    assert_eq!(
        table.reject_newest().map(|(session, _)| session),
        Some(ALICE),
        "the third"
    );
    assert_eq!(table.reject_newest(), None, "two are proven");
    assert_eq!(table.len(), 2);
    let left: Vec<_> = replay(&mut table)
        .map(|(_, sub)| sub.sid().to_vec())
        .collect();
    assert_eq!(left, [b"1", b"2"]);
    // Sent again on a new link, both may be refused again.
    table.replayed(9);
    table.prove(8);
    assert_eq!(
        table.reject_newest().map(|(session, _)| session),
        Some(ALICE)
    );
    table.prove(9);
    assert_eq!(table.reject_newest(), None);
    assert_eq!(table.len(), 1);
}

#[test]
fn the_newest_that_is_still_there_is_the_one_that_was_too_many() {
    let mut table = Subscriptions::default();
    new(&mut table, BOB, "a", "1");
    let retired = new(&mut table, ALICE, "b", "2");
    table.unsubscribe(ALICE, b"2", None);
    assert_eq!(
        table.reject_newest().map(|(session, _)| session),
        Some(BOB),
        "the other is over"
    );
    table.forget(retired);
    // Its slot's next user isn't meant by what was said of the former.
    new(&mut table, ALICE, "c", "3");
    table.prove(1);
    assert_eq!(table.reject_newest(), None);
    assert_eq!(table.len(), 1);
}

#[test]
fn a_refusal_by_sid_is_about_that_generation_only() {
    let mut table = Subscriptions::default();
    let old = new(&mut table, ALICE, "a", "1");
    table.unsubscribe(ALICE, b"1", None);
    assert_eq!(table.reject_sid(old), None, "retired");
    table.forget(old);
    let young = new(&mut table, BOB, "b", "22");
    assert_eq!(young.slot, old.slot);
    assert_eq!(table.reject_sid(old), None, "another generation");
    let rejected = table.reject_sid(young);
    assert_eq!(rejected, Some((BOB, Box::from(&b"22"[..]))));
    assert!(table.is_empty());
}

#[test]
fn forgetting_takes_what_is_retired_and_nothing_else() {
    let mut table = Subscriptions::default();
    let live = new(&mut table, ALICE, "a", "1");
    let retired = new(&mut table, ALICE, "b", "2");
    let reused = new(&mut table, ALICE, "c", "3");
    table.unsubscribe(ALICE, b"2", None);
    table.unsubscribe(ALICE, b"3", None);
    let young = new(&mut table, ALICE, "d", "3");
    table.forget(live);
    assert!(table.deliver(live, true).is_some(), "a live one stays");
    assert!(
        table.deliver(reused, true).is_none(),
        "its sid has moved on"
    );
    table.forget_retired();
    assert!(table.deliver(retired, true).is_none());
    assert!(table.deliver(young, true).is_some());
    assert_eq!(table.live_sids().collect::<Vec<_>>(), [live, young]);
    // The sid of a retired one that went is free for a new one, without muting anything.
    let again = new(&mut table, ALICE, "b", "2");
    table.unsubscribe(ALICE, b"2", None);
    assert!(
        table.deliver(again, true).is_some(),
        "on its way before the UNSUB"
    );
}

#[test]
fn a_muted_one_that_is_freed_leaves_the_retired_one_of_its_sid() {
    let mut table = Subscriptions::default();
    let first = new(&mut table, ALICE, "a", "1");
    table.unsubscribe(ALICE, b"1", None);
    let second = new(&mut table, ALICE, "b", "1");
    table.unsubscribe(ALICE, b"1", None);
    // The first was muted by the second's SUB; its fence comes first.
    table.forget(first);
    assert!(table.deliver(second, true).is_some());
    let third = new(&mut table, ALICE, "c", "1");
    assert!(table.deliver(second, true).is_none(), "muted by the third");
    assert!(table.deliver(third, true).is_some());
}

#[test]
fn a_sessions_own_subscriptions_are_listed_with_their_counts() {
    let mut table = Subscriptions::default();
    let first = new(&mut table, ALICE, "a", "2");
    new(&mut table, ALICE, "b", "1");
    new(&mut table, BOB, "c", "1");
    table.unsubscribe(ALICE, b"2", Some(7));
    table.deliver(first, true);
    let listed: Vec<_> = table
        .of(ALICE, None)
        .map(|sub| (sub.subject(), sub.delivered(), sub.max()))
        .collect();
    assert_eq!(listed, [(&b"b"[..], 0, None), (&b"a"[..], 1, Some(7))]);
    let behind = |after: &[u8]| table.of(ALICE, Some(after)).count();
    assert_eq!([behind(b""), behind(b"1"), behind(b"2")], [2, 1, 0]);
    table.unsubscribe(ALICE, b"1", None);
    assert_eq!(table.of(ALICE, None).count(), 1);
}
