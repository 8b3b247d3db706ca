//! The one timer of a task.

use std::future::Future;
use std::pin::Pin;
use std::task::Context;

use tokio::task::coop::has_budget_remaining;
use tokio::time::Sleep;

use crate::clock::Instant;

/// Wakes its task when something is due. It takes memory once it is armed.
#[derive(Debug, Default)]
pub struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    armed: Option<Instant>,
}

impl Timer {
    /// Has the task woken at `due`, or before: a timer that fires too early costs less than
    /// moving it for every message. Returns whether that is now.
    pub fn arm(&mut self, due: Option<Instant>, now: Instant, cx: &mut Context<'_>) -> bool {
        let Some(due) = due else {
            *self = Self::default();
            return false;
        };
        if self.armed.is_some_and(|armed| now < armed && armed <= due) {
            // It has the task's waker.
            return false;
        }
        let deadline = tokio::time::Instant::from_std(due.into());
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if self.armed.is_none_or(|armed| due < armed || armed <= now) {
            sleep.as_mut().reset(deadline);
            self.armed = Some(due);
        }
        let is_due = sleep.as_mut().poll(cx).is_ready();
        if is_due || !has_budget_remaining() {
            // Nor is a task woken by it that has had its share: the runtime hasn't looked.
            self.armed = None;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;
    use std::time::Duration;

    use tokio::task::coop::poll_proceed;

    use super::*;
    use crate::net::now;

    /// Sleeps as a task does that arms its timer for each of these, in ms.
    async fn sleep(dues: &[Option<u64>]) {
        let start = now();
        let mut timer = Timer::default();
        let mut polls = 0;
        poll_fn(|cx| {
            polls += 1;
            if polls > 1 {
                return Poll::Ready(());
            }
            for due in dues {
                let due = due.map(|ms| start + Duration::from_millis(ms));
                assert!(!timer.arm(due, now(), cx));
            }
            Poll::Pending
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_wakes_unless_there_is_none_any_more() {
        let start = now();
        sleep(&[Some(50)]).await;
        assert_eq!((now() - start).as_millis(), 50);
        let start = now();
        sleep(&[Some(50), Some(20), Some(70)]).await;
        assert_eq!((now() - start).as_millis(), 20, "too early, not too late");
        let start = now();
        sleep(&[Some(20), None, Some(70)]).await;
        assert_eq!((now() - start).as_millis(), 70);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_had_its_share_is_woken_once_it_has_asked_again() {
        let start = now();
        let mut timer = Timer::default();
        let mut polls = 0;
        let woken = poll_fn(|cx| {
            polls += 1;
            while let (1, Poll::Ready(share)) = (polls, poll_proceed(cx)) {
                share.made_progress();
            }
            if now() - start < Duration::from_millis(50) {
                assert!(!timer.arm(Some(start + Duration::from_millis(50)), now(), cx))
            } else {
                return Poll::Ready(());
            }
            Poll::Pending
        });
        let woken = tokio::time::timeout(Duration::from_secs(1), woken).await;
        assert_eq!(woken, Ok(()));
        assert_eq!((polls, (now() - start).as_millis()), (3, 50));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_due_is_said_at_once() {
        let start = now();
        let mut timer = Timer::default();
        let is_due = poll_fn(|cx| Poll::Ready(timer.arm(Some(start), start, cx))).await;
        assert!(is_due);
    }
}
