//! Which trunk a session shares with others (R22).

use std::collections::HashMap;

use crate::proto::connect::ConnectInfo;
use crate::upstream::brokers::liveness::TrunkId;

/// The options under which sessions share a trunk, or `None` for those that never do.
pub fn sharing_key(connect: &ConnectInfo) -> Option<ConnectInfo> {
    let plain = connect.echo && !connect.verbose && !connect.pedantic;
    let known = (0..=1).contains(&connect.protocol);
    let refused = connect.account.is_some() || connect.new_account;
    let shares = plain && known && !refused && !connect.is_signed();
    shares.then(|| ConnectInfo {
        name: None,
        lang: None,
        version: None,
        protocol: 1,
        ..connect.clone()
    })
}

/// The trunks that sessions share, by what these have in common.
#[derive(Debug, Default)]
pub struct SharedTrunks(HashMap<ConnectInfo, Vec<TrunkId>>);

impl SharedTrunks {
    /// The trunk for a session with this key: the one of fewest sessions, once there are as many
    /// as `wanted`; `None`: a new one. One that leaves the trunk `not` takes any other that there
    /// is. `sessions` says how many a trunk has, and `None` where it takes no more.
    pub fn choose(
        &self,
        key: &ConnectInfo,
        wanted: usize,
        not: Option<TrunkId>,
        sessions: impl Fn(TrunkId) -> Option<usize>,
    ) -> Option<TrunkId> {
        let ids = self.0.get(key).into_iter().flatten().copied();
        let others = ids.filter(|id| Some(*id) != not);
        let open: Vec<_> = others.filter_map(|id| Some((sessions(id)?, id))).collect();
        let enough = open.len() >= wanted || not.is_some();
        let (_, least) = open.into_iter().min().filter(|_| enough)?;
        Some(least)
    }

    /// A trunk for sessions with this key has begun.
    pub fn enter(&mut self, key: ConnectInfo, id: TrunkId) {
        self.0.entry(key).or_default().push(id);
    }

    /// A trunk that sends this CONNECT has ended.
    pub fn leave(&mut self, connect: &ConnectInfo, id: TrunkId) {
        let Some(key) = sharing_key(connect) else {
            return;
        };
        if let Some(ids) = self.0.get_mut(&key) {
            ids.retain(|shared| *shared != id);
            if ids.is_empty() {
                self.0.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: TrunkId = TrunkId(1);
    const B: TrunkId = TrunkId(2);

    fn key() -> ConnectInfo {
        let connect = ConnectInfo::parse(br#"{"verbose":false,"pedantic":false,"name":"x"}"#);
        sharing_key(&connect.expect("options")).expect("it shares")
    }

    #[test]
    fn sessions_spread_over_as_many_trunks_as_are_wanted() {
        let mut shared_trunks = SharedTrunks::default();
        let choose = |shared_trunks: &SharedTrunks, wanted, sessions: [Option<usize>; 2]| {
            shared_trunks.choose(&key(), wanted, None, |id| sessions[id.0 as usize - 1])
        };
        assert_eq!(choose(&shared_trunks, 1, [None, None]), None);
        shared_trunks.enter(key(), A);
        assert_eq!(choose(&shared_trunks, 1, [Some(9), None]), Some(A));
        assert_eq!(
            choose(&shared_trunks, 2, [Some(9), None]),
            None,
            "a second one"
        );
        shared_trunks.enter(key(), B);
        assert_eq!(choose(&shared_trunks, 2, [Some(9), Some(3)]), Some(B));
        assert_eq!(
            choose(&shared_trunks, 2, [None, Some(3)]),
            None,
            "one takes no more"
        );
    }

    #[test]
    fn one_that_leaves_takes_any_other_and_never_the_same() {
        let mut shared_trunks = SharedTrunks::default();
        shared_trunks.enter(key(), A);
        let choose =
            |shared_trunks: &SharedTrunks| shared_trunks.choose(&key(), 5, Some(A), |_| Some(1));
        assert_eq!(choose(&shared_trunks), None);
        shared_trunks.enter(key(), B);
        assert_eq!(choose(&shared_trunks), Some(B));
    }

    #[test]
    fn what_has_ended_leaves_nothing() {
        let mut shared_trunks = SharedTrunks::default();
        shared_trunks.enter(key(), A);
        let named = ConnectInfo {
            name: Some("natsmux:host:bus:1".to_owned()),
            ..key()
        };
        shared_trunks.leave(&named, A);
        assert!(shared_trunks.0.is_empty());
    }
}
