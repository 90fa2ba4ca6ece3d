//! Guests side by side: a bounded number of them, or all with a bounded number in one step.

use std::num::NonZeroUsize;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

/// Works through `items` in their order, at most `jobs` at once.
pub(super) fn in_order<T: Send>(jobs: NonZeroUsize, items: Vec<T>, work: impl Fn(T) + Sync) {
    let helpers = jobs.get().min(items.len()).saturating_sub(1);
    let items = Mutex::new(items.into_iter());
    let next = || lock(&items).next();
    let worker = || {
        while let Some(item) = next() {
            work(item);
        }
    };
    thread::scope(|scope| {
        for _ in 0..helpers {
            // Without another thread there is one worker less; this one is enough to come to the end.
            let _ = thread::Builder::new().spawn_scoped(scope, worker);
        }
        worker();
    });
}

/// Works on all `items` at once.
pub(super) fn all_at_once<T: Send>(items: Vec<T>, work: impl Fn(T) + Sync) {
    let jobs = NonZeroUsize::new(items.len()).unwrap_or(NonZeroUsize::MIN);
    in_order(jobs, items, work);
}

/// Locks. What a panicking thread has left behind is whole: no lock is held over anything that can panic.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A bounded number of places.
pub(super) struct Places {
    free: Mutex<usize>,
    freed: Condvar,
}

/// One of them, given back when dropped.
pub(super) struct Place<'a>(&'a Places);

impl Places {
    pub(super) fn new(number: NonZeroUsize) -> Places {
        Places { free: Mutex::new(number.get()), freed: Condvar::new() }
    }

    /// Waits for a place. `None`: there was none until the deadline.
    pub(super) fn take(&self, deadline: Option<Instant>) -> Option<Place<'_>> {
        let mut free = lock(&self.free);
        while *free == 0 {
            free = match deadline {
                None => self.freed.wait(free).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.checked_duration_since(Instant::now())?;
                    self.freed.wait_timeout(free, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        *free -= 1;
        Some(Place(self))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *lock(&self.0.free) += 1;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    fn jobs(number: usize) -> NonZeroUsize {
        NonZeroUsize::new(number).expect("not zero")
    }

    #[test]
    fn one_worker_keeps_the_order() {
        let seen = Mutex::new(Vec::new());
        in_order(jobs(1), vec![1, 2, 3], |item| lock(&seen).push(item));
        assert_eq!(*lock(&seen), [1, 2, 3]);
    }

    #[test]
    fn all_work_at_once_and_no_more_than_allowed() {
        // Would hang if they did not meet.
        let meeting = Barrier::new(5);
        all_at_once(vec![(); 5], |()| {
            meeting.wait();
        });
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        in_order(jobs(3), vec![(); 20], |()| {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            thread::yield_now();
            now.fetch_sub(1, Ordering::SeqCst);
        });
        assert!(most.load(Ordering::SeqCst) <= 3);
        all_at_once(Vec::<()>::new(), |()| panic!("there is nothing to do"));
    }

    #[test]
    fn places_are_given_back_and_waited_for_no_longer_than_allowed() {
        let places = Places::new(jobs(1));
        let first = places.take(None).expect("free");
        assert!(places.take(Some(Instant::now())).is_none());
        assert!(places.take(Some(Instant::now() + Duration::from_millis(5))).is_none());
        thread::scope(|scope| {
            let waiting = scope.spawn(|| places.take(None).is_some());
            drop(first);
            assert!(waiting.join().expect("no panic"));
        });
    }
}
