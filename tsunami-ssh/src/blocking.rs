//! Work that may wait for a disk or a process.

use std::io;

use tokio::task::spawn_blocking;

/// Does such work on a thread that may wait. Work that has begun is done also when the future is dropped, and what it
/// came to is dropped after it.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other).flatten()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[tokio::test]
    async fn what_waits_holds_up_no_other_task() {
        let (go_on, told) = channel::<u32>();
        let waiting = blocking(move || told.recv().map_err(io::Error::other));
        // On the only thread there is: it gets its turn only if nothing waits there.
        let other = async { go_on.send(7).map_err(io::Error::other) };
        assert_eq!(tokio::try_join!(waiting, other).unwrap().0, 7);
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        assert!(blocking(|| -> io::Result<()> { panic!("as a test") }).await.is_err());
    }
}
