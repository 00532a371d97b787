//! Reads from two disks at once in one thread, as a program with a reactor of
//! its own does: a queue is readable when something can be reaped.
//!
//! usage: reactor qpass0 qpass1

#[cfg(target_os = "freebsd")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use polling::{Event, Events, Poller};
    use qpass_client::{Command, Device, Method, Queue, kernel};
    use std::time::{Duration, Instant};

    let kernel = kernel()?;
    let poller = Poller::new()?;
    let mut queues = Vec::new();
    for (key, name) in std::env::args().skip(1).enumerate() {
        let device = Device::open(&kernel, &name)?;
        let mut queue = device.queue(16, Method::Enter)?;
        for i in 0..16 {
            let buffer = device.buffer(4096)?;
            let command = Command::read(i * 8, 8, buffer, 4096).recover(4);
            queue.submit(command, i).map_err(|_| "no room")?;
        }
        queue.flush()?;
        // SAFETY: the queue is taken out of the poller before it is dropped.
        unsafe { poller.add(&queue, Event::readable(key))? };
        queues.push(queue);
    }
    let mut events = Events::new();
    while queues.iter().any(|queue| queue.in_flight() != 0) {
        events.clear();
        // A write that met a busy disk is sent again in a while, and wakes nobody.
        let due = queues.iter().filter_map(Queue::due).min();
        let wait = due.map(|at| at.saturating_duration_since(Instant::now()));
        poller.wait(&mut events, wait)?;
        let now = Instant::now();
        for (key, queue) in queues.iter_mut().enumerate() {
            let is_readable = events.iter().any(|event| event.key == key);
            if !is_readable && queue.due().is_none_or(|due| due > now) {
                continue;
            }
            for done in queue.reap(0, Duration::ZERO)? {
                let name = queue.device().name();
                match done.result {
                    Ok(outcome) => println!("{name} {}: {} bytes", done.tag, outcome.moved),
                    Err(failure) => println!("{name} {}: {failure}", done.tag),
                }
            }
            poller.modify(&*queue, Event::readable(key))?;
        }
    }
    for queue in &queues {
        poller.delete(queue)?;
    }
    Ok(())
}

#[cfg(not(target_os = "freebsd"))]
fn main() {
    eprintln!("reactor: descriptors of the user-mode kernel are not the system's");
    std::process::exit(1);
}
