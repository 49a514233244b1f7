//! One bounded pool for work that burns CPU: RSA, argon2, JSON-LD, DKIM.
//!
//! It keeps a heavy document off the reactors, so that it never delays a player's packet.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tokio::sync::{Semaphore, oneshot};

type Job = Box<dyn FnOnce() + Send>;

/// Handle to the pool; clones share its threads and its queue.
#[derive(Clone)]
pub struct CpuPool {
    jobs: Sender<Job>,
    waiting: Arc<Semaphore>,
}

/// Why a job was not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The queue is full: shed load in the protocol's own form.
    #[error("too much computation is waiting already")]
    Full,
    /// The job panicked or the pool was closed.
    #[error("the computation did not finish")]
    Lost,
}

impl CpuPool {
    /// A pool of `threads` threads on which at most `queue` jobs are held, running ones included.
    ///
    /// # Errors
    /// The operating system's error if a thread cannot be started.
    pub fn new(threads: usize, queue: usize) -> std::io::Result<Self> {
        let (jobs, feed) = channel::<Job>();
        let feed = Arc::new(Mutex::new(feed));
        for index in 0..threads.max(1) {
            let feed = Arc::clone(&feed);
            thread::Builder::new()
                .name(format!("cpu-{index}"))
                .spawn(move || work(&feed))?;
        }
        Ok(Self {
            jobs,
            waiting: Arc::new(Semaphore::new(queue.max(1))),
        })
    }

    /// Runs `job` on the pool; waits for a place in the queue.
    ///
    /// # Errors
    /// [`PoolError::Lost`] if the job panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PoolError> {
        let place = Arc::clone(&self.waiting)
            .acquire_owned()
            .await
            .map_err(|_| PoolError::Lost)?;
        self.submit(job, place).await
    }

    /// Runs `job` on the pool if there is a place in the queue now.
    ///
    /// # Errors
    /// [`PoolError::Full`] at once when the queue is full, [`PoolError::Lost`] if the job panicked.
    pub async fn try_run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PoolError> {
        let place = Arc::clone(&self.waiting)
            .try_acquire_owned()
            .map_err(|_| PoolError::Full)?;
        self.submit(job, place).await
    }

    async fn submit<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
        place: tokio::sync::OwnedSemaphorePermit,
    ) -> Result<T, PoolError> {
        let (answer, result) = oneshot::channel();
        self.jobs
            .send(Box::new(move || {
                // A caller that went away has no use for the work.
                if !answer.is_closed() {
                    let _ = answer.send(job());
                }
                drop(place);
            }))
            .map_err(|_| PoolError::Lost)?;
        result.await.map_err(|_| PoolError::Lost)
    }
}

fn work(feed: &Mutex<Receiver<Job>>) {
    loop {
        let job = feed.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        // A panic in one job must not take the thread: the caller sees `Lost`.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
            tracing::error!("a computation panicked; its caller was told");
        }
    }
}

impl std::fmt::Debug for CpuPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuPool")
            .field("free_places", &self.waiting.available_permits())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::{CpuPool, PoolError};

    #[tokio::test]
    async fn a_panicking_job_is_reported_and_the_pool_lives_on() {
        let pool = CpuPool::new(1, 4).expect("threads start");
        assert_eq!(
            pool.run(|| panic!("on purpose")).await,
            Err::<(), _>(PoolError::Lost)
        );
        assert_eq!(pool.run(|| 7).await, Ok(7));
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once() {
        let pool = CpuPool::new(1, 1).expect("threads start");
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let held = tokio::spawn({
            let pool = pool.clone();
            async move { pool.run(move || gate.recv()).await }
        });
        while pool.waiting.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(pool.try_run(|| ()).await, Err(PoolError::Full));
        open.send(()).expect("the job waits");
        assert!(held.await.expect("task ends").is_ok());
    }
}
