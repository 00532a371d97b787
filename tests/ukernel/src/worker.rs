//! A kernel thread that handles jobs one by one, in order.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard},
};

/// The thread, started with the first job, and its queue.
pub(crate) struct Worker<T: Send + 'static> {
    name: &'static str,
    handle: fn(T),
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    jobs: VecDeque<T>,
    queued: u64,
    finished: u64,
}

impl<T: Send> Worker<T> {
    pub(crate) const fn new(name: &'static str, handle: fn(T)) -> Self {
        Worker {
            name,
            handle,
            state: Mutex::new(State {
                jobs: VecDeque::new(),
                queued: 0,
                finished: 0,
            }),
            changed: Condvar::new(),
        }
    }

    /// Queues a job.
    pub(crate) fn put(&'static self, job: T) {
        let mut state = self.state.lock().unwrap();
        if state.queued == 0 {
            std::thread::Builder::new()
                .name(self.name.into())
                .spawn(|| self.run())
                .expect("a thread");
        }
        state.jobs.push_back(job);
        state.queued += 1;
        self.changed.notify_all();
    }

    fn run(&self) {
        let mut state = self.state.lock().unwrap();
        loop {
            let Some(job) = state.jobs.pop_front() else {
                state = self.changed.wait(state).unwrap();
                continue;
            };
            drop(state);
            (self.handle)(job);
            state = self.state.lock().unwrap();
            state.finished += 1;
            self.changed.notify_all();
        }
    }

    /// Waits until what is queued now has been handled.
    pub(crate) fn drain(&self) {
        let state = self.state.lock().unwrap();
        let until = state.queued;
        self.wait_while(state, |state| state.finished < until);
    }

    /// Waits until nothing is queued, what the jobs queue included.
    pub(crate) fn settle(&self) {
        let state = self.state.lock().unwrap();
        self.wait_while(state, |state| state.finished < state.queued);
    }

    fn wait_while(&self, mut state: MutexGuard<'_, State<T>>, busy: impl Fn(&State<T>) -> bool) {
        while busy(&state) {
            state = self.changed.wait(state).unwrap();
        }
    }
}
