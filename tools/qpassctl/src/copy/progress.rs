//! How far a copy is: a bar on a terminal, a line every tenth elsewhere.

use crate::output;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

pub struct Progress {
    bar: Option<ProgressBar>,
    /// Lines are written.
    lines: bool,
    device: String,
    doing: &'static str,
    all: u64,
    done: u64,
    /// What an earlier run has done is not this one's rate.
    before: u64,
    begin: Instant,
    said: Instant,
    tenths: u64,
}

/// What takes less has no lines: there is the one at its end.
const SHORT: Duration = Duration::from_secs(1);

impl Progress {
    /// Of so many bytes, of which some are done already.
    pub fn new(device: &str, doing: &'static str, all: u64, before: u64, quiet: bool) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let bar = (is_terminal && !quiet).then(|| {
            let (_, columns) = console::Term::stderr().size();
            let template = match columns {
                0..24 => "{percent:>3}%",
                24..64 => "{percent:>3}% {msg}",
                _ => "{prefix:9} {bar:14} {percent:>3}% {msg}",
            };
            let bar = ProgressBar::with_draw_target(Some(all), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template(template) {
                let is_dumb = !output::shows_unicode();
                bar.set_style(if is_dumb {
                    style.progress_chars("#>-")
                } else {
                    style
                });
            }
            bar.set_prefix(doing);
            bar.set_position(before);
            bar
        });
        let now = Instant::now();
        Progress {
            bar,
            lines: !is_terminal && !quiet,
            device: device.into(),
            doing,
            all,
            done: before,
            before,
            begin: now,
            said: now,
            tenths: tenths(before, all),
        }
    }

    fn words(&self, now: Instant) -> String {
        let seconds = (now - self.begin).as_secs_f64().max(1e-6);
        let rate = self.done.saturating_sub(self.before) as f64 / seconds;
        let left = match rate > 0.0 {
            true => format!(
                ", {} left",
                time(self.all.saturating_sub(self.done) as f64 / rate)
            ),
            false => String::new(),
        };
        format!(
            "{} of {}, {}/s{left}",
            output::human(self.done),
            output::human(self.all),
            output::human(rate as u64)
        )
    }

    /// So many bytes are done.
    pub fn at(&mut self, done: u64) {
        self.done = done;
        let now = Instant::now();
        if let Some(bar) = &self.bar {
            if now - self.said >= Duration::from_millis(100) {
                self.said = now;
                bar.set_message(self.words(now));
            }
            bar.set_position(done);
        }
        let tenths = tenths(done, self.all);
        if self.lines && tenths > self.tenths && tenths < 10 && now - self.begin >= SHORT {
            self.tenths = tenths;
            let (device, doing) = (&self.device, self.doing);
            eprintln!("{device}: {doing} {} %, {}", tenths * 10, self.words(now));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn tenths(done: u64, all: u64) -> u64 {
    (u128::from(done) * 10 / u128::from(all.max(1))) as u64
}

fn time(seconds: f64) -> String {
    match seconds as u64 {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s => format!("{} h", s / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// B5: what an earlier run has done is no rate of this one.
    #[test]
    fn a_rate_is_of_what_this_run_does() {
        let mut progress = Progress::new("qpass0", "reading", 64 << 20, 32 << 20, true);
        progress.done = 40 << 20;
        let words = progress.words(progress.begin + Duration::from_secs(1));
        assert_eq!(words, "40 MiB of 64 MiB, 8 MiB/s, 3 s left");
    }
}
