//! The table of a trunk's subscriptions.

use super::*;

fn replay(table: &mut Subscriptions) -> impl Iterator<Item = (UpstreamSid, Interest<'_>)> {
    table.rebase();
    table.iter()
}

const ALICE: SessionId = SessionId(0);
const BOB: SessionId = SessionId(1);

fn new(table: &mut Subscriptions, session: SessionId, subject: &str, sid: &str) -> UpstreamSid {
    match table.subscribe(session, subject.as_bytes(), None, sid.as_bytes(), 1) {
        Subscribed::New(upstream) => upstream,
        other => panic!("{sid}: {other:?}"),
    }
}

/// Returns who got a message for `sid`, and under which sids, on a link that has come as far as
/// `seen`.
fn heard(table: &mut Subscriptions, sid: UpstreamSid, seen: u64) -> Vec<(SessionId, Vec<u8>)> {
    let mut heard = Vec::new();
    table.deliver(sid, true, Seen(seen), |session, own| {
        heard.push((session, own.to_vec()));
    });
    heard
}

/// Whether anybody got a message for `sid`.
fn give(table: &mut Subscriptions, sid: UpstreamSid) -> bool {
    !heard(table, sid, 0).is_empty()
}

/// Delivers a message for `sid` and returns what it ended.
fn spend(table: &mut Subscriptions, sid: UpstreamSid) -> Option<Spent> {
    table.deliver(sid, true, Seen(0), |_, _| {})
}

/// An UNSUB that the PING with the number 9 will prove.
fn unsub(
    table: &mut Subscriptions,
    session: SessionId,
    sid: &str,
    max: Option<u64>,
) -> Unsubscribed {
    table.unsubscribe(session, sid.as_bytes(), max, 9)
}

fn owner(rejected: Option<Rejected>) -> Option<SessionId> {
    Some(rejected?.owners[0].0)
}

#[test]
fn a_session_gets_back_exactly_its_own_sid() {
    let mut table = Subscriptions::default();
    let a = new(&mut table, ALICE, "a", "007");
    let b = new(&mut table, BOB, "a", "007");
    assert_ne!(a, b);
    assert_eq!(heard(&mut table, b, 0), [(BOB, b"007".to_vec())]);
}

#[test]
fn a_live_sid_keeps_its_first_subject() {
    let mut table = Subscriptions::default();
    let first = new(&mut table, ALICE, "a", "1");
    assert_eq!(
        table.subscribe(ALICE, b"b", None, b"1", 1),
        Subscribed::Duplicate {
            upstream: first,
            limited: false
        }
    );
    assert_eq!(table.len(), 1);
}

#[test]
fn max_counts_from_the_sub_and_removes_exactly_there() {
    let mut table = Subscriptions::default();
    let sid = new(&mut table, ALICE, "a", "1");
    for _ in 0..3 {
        assert!(give(&mut table, sid));
    }
    assert_eq!(
        unsub(&mut table, ALICE, "1", Some(5)),
        Unsubscribed::Limited(sid, 5)
    );
    assert_eq!(spend(&mut table, sid), Some(Spent::Nothing));
    assert_eq!(spend(&mut table, sid), Some(Spent::One(sid)));
    assert!(table.is_empty());
    table.forget(sid);
    assert!(!give(&mut table, sid));
}

#[test]
fn what_was_sent_before_the_broker_got_to_the_max_is_still_delivered() {
    let mut table = Subscriptions::default();
    let sid = new(&mut table, ALICE, "a", "1");
    unsub(&mut table, ALICE, "1", Some(1));
    assert!(give(&mut table, sid));
    assert!(give(&mut table, sid));
    assert_eq!(replay(&mut table).count(), 0);
}

#[test]
fn a_sid_is_uncertain_while_only_the_broker_knows() {
    let mut table = Subscriptions::default();
    new(&mut table, ALICE, "a", "1");
    assert!(table.is_uncertain(ALICE, b"1", 0));
    assert!(!table.is_uncertain(ALICE, b"1", 1));
    assert!(!table.is_uncertain(ALICE, b"2", 0));
    unsub(&mut table, ALICE, "1", Some(9));
    assert!(table.is_uncertain(ALICE, b"1", 1));
}

#[test]
fn a_max_that_is_reached_already_removes_at_once() {
    let mut table = Subscriptions::default();
    let sid = new(&mut table, ALICE, "a", "1");
    for _ in 0..3 {
        give(&mut table, sid);
    }
    assert_eq!(
        unsub(&mut table, ALICE, "1", Some(3)),
        Unsubscribed::Retired(sid)
    );
}

#[test]
fn a_no_responders_status_does_not_count() {
    let mut table = Subscriptions::default();
    let sid = new(&mut table, ALICE, "a", "1");
    unsub(&mut table, ALICE, "1", Some(1));
    let status = table.deliver(sid, false, Seen(0), |_, _| {});
    assert_eq!(status, Some(Spent::Nothing));
    assert_eq!(spend(&mut table, sid), Some(Spent::One(sid)));
}

#[test]
fn replay_tells_the_new_broker_what_remains() {
    let mut table = Subscriptions::default();
    let sid = new(&mut table, ALICE, "a", "1");
    give(&mut table, sid);
    unsub(&mut table, ALICE, "1", Some(5));
    let remaining: Vec<_> = replay(&mut table).map(|(_, sub)| sub.left).collect();
    assert_eq!(remaining, [Some(4)]);
    give(&mut table, sid);
    assert_eq!(
        unsub(&mut table, ALICE, "1", Some(7)),
        Unsubscribed::Limited(sid, 6)
    );
    let remaining: Vec<_> = replay(&mut table).map(|(_, sub)| sub.left).collect();
    assert_eq!(remaining, [Some(5)]);
}

#[test]
fn what_was_sent_before_the_unsub_is_still_delivered() {
    let mut table = Subscriptions::default();
    let sid = new(&mut table, ALICE, "a", "1");
    assert_eq!(
        unsub(&mut table, ALICE, "1", None),
        Unsubscribed::Retired(sid)
    );
    assert!(give(&mut table, sid));
    table.forget(sid);
    assert!(!give(&mut table, sid));
}

#[test]
fn a_late_message_does_not_reach_the_sids_next_user() {
    let mut table = Subscriptions::default();
    let old = new(&mut table, ALICE, "a", "1");
    unsub(&mut table, ALICE, "1", None);
    let new_sid = new(&mut table, ALICE, "b", "1");
    assert!(!give(&mut table, old));
    assert!(give(&mut table, new_sid));
}

#[test]
fn an_upstream_sid_is_never_used_twice() {
    let mut table = Subscriptions::default();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..100 {
        let sid = new(&mut table, ALICE, "a", "1");
        assert!(seen.insert(sid));
        unsub(&mut table, ALICE, "1", None);
        table.forget(sid);
    }
    assert_eq!(table.places.len(), 1);
}

#[test]
fn retiring_a_session_leaves_the_others() {
    let mut table = Subscriptions::default();
    let a = new(&mut table, ALICE, "a", "1");
    new(&mut table, BOB, "a", "1");
    assert_eq!(table.retire_session(ALICE, 9).unsubscribe, [a]);
    assert!(!table.has_any(ALICE));
    assert!(table.has_any(BOB));
}

#[test]
fn the_newest_of_equal_subscriptions_is_the_rejected_one() {
    let mut table = Subscriptions::default();
    new(&mut table, ALICE, "a", "1");
    new(&mut table, BOB, "a", "1");
    assert_eq!(owner(table.reject(b"a", None)), Some(BOB));
    assert_eq!(table.reject(b"a", Some(b"g")), None);
    assert_eq!(table.len(), 1);
}

#[test]
fn a_subscription_keeps_its_three_texts_apart() {
    let mut table = Subscriptions::default();
    table.subscribe(ALICE, b"a.*", Some(b"work"), b"007", 1);
    table.subscribe(ALICE, b"b", None, b"8", 1);
    let texts: Vec<_> = replay(&mut table)
        .map(|(_, sub)| (sub.subject, sub.queue_group))
        .collect();
    let (group, none): (Option<&[u8]>, Option<&[u8]>) = (Some(b"work"), None);
    assert_eq!(texts, [(&b"a.*"[..], group), (&b"b"[..], none)]);
    let sids: Vec<_> = table.of(ALICE, None).map(Subscription::sid).collect();
    assert_eq!(sids, [&b"007"[..], b"8"]);
}

#[test]
fn only_live_subscriptions_are_counted_named_and_limited() {
    let mut table = Subscriptions::default();
    assert!(table.is_empty());
    let plain = new(&mut table, ALICE, "a", "1");
    let limited = new(&mut table, ALICE, "b", "2");
    new(&mut table, ALICE, "c", "3");
    unsub(&mut table, ALICE, "2", Some(3));
    unsub(&mut table, ALICE, "3", Some(3));
    unsub(&mut table, ALICE, "3", None);
    assert_eq!((table.len(), table.is_empty()), (2, false));
    assert_eq!(table.live_sids().collect::<Vec<_>>(), [plain, limited]);
    let remaining: Vec<_> = replay(&mut table).map(|(_, sub)| sub.left).collect();
    assert_eq!(remaining, [None, Some(3)]);
}

#[test]
fn a_subscription_that_was_too_many_is_named_by_its_sid() {
    let mut table = Subscriptions::default();
    let [first, second] = ["1", "2"].map(|sid| new(&mut table, ALICE, "a", sid));
    assert_eq!(table.equal_to(b"a", None), [first, second]);
    assert!(table.equal_to(b"a", Some(b"q")).is_empty());
    assert_eq!(table.sessions_of(second), [ALICE]);
    assert_eq!(owner(table.reject_sid(second)), Some(ALICE));
    assert_eq!(table.reject_sid(second), None);
    assert!(table.knows(first) && !table.knows(second));
    assert!(table.sessions_of(second).is_empty() && table.interest_of(second).is_none());
    let left: Vec<_> = table.of(ALICE, None).map(Subscription::sid).collect();
    assert_eq!(left, [b"1"]);
    // Its slot's next user isn't meant by what was said of the former.
    let third = new(&mut table, BOB, "c", "3");
    assert_eq!(third.slot, second.slot);
    assert_eq!(table.reject_sid(second), None);
    assert!(!table.knows(UpstreamSid {
        slot: u32::MAX,
        generation: 0
    }));
}

#[test]
fn a_refusal_by_sid_is_about_that_generation_only() {
    let mut table = Subscriptions::default();
    let old = new(&mut table, ALICE, "a", "1");
    unsub(&mut table, ALICE, "1", None);
    assert_eq!(table.reject_sid(old), None, "retired");
    table.forget(old);
    let young = new(&mut table, BOB, "b", "22");
    assert_eq!(young.slot, old.slot);
    assert_eq!(table.reject_sid(old), None, "another generation");
    let rejected = table.reject_sid(young);
    let owners = vec![(BOB, Box::from(&b"22"[..]))];
    let upstream = young;
    assert_eq!(rejected, Some(Rejected { upstream, owners }));
    assert!(table.is_empty());
}

#[test]
fn forgetting_takes_what_is_retired_and_nothing_else() {
    let mut table = Subscriptions::default();
    let live = new(&mut table, ALICE, "a", "1");
    let retired = new(&mut table, ALICE, "b", "2");
    let reused = new(&mut table, ALICE, "c", "3");
    unsub(&mut table, ALICE, "2", None);
    unsub(&mut table, ALICE, "3", None);
    let young = new(&mut table, ALICE, "d", "3");
    table.forget(live);
    assert!(give(&mut table, live), "a live one stays");
    assert!(!give(&mut table, reused), "its sid has moved on");
    table.forget_retired();
    assert!(!give(&mut table, retired));
    assert!(give(&mut table, young));
    assert_eq!(table.live_sids().collect::<Vec<_>>(), [live, young]);
    // The sid of a retired one that went is free for a new one, without muting anything.
    let again = new(&mut table, ALICE, "b", "2");
    unsub(&mut table, ALICE, "2", None);
    assert!(give(&mut table, again), "on its way before the UNSUB");
}

#[test]
fn a_muted_one_that_is_freed_leaves_the_retired_one_of_its_sid() {
    let mut table = Subscriptions::default();
    let first = new(&mut table, ALICE, "a", "1");
    unsub(&mut table, ALICE, "1", None);
    let second = new(&mut table, ALICE, "b", "1");
    unsub(&mut table, ALICE, "1", None);
    // The first was muted by the second's SUB; its fence comes first.
    table.forget(first);
    assert!(give(&mut table, second));
    let third = new(&mut table, ALICE, "c", "1");
    assert!(!give(&mut table, second), "muted by the third");
    assert!(give(&mut table, third));
}

#[test]
fn a_sessions_own_subscriptions_are_listed_with_their_counts() {
    let mut table = Subscriptions::default();
    let first = new(&mut table, ALICE, "a", "2");
    new(&mut table, ALICE, "b", "1");
    new(&mut table, BOB, "c", "1");
    unsub(&mut table, ALICE, "2", Some(7));
    give(&mut table, first);
    let listed: Vec<_> = table
        .of(ALICE, None)
        .map(|sub| (sub.subject(), sub.delivered(), sub.max()))
        .collect();
    assert_eq!(listed, [(&b"b"[..], 0, None), (&b"a"[..], 1, Some(7))]);
    let behind = |after: &[u8]| table.of(ALICE, Some(after)).count();
    assert_eq!([behind(b""), behind(b"1"), behind(b"2")], [2, 1, 0]);
    unsub(&mut table, ALICE, "1", None);
    assert_eq!(table.of(ALICE, None).count(), 1);
}

/// A table of a trunk that several sessions share.
fn shared() -> Subscriptions {
    let mut table = Subscriptions::default();
    table.coalesce();
    table
}

const CAROL: SessionId = SessionId(2);

fn join(table: &mut Subscriptions, session: SessionId, sid: &str, covered_by: u64) {
    let joined = table.subscribe(session, b"a", None, sid.as_bytes(), covered_by);
    assert_eq!(joined, Subscribed::Joined);
}

fn sids(heard: &[(SessionId, Vec<u8>)]) -> Vec<&[u8]> {
    heard.iter().map(|(_, sid)| &sid[..]).collect()
}

#[test]
fn equal_subscriptions_share_a_sid_and_each_session_gets_its_own() {
    let mut table = shared();
    let a = new(&mut table, ALICE, "a", "007");
    join(&mut table, BOB, "1", 5);
    assert_eq!(
        sids(&heard(&mut table, a, 4)),
        [b"007"],
        "R23: Bob's PING is on its way"
    );
    let both = heard(&mut table, a, 5);
    assert_eq!(both, [(ALICE, b"007".to_vec()), (BOB, b"1".to_vec())]);
    assert_eq!(table.live_sids().collect::<Vec<_>>(), [a]);
    assert_eq!(table.len(), 2);
    let delivered: Vec<_> = table.of(BOB, None).map(Subscription::delivered).collect();
    assert_eq!(delivered, [1]);
}

#[test]
fn queue_members_equal_ones_of_a_session_and_limited_ones_are_never_coalesced() {
    let mut table = shared();
    let is_new = |entered| matches!(entered, Subscribed::New(_));
    for session in [ALICE, BOB] {
        assert!(is_new(table.subscribe(session, b"a", Some(b"g"), b"1", 1)));
    }
    assert!(is_new(table.subscribe(ALICE, b"a", None, b"2", 1)));
    assert!(is_new(table.subscribe(ALICE, b"a", None, b"3", 1)));
    unsub(&mut table, ALICE, "3", Some(1));
    assert!(
        is_new(table.subscribe(BOB, b"a", None, b"2", 1)),
        "it would end for both"
    );
    assert_eq!(table.live_sids().count(), 5);
}

#[test]
fn a_member_leaves_behind_its_ping_and_the_last_one_ends_the_sid() {
    let mut table = shared();
    let a = new(&mut table, ALICE, "a", "7");
    join(&mut table, BOB, "8", 2);
    let left = unsub(&mut table, ALICE, "7", None);
    assert!(matches!(left, Unsubscribed::Left(_)), "{left:?}");
    assert_eq!(
        sids(&heard(&mut table, a, 8)),
        [b"7", b"8"],
        "on its way before"
    );
    assert_eq!(sids(&heard(&mut table, a, 9)), [b"8"]);
    if let Unsubscribed::Left(own) = left {
        table.forget(own);
    }
    assert_eq!(sids(&heard(&mut table, a, 8)), [b"8"]);
    assert_eq!(unsub(&mut table, BOB, "8", None), Unsubscribed::Retired(a));
    assert_eq!(sids(&heard(&mut table, a, 8)), [b"8"]);
    table.forget(a);
    assert!(heard(&mut table, a, 8).is_empty());
    let again = new(&mut table, BOB, "a", "9");
    assert_ne!(a, again, "nobody joins what is over");
}

#[test]
fn a_members_max_is_its_own() {
    let mut table = shared();
    let a = new(&mut table, ALICE, "a", "7");
    join(&mut table, BOB, "8", 2);
    assert_eq!(unsub(&mut table, BOB, "8", Some(2)), Unsubscribed::Counted);
    let counts: Vec<_> = (0..3).map(|_| heard(&mut table, a, 2).len()).collect();
    assert_eq!(counts, [2, 2, 1]);
    assert_eq!(
        unsub(&mut table, ALICE, "7", Some(4)),
        Unsubscribed::Counted
    );
    let deliver = |table: &mut Subscriptions| table.deliver(a, true, Seen(2), |_, _| {});
    assert_eq!(
        deliver(&mut table),
        Some(Spent::Group(a)),
        "and no broker knows"
    );
    assert!(table.is_empty());
}

#[test]
fn a_session_that_is_gone_leaves_nothing_to_the_next_of_its_number() {
    let mut table = shared();
    let a = new(&mut table, ALICE, "a", "7");
    let own = new(&mut table, BOB, "b", "1");
    join(&mut table, BOB, "8", 2);
    let ended = table.retire_session(BOB, 9);
    assert_eq!((ended.unsubscribe, ended.left.len()), (vec![own], 1));
    assert!(give(&mut table, own), "a session that only closed its side");
    table.mute_session(BOB);
    assert!(!give(&mut table, own));
    assert_eq!(sids(&heard(&mut table, a, 2)), [b"7"]);
    // The next one has the same number, subject and sid.
    join(&mut table, BOB, "8", 20);
    assert_eq!(sids(&heard(&mut table, a, 19)), [b"7"]);
    assert_eq!(sids(&heard(&mut table, a, 20)), [b"7", b"8"]);
}

#[test]
fn a_replay_has_each_shared_subscription_once_and_all_hear_it() {
    let mut table = shared();
    let a = new(&mut table, ALICE, "a", "7");
    join(&mut table, BOB, "8", 50);
    let replayed: Vec<_> = replay(&mut table)
        .map(|(sid, sub)| (sid, sub.left))
        .collect();
    assert_eq!(replayed, [(a, None)]);
    assert_eq!(heard(&mut table, a, 0).len(), 2);
}

#[test]
fn a_refused_subscription_is_refused_for_all_who_share_it() {
    let mut table = shared();
    let a = new(&mut table, ALICE, "a", "7");
    join(&mut table, BOB, "8", 2);
    let rejected = table.reject(b"a", None).expect("refused");
    let sessions: Vec<_> = rejected
        .owners
        .iter()
        .map(|(session, _)| *session)
        .collect();
    assert_eq!((rejected.upstream, sessions), (a, vec![ALICE, BOB]));
    assert!(table.is_empty() && !give(&mut table, a));
}

#[test]
fn of_equal_subscriptions_of_two_sessions_the_first_is_refused_first() {
    let mut table = shared();
    let group = Some(&b"g"[..]);
    table.subscribe(ALICE, b"a", group, b"1", 1);
    table.subscribe(BOB, b"a", group, b"1", 2);
    assert_eq!(owner(table.reject(b"a", group)), Some(ALICE));
    assert_eq!(owner(table.reject(b"a", group)), Some(BOB));
}

#[test]
fn a_session_takes_along_what_it_has() {
    let mut table = shared();
    let a = new(&mut table, ALICE, "a", "7");
    join(&mut table, BOB, "8", 2);
    table.subscribe(BOB, b"q", Some(b"g"), b"9", 2);
    let limited = new(&mut table, BOB, "m", "10");
    unsub(&mut table, BOB, "10", Some(5));
    let unsubscribe = table.depart(BOB, 9);
    assert_eq!(unsubscribe.len(), 2, "Alice has the other still");
    table.forget_retired();
    give(&mut table, limited);
    assert_eq!(sids(&heard(&mut table, a, 8)), [b"7", b"8"]);
    assert_eq!(replay(&mut table).count(), 1);
    let carried = table.take_session(BOB);
    let carried: Vec<_> = carried
        .iter()
        .map(|one| (&*one.sid, one.queue_group.is_some(), one.delivered, one.max))
        .collect();
    let expected = [
        (&b"10"[..], false, 1, 5),
        (&b"8"[..], false, 1, 0),
        (&b"9"[..], true, 0, 0),
    ];
    assert_eq!(carried, expected);
    assert_eq!(sids(&heard(&mut table, a, 8)), [b"7"]);
    assert!(!give(&mut table, limited));
}

#[test]
fn a_status_goes_where_a_broker_would_send_it() {
    let mut table = shared();
    new(&mut table, ALICE, "_INBOX.a.1", "1");
    assert_eq!(table.answered_by(ALICE, b"_INBOX.a.1"), Some(&b"1"[..]));
    assert_eq!(table.answered_by(BOB, b"_INBOX.a.1"), None);
    new(&mut table, ALICE, "_INBOX.a.*", "2");
    assert_eq!(table.answered_by(ALICE, b"_INBOX.a.1"), Some(&b"2"[..]));
    new(&mut table, ALICE, "_INBOX.>", "3");
    table.subscribe(ALICE, b">", Some(b"g"), b"4", 1);
    assert_eq!(table.answered_by(ALICE, b"_INBOX.a.1"), Some(&b"3"[..]));
    assert_eq!(table.answered_by(CAROL, b"_INBOX.a.1"), None);
}

#[test]
fn a_refusal_reaches_who_asked_though_that_one_is_about_to_leave() {
    let mut table = shared();
    new(&mut table, ALICE, "a", "1");
    new(&mut table, BOB, "b", "2");
    new(&mut table, CAROL, "c", "3");
    unsub(&mut table, ALICE, "1", None);
    table.depart(BOB, 9);
    table.retire_session(CAROL, 9);
    table.mute_session(CAROL);
    assert_eq!(owner(table.reject(b"a", None)), Some(ALICE));
    assert_eq!(owner(table.reject(b"b", None)), Some(BOB));
    assert!(
        table.take_session(BOB).is_empty(),
        "refused here, it isn't asked for again"
    );
    let rejected = table.reject(b"c", None).expect("it was asked for");
    assert!(rejected.owners.is_empty(), "by somebody who is gone");
    assert_eq!(table.reject(b"c", None), None);
}

#[test]
fn a_status_still_finds_a_subscription_that_was_just_ended() {
    let mut table = shared();
    new(&mut table, ALICE, "_INBOX.a.1", "1");
    unsub(&mut table, ALICE, "1", None);
    assert_eq!(table.answered_by(ALICE, b"_INBOX.a.1"), Some(&b"1"[..]));
    table.mute_session(ALICE);
    assert_eq!(table.answered_by(ALICE, b"_INBOX.a.1"), None);
}

#[test]
fn a_verdict_on_a_sid_that_was_used_again_is_nobodys_once_the_session_is_gone() {
    let mut table = shared();
    new(&mut table, ALICE, "no", "1");
    unsub(&mut table, ALICE, "1", None);
    new(&mut table, ALICE, "yes", "1");
    table.retire_session(ALICE, 9);
    table.mute_session(ALICE);
    let rejected = table.reject(b"no", None).expect("it was asked for");
    assert!(rejected.owners.is_empty(), "ALICE is somebody else by now");
}

#[test]
fn all_who_share_a_subscription_are_its_sessions() {
    let mut table = shared();
    let upstream = new(&mut table, ALICE, "a", "1");
    join(&mut table, BOB, "1", 2);
    assert_eq!(table.sessions_of(upstream), [ALICE, BOB]);
}
