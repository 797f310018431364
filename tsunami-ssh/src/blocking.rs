//! Work that may wait for a disk or a process.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Mutex as AsyncMutex;
use tokio::task::spawn_blocking;

/// Does such work on a thread that may wait. Work that has begun is done also when the future is dropped, and what it
/// came to is dropped after it.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other).flatten()
}

/// Work that many ask for and that is done for all of them at once, by whoever is next: to sync to a disk takes as long
/// for one as for all.
#[derive(Debug)]
pub(crate) struct Together<T>(Arc<Waiting<T>>);

#[derive(Debug)]
struct Waiting<T> {
    items: Mutex<Vec<T>>,
    working: Arc<AsyncMutex<()>>,
}

impl<T> Waiting<T> {
    fn lock(&self) -> MutexGuard<'_, Vec<T>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Default for Together<T> {
    fn default() -> Self {
        Self(Arc::new(Waiting { items: Mutex::default(), working: Arc::default() }))
    }
}

impl<T: Send + 'static> Together<T> {
    /// Adds something to do.
    pub(crate) fn put(&self, item: T) {
        self.0.lock().push(item);
    }

    /// Waits until what was put is done. What has begun goes on also when this is dropped, and others wait for it. Where
    /// it fails, each of them tries it again, and hears why not.
    pub(crate) async fn done(
        &self,
        work: impl FnOnce(&[T]) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let alone = self.0.working.clone().lock_owned().await;
        let waiting = self.0.clone();
        let batch = std::mem::take(&mut *waiting.lock());
        if batch.is_empty() {
            return Ok(());
        }
        blocking(move || {
            let _alone = alone;
            let done = work(&batch);
            if done.is_err() {
                waiting.lock().extend(batch);
            }
            done
        })
        .await
    }
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

    #[tokio::test]
    async fn what_many_ask_for_is_done_at_once_and_also_when_nobody_waits_for_it_any_more() {
        let together = Together::default();
        let (go_on, told) = channel::<()>();
        let done = Arc::new(Mutex::new(Vec::new()));
        together.put(0);
        let first = tokio::spawn({
            let (together, done) = (Together(together.0.clone()), done.clone());
            async move {
                let work = move |items: &[i32]| {
                    done.lock().unwrap().push(items.to_vec());
                    told.recv().map_err(io::Error::other)
                };
                together.done(work).await
            }
        });
        while done.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        first.abort();
        let others: Vec<_> = (1..=9)
            .map(|item| {
                together.put(item);
                let (together, done) = (Together(together.0.clone()), done.clone());
                tokio::spawn(async move {
                    let work = move |items: &[i32]| {
                        done.lock().unwrap().push(items.to_vec());
                        if items.len() == 9 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
                    };
                    together.done(work).await
                })
            })
            .collect();
        tokio::task::yield_now().await;
        assert_eq!(*done.lock().unwrap(), [vec![0]], "they wait for what nobody waits for");
        go_on.send(()).unwrap();
        for other in others {
            assert_eq!(other.await.unwrap().unwrap_err().kind(), io::ErrorKind::StorageFull);
        }
        assert!(done.lock().unwrap()[1..].iter().all(|items| items.len() == 9));
    }
}
