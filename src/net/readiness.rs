//! Asking a socket whether it is readable, mostly without a word to the runtime.

use std::task::{Context, Poll};

use tokio::task::coop::has_budget_remaining;

use super::socket::{self, ReadHalf};

/// Knows whether the runtime will wake a socket's task anyway. A task that owns two sockets is
/// woken for one of them, and asks for both.
#[derive(Debug, Default)]
pub struct Readiness {
    /// The runtime has the task's waker, for as long as the socket isn't readable.
    armed: bool,
}

impl Readiness {
    /// Ready once there may be something to read, the end, or an error, which the read finds.
    /// Called by one task only.
    pub fn poll_readable(&mut self, half: &ReadHalf, cx: &mut Context<'_>) -> Poll<()> {
        if self.armed && !socket::may_be_readable(half) {
            return Poll::Pending;
        }
        let ready = socket::poll_readable(half, cx);
        self.note(ready.is_pending());
        ready
    }

    /// A read was tried, and whether that is to be waited for.
    pub fn note(&mut self, pending: bool) {
        // A task that has had its share is told to wait, whatever the socket has.
        self.armed = pending && has_budget_remaining();
    }

    /// Another task is to be woken from now on.
    pub fn disarm(&mut self) {
        self.armed = false;
    }
}

#[cfg(all(test, not(feature = "turmoil")))]
mod tests {
    use std::future::poll_fn;
    use std::io;
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::coop::poll_proceed;
    use tokio::time::timeout;

    use super::*;

    async fn pair() -> io::Result<(TcpStream, ReadHalf)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let peer = TcpStream::connect(listener.local_addr()?).await?;
        let (stream, _) = listener.accept().await?;
        // The runtime takes a new one to be readable.
        let error = stream.try_read(&mut [0]).expect_err("nothing was sent");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let (read, write) = stream.into_split();
        // It would close that direction.
        write.forget();
        Ok((peer, read))
    }

    /// Asks twice in each poll until there is something, and says in which poll that was.
    async fn wait(watch: &mut Readiness, read: &ReadHalf) -> io::Result<u32> {
        let mut polls = 0;
        let ready = poll_fn(|cx| {
            polls += 1;
            if watch.poll_readable(read, cx).is_ready() {
                return Poll::Ready(());
            }
            watch.poll_readable(read, cx)
        });
        timeout(Duration::from_secs(5), ready).await?;
        Ok(polls)
    }

    #[tokio::test]
    async fn who_asks_again_and_again_is_woken_each_time() -> io::Result<()> {
        let (mut peer, mut read) = pair().await?;
        let mut watch = Readiness::default();
        for _ in 0..3 {
            let write = tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                peer.write_all(b"x").await.map(|()| peer)
            });
            assert_eq!(wait(&mut watch, &read).await?, 2);
            peer = write.await??;
            assert_eq!(socket::read(&mut read, &mut [0; 8]).await?, 1);
            watch.note(false);
        }
        drop(peer);
        wait(&mut watch, &read).await?;
        assert_eq!(socket::read(&mut read, &mut [0; 8]).await?, 0, "the end");
        Ok(())
    }

    #[tokio::test]
    async fn another_task_is_woken_once_the_first_is_forgotten() -> io::Result<()> {
        let (mut peer, read) = pair().await?;
        let mut watch = Readiness::default();
        poll_fn(|cx| Poll::Ready(watch.poll_readable(&read, cx).is_pending())).await;
        assert!(watch.armed);
        watch.disarm();
        let other = tokio::spawn(async move { wait(&mut watch, &read).await });
        tokio::time::sleep(Duration::from_millis(5)).await;
        peer.write_all(b"x").await?;
        assert_eq!(other.await??, 2);
        Ok(())
    }

    #[tokio::test]
    async fn who_has_had_its_share_doesnt_rely_on_being_woken_by_the_socket() -> io::Result<()> {
        let (_peer, read) = pair().await?;
        let mut watch = Readiness::default();
        poll_fn(|cx| {
            while let Poll::Ready(share) = poll_proceed(cx) {
                share.made_progress();
            }
            assert!(watch.poll_readable(&read, cx).is_pending());
            Poll::Ready(())
        })
        .await;
        assert!(!watch.armed);
        Ok(())
    }
}
