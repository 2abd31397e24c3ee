//! The rate of requests that a key admits: a bucket of tokens, kept as one number.
//!
//! The number is the time at which the bucket will be full again. A request moves it ahead by the
//! time that one token takes to come. It is refused when the bucket would be full too late.

use std::time::Duration;

use tokio::time::Instant;

use crate::sync::{AtomicU64, Ordering};

#[derive(Debug)]
pub(super) struct Rate {
    per_second: u32,
    /// The time in which one token comes, in nanoseconds.
    token: u64,
    /// The time in which an empty bucket fills, in nanoseconds.
    bucket: u64,
    began: Instant,
    /// When the bucket will be full, in nanoseconds since `began`.
    full_at: AtomicU64,
}

impl Rate {
    /// A full bucket of `burst` tokens, at least one of each.
    pub(super) fn new(per_second: u32, burst: u32) -> Self {
        let token = 1_000_000_000 / u64::from(per_second.max(1));
        Self {
            per_second,
            token,
            bucket: token.saturating_mul(u64::from(burst.max(1))),
            began: Instant::now(),
            full_at: AtomicU64::new(0),
        }
    }

    pub(super) fn per_second(&self) -> u32 {
        self.per_second
    }

    /// Takes a token, or says how long it takes until there is one.
    pub(super) fn take(&self) -> Result<(), Duration> {
        let now = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut full_at = self.full_at.load(Ordering::Relaxed);
        loop {
            let after = full_at.max(now).saturating_add(self.token);
            let late = after.saturating_sub(now).saturating_sub(self.bucket);
            if late > 0 {
                return Err(Duration::from_nanos(late));
            }
            match self.full_at.compare_exchange_weak(
                full_at,
                after,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(()),
                Err(newer) => full_at = newer,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn taken(rate: &Rate) -> usize {
        (0..1_000).take_while(|_| rate.take().is_ok()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_bucket_is_a_burst_and_then_tokens_come_at_the_rate() {
        let rate = Rate::new(10, 25);
        assert_eq!(taken(&rate), 25);
        assert_eq!(rate.take(), Err(Duration::from_millis(100)));
        advance(Duration::from_millis(40)).await;
        assert_eq!(rate.take(), Err(Duration::from_millis(60)));
        advance(Duration::from_millis(60)).await;
        assert_eq!((rate.take(), taken(&rate)), (Ok(()), 0));
        advance(Duration::from_secs(1)).await;
        assert_eq!(taken(&rate), 10);
        advance(Duration::from_hours(1)).await;
        assert_eq!(taken(&rate), 25, "no more than the bucket holds");
    }

    #[tokio::test(start_paused = true)]
    async fn the_smallest_rate_admits_a_request_each_second() {
        let rate = Rate::new(0, 0);
        assert_eq!(taken(&rate), 1);
        assert_eq!(rate.take(), Err(Duration::from_secs(1)));
        advance(Duration::from_secs(1)).await;
        assert_eq!(taken(&rate), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn callers_at_once_take_each_token_once() {
        let rate = Rate::new(1, 500);
        let taken = std::thread::scope(|scope| {
            let callers = [(); 4].map(|()| scope.spawn(|| taken(&rate)));
            callers
                .map(|caller| caller.join().unwrap())
                .iter()
                .sum::<usize>()
        });
        assert_eq!(taken, 500);
    }
}
