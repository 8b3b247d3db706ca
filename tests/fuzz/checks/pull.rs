//! Pull requests of JetStream consumers, and what comes to their replies.

use natsmux::proto::pull::{ConsumerInfo, PullRequest, PullStatus, info_subject, is_pull};
use natsmux::proto::server::{ServerLimits, ServerOp, ServerScan, scan};

/// The longest body that is read, in bytes.
const LONGEST: usize = 512;

/// The first line is a subject, the second a body, and the rest what a broker sends. A request that
/// is read is written as it was read, for whatever is left of it.
pub fn pull(data: &[u8]) {
    let mut parts = data.splitn(3, |byte| *byte == b'\n');
    let [subject, body, sent] = std::array::from_fn(|_| parts.next().unwrap_or_default());
    let info = info_subject(subject);
    assert_eq!(is_pull(subject), info.is_some());
    // One token less: `MSG.NEXT` becomes `INFO`.
    let tokens = |subject: &[u8]| subject.split(|byte| *byte == b'.').count();
    assert!(info.is_none_or(|info| tokens(&info) + 1 == tokens(subject)));
    if let Some(request) = PullRequest::parse(body) {
        assert!(request.batch > 0);
        let left = PullRequest {
            batch: request.batch / 2 + 1,
            ..request
        };
        let again = left.encode(body);
        // It may be longer than what is read: of natsmux's own nothing is.
        assert!(again.len() > LONGEST || PullRequest::parse(&again) == Some(left));
    }
    if let ServerScan::Op {
        op: ServerOp::Msg(msg),
        ..
    } = scan(sent, &ServerLimits::default())
    {
        let is_plain = !msg.headers || msg.header_len < msg.size;
        assert!(!is_plain || PullStatus::of(&msg) == PullStatus::Message);
        let _ = ConsumerInfo::of(&msg);
    }
}
