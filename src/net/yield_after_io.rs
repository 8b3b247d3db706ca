//! Turns between tasks of one worker.

use std::future::Future;
use std::pin::pin;
use std::task::Context;

/// Has the task polled again, but not before the runtime has looked at all its sockets and
/// timers.
///
/// A task that wakes itself is polled some sixty times until then: beside one component that
/// floods, every other waits that long to be seen as readable.
pub fn yield_after_io(cx: &mut Context<'_>) {
    // The runtime keeps the waker of a poll of this, whatever becomes of the future.
    let _pending = pin!(tokio::task::yield_now()).poll(cx);
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::rc::Rc;
    use std::task::Poll;
    use std::time::Duration;

    use tokio::task::LocalSet;

    use super::*;

    /// Passes of a task that always has more to do, until a timer of 5 ms is seen.
    fn passes(again: fn(&mut Context<'_>)) -> u32 {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let count = Rc::new(Cell::new(0));
        let counted = Rc::clone(&count);
        let busy = poll_fn(move |cx| -> Poll<()> {
            counted.set(counted.get() + 1);
            std::thread::sleep(Duration::from_millis(1));
            again(cx);
            Poll::Pending
        });
        LocalSet::new().block_on(&runtime, async {
            tokio::task::spawn_local(busy);
            tokio::time::sleep(Duration::from_millis(5)).await;
        });
        count.get()
    }

    #[test]
    fn a_busy_task_lets_the_runtime_look_at_timers_after_each_pass() {
        assert!(passes(yield_after_io) < 20, "passes of 1 ms");
        assert!(
            passes(|cx| cx.waker().wake_by_ref()) > 40,
            "a task that wakes itself isn't that fair: this test sees the difference"
        );
    }
}
