//! Every metric that only grows, in one place.
//!
//! A worker owns its counters and counts with plain additions; they are summed
//! where a [`Snapshot`](super::Snapshot) is taken. Gauges (`sessions`,
//! `waiting`, `buffered_bytes` …) aren't here: they are computed there.

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Counts since start. None of them ever shrinks.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Counters {
            /// Adds what another worker, bus or session counted.
            pub fn add(&mut self, other: &Self) {
                $(self.$name = self.$name.wrapping_add(other.$name);)+
            }

            /// Every counter with its name, in the order of this file.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name)),+].into_iter()
            }

            /// Iterates over the counters, each with its description.
            pub fn described(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$((stringify!($name), concat!($($doc),+), self.$name)),+].into_iter()
            }
        }
    };
}

counters! {
    /// Publishes read from components. R4: `published = confirmed + in_doubt +
    /// refused + dropped + waiting`, where `waiting` is a gauge.
    published,
    /// Publishes that a broker has processed, as a fence proved (R4).
    confirmed,
    /// Publishes that the broker refused with `-ERR`.
    refused,
    /// Publishes written to a link that died before a fence proved them (R4).
    in_doubt,
    /// Publishes that were never written to the link that died and went to the
    /// next one. They are counted again as confirmed or in doubt.
    moved,
    /// Publishes in doubt that were written again (at-least-once).
    repeated,
    /// Publishes given up: buffer full after `block_for`, or a session that
    /// ended before they were written (R6).
    dropped,
    /// PONGs released by `pong_hold` that prove nothing (R3).
    pongs_unproven,
    /// Changes of the link that publishes go to, counted for each trunk.
    failovers,
    /// Times that a broker's sentinel waited too long for an answer (R8).
    suspicions,
    /// Milliseconds that brokers were suspect and answered in the end.
    suspect_ms,
    /// Times that a link wasn't read because its component had much to take (R33).
    stalls,
    /// Links that were told everything from a ledger again.
    replays,
    /// SUBs that replays sent.
    replayed_subscriptions,
    /// Links that reached the PONG behind their CONNECT.
    links_opened,
    /// Links that died, for whatever reason but natsmux's own wish.
    link_failures,
    /// Dials that didn't become a link.
    dial_failures,
    /// Connections of components whose TLS handshake failed, or wasn't over in time.
    failed_handshakes,
    /// Sessions accepted.
    sessions_opened,
    /// Sessions that ended.
    sessions_closed,
    /// Outages of which components were told (R37).
    outages_revealed,
    /// Connections of components that were closed at once, in such an outage (R37).
    outage_rejections,
    /// Sessions closed because they read too slowly (R25).
    slow_consumers,
    /// Sessions closed because they left `ping_max` PINGs unanswered.
    stale_sessions,
    /// Sessions closed because the brokers refused their credentials (R15).
    refused_sessions,
    /// Components that claimed to be an identity of the bus and couldn't prove it (R39).
    refused_identities,
    /// Sessions whose component signed a broker's own nonce (R40).
    relayed_sessions,
    /// Links that said CONNECT with renewed credentials in place of one with older ones (R38).
    renewed_links,
    /// Links that were opened anew since their broker's reload changed what it offers (R43).
    revised_links,
    /// Planned moves in which both links were subscribed for a while (R41).
    gapless_moves,
    /// Such moves that ended early, for the memory that they took.
    moves_cut_short,
    /// Requests of JetStream consumers that natsmux asked again behind a failover (R44).
    pulls_resumed,
    /// Such requests of which the old one may have lived on.
    pulls_repeated,
    /// Messages that were byte-identical to another one while both links were subscribed.
    moves_ambiguous,
    /// Faults of components against the protocol.
    protocol_errors,
    /// Messages read from components.
    in_msgs,
    /// Payload bytes of messages read from components, headers included.
    in_bytes,
    /// Messages written to components.
    out_msgs,
    /// Payload bytes of messages written to components, headers included.
    out_bytes,
    /// Messages from brokers for a subscription that is gone.
    unknown_sid_msgs,
    /// Messages over a subscription's max, which one of several brokers sent (R31).
    over_max_msgs,
    /// Publishes whose headers were taken off, for a broker that knows none.
    headers_stripped,
    /// Fences sent (R7).
    fences,
    /// Announcements that were too many, too long or not authenticated (R29).
    announcements_refused,
    /// Brokers probed without a link (R11).
    probes,
    /// Failovers in which a replay outlasted `replay_barrier` (R14).
    barrier_timeouts,
    /// Sessions whose operations came before their CONNECT (R21).
    lenient_connects,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_take_every_counter_and_names_are_unique() {
        let mut one = Counters {
            published: 2,
            lenient_connects: 3,
            ..Counters::default()
        };
        one.add(&one.clone());
        assert_eq!((one.published, one.lenient_connects), (4, 6));
        assert_eq!(one.iter().map(|(_, value)| value).sum::<u64>(), 10);
        let names: std::collections::BTreeSet<_> = one.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), one.iter().count());
    }
}
