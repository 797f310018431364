//! Several machines at once.

use std::ops::Deref;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::Host;
use crate::error::Error;
use crate::outcome::gravest;

/// Some machines of a run, in order; a slice of them, too. Cheap to clone for what they are. In a trial, they are
/// [`TrialHost`](crate::trial::TrialHost)s.
#[derive(Clone, Debug)]
pub struct Hosts<H = Host>(Vec<H>);

impl<H: Clone> Hosts<H> {
    /// Does `part` on each of these machines, on so many at a time (0 counts as 1), or on all at once where `limit` is
    /// `None`. What the parts return is in the order of the machines.
    ///
    /// Once a part has failed, no other begins. Those that have begun are awaited, and the error is the first in time with
    /// the others after it: [`Error::Several`]. If the future is dropped, the parts are, which ends their commands in the
    /// background.
    ///
    /// ```
    /// # use tsunami_core::{Cluster, Error};
    /// # async fn example(cluster: &Cluster) -> Result<(), Error> {
    /// let kernels = cluster.group("client").for_each(8, async |host| {
    ///     let output = host.run("uname -r").await?;
    ///     Ok(output.stdout().trim().to_owned())
    /// });
    /// println!("{:?}", kernels.await?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// What the parts return.
    pub fn for_each<T, F, Fut, L>(
        &self,
        limit: L,
        part: F,
    ) -> impl Future<Output = Result<Vec<T>, Error>> + use<H, T, F, Fut, L>
    where
        F: Fn(H) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
        L: Into<Option<usize>>,
    {
        let limit = limit.into().map_or(usize::MAX, |limit| limit.max(1));
        let mut ahead = self.clone().into_iter().enumerate();
        async move {
            let mut running = FuturesUnordered::new();
            let (mut values, mut errors) = (Vec::new(), Vec::new());
            loop {
                while errors.is_empty()
                    && running.len() < limit
                    && let Some((place, host)) = ahead.next()
                {
                    let doing = part(host);
                    running.push(async move { (place, doing.await) });
                }
                match running.next().await {
                    Some((place, Ok(value))) => values.push((place, value)),
                    Some((_, Err(error))) => errors.push(error),
                    None => break,
                }
            }
            values.sort_by_key(|(place, _)| *place);
            gravest(errors).map_or(Ok(values.into_iter().map(|(_, value)| value).collect()), Err)
        }
    }
}

impl<H> Deref for Hosts<H> {
    type Target = [H];

    fn deref(&self) -> &[H] {
        &self.0
    }
}

impl<H> FromIterator<H> for Hosts<H> {
    fn from_iter<I: IntoIterator<Item = H>>(hosts: I) -> Self {
        Self(hosts.into_iter().collect())
    }
}

impl<H> IntoIterator for Hosts<H> {
    type Item = H;
    type IntoIter = std::vec::IntoIter<H>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a, H> IntoIterator for &'a Hosts<H> {
    type Item = &'a H;
    type IntoIter = std::slice::Iter<'a, H>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}
