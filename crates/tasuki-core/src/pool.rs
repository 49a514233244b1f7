//! One bounded pool for work that burns CPU: RSA, argon2, JSON-LD, DKIM.
//!
//! It keeps a heavy document off the reactors, so that it never delays a player's packet.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use tokio::sync::{Semaphore, oneshot};

type Job = Box<dyn FnOnce() + Send>;

/// Handle to the pool; clones share its threads and its queue.
#[derive(Clone)]
pub struct CpuPool {
    feed: Arc<Feed>,
    waiting: Arc<Semaphore>,
}

/// The jobs that no thread has taken yet; the pool's semaphore bounds them.
#[derive(Default)]
struct Jobs {
    queue: VecDeque<Job>,
    /// Threads that sleep: with none there is nobody to wake, which saves a system call for each job under load.
    asleep: usize,
    is_closed: bool,
}

#[derive(Default)]
struct Queue {
    jobs: Mutex<Jobs>,
    came: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, job: Job) {
        let mut jobs = self.lock();
        jobs.queue.push_back(job);
        let wake = jobs.asleep > 0;
        drop(jobs);
        if wake {
            self.came.notify_one();
        }
    }

    /// The next job; none when the pool is closed and all are done.
    fn next(&self) -> Option<Job> {
        let mut jobs = self.lock();
        loop {
            if let Some(job) = jobs.queue.pop_front() {
                return Some(job);
            }
            if jobs.is_closed {
                return None;
            }
            jobs.asleep += 1;
            jobs = self.came.wait(jobs).unwrap_or_else(PoisonError::into_inner);
            jobs.asleep -= 1;
        }
    }
}

/// The callers' end; when the last handle is gone the threads finish what waits and end.
struct Feed(Arc<Queue>);

impl Drop for Feed {
    fn drop(&mut self) {
        self.0.lock().is_closed = true;
        self.0.came.notify_all();
    }
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
        let queue_of_jobs = Arc::<Queue>::default();
        let feed = Feed(Arc::clone(&queue_of_jobs));
        for index in 0..threads.max(1) {
            let jobs = Arc::clone(&queue_of_jobs);
            thread::Builder::new()
                .name(format!("cpu-{index}"))
                .spawn(move || work(&jobs))?;
        }
        Ok(Self {
            feed: Arc::new(feed),
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
        self.feed.0.push(Box::new(move || {
            // A caller that went away has no use for the work.
            if !answer.is_closed() {
                let _ = answer.send(job());
            }
            drop(place);
        }));
        result.await.map_err(|_| PoolError::Lost)
    }
}

fn work(jobs: &Queue) {
    while let Some(job) = jobs.next() {
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
    async fn every_job_of_many_at_once_is_answered() {
        let pool = CpuPool::new(3, 64).expect("threads start");
        let jobs: Vec<_> = (0..2_000)
            .map(|n| {
                let pool = pool.clone();
                tokio::spawn(async move { pool.run(move || n + 1).await })
            })
            .collect();
        for (n, job) in jobs.into_iter().enumerate() {
            assert_eq!(job.await.expect("task ends"), Ok(n + 1));
        }
    }

    #[tokio::test]
    async fn the_threads_end_with_the_last_handle() {
        let pool = CpuPool::new(2, 4).expect("threads start");
        let queue = std::sync::Arc::downgrade(&pool.feed.0);
        assert_eq!(pool.clone().run(|| 1).await, Ok(1));
        drop(pool);
        let ended = async {
            while queue.upgrade().is_some() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), ended)
            .await
            .expect("the threads end");
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
