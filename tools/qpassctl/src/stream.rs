//! Pipes, terminals and FIFOs, on threads of their own: whatever a read, a write
//! or an open waits for, a signal ends the wait.

use crate::stopped;
use std::{
    fs::File,
    io::{self, ErrorKind, Read, Write},
    os::{fd::AsFd, unix::fs::FileTypeExt},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread,
    time::Duration,
};

/// How long a wait does not look whether it is to end.
const LOOK: Duration = Duration::from_millis(50);
/// Pieces that wait to be written, or to be taken.
const AHEAD: usize = 8;

/// Standard input or output by name.
pub fn is_standard(path: &Path) -> bool {
    path == Path::new("-")
}

/// What comes next of a channel, or that it is to end.
fn wait<T>(from: &Receiver<T>) -> io::Result<Option<T>> {
    loop {
        if stopped() {
            return Err(ErrorKind::Interrupted.into());
        }
        match from.recv_timeout(LOOK) {
            Ok(next) => return Ok(Some(next)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
        }
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    // Not joined: it may wait for ever, and ends with the process.
    thread::Builder::new().name(name.into()).spawn(body)?;
    Ok(())
}

/// What is at a path, or standard output, without a buffer before it.
fn open_for_writing(path: Option<&Path>) -> io::Result<File> {
    match path {
        None => io::stdout().as_fd().try_clone_to_owned().map(File::from),
        Some(path) => File::options().write(true).open(path),
    }
}

/// What was written is on the medium, where there is one.
fn sync(file: &File) -> io::Result<()> {
    let kind = file.metadata()?.file_type();
    match kind.is_file() || kind.is_block_device() {
        true => file.sync_all(),
        false => Ok(()),
    }
}

/// Writes in order, and says of each piece how it went.
pub struct Writer {
    pieces: SyncSender<Vec<u8>>,
    results: Receiver<io::Result<()>>,
    /// Pieces of which the result is not known.
    waiting: usize,
}

impl Writer {
    /// Standard output, or what is at a path; that is opened with the first
    /// piece, since a FIFO's open waits for its reader.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn new(path: &Path) -> io::Result<Self> {
        let (pieces, todo) = sync_channel::<Vec<u8>>(AHEAD);
        let (tell, results) = sync_channel(2 * AHEAD);
        let path: Option<PathBuf> = (!is_standard(path)).then(|| path.into());
        spawn("writer", move || {
            let mut out: Option<File> = None;
            for piece in todo {
                let result = match &out {
                    Some(_) => Ok(()),
                    None => open_for_writing(path.as_deref()).map(|file| out = Some(file)),
                };
                let result = result.and_then(|()| {
                    let out = out.as_mut().expect("opened");
                    match piece.is_empty() {
                        true => sync(out),
                        false => out.write_all(&piece),
                    }
                });
                let is_end = result.is_err();
                if tell.send(result).is_err() || is_end {
                    return;
                }
            }
        })?;
        Ok(Writer {
            pieces,
            results,
            waiting: 0,
        })
    }

    fn one_result(&mut self) -> io::Result<()> {
        self.waiting -= 1;
        wait(&self.results)?.unwrap_or_else(|| Err(ErrorKind::BrokenPipe.into()))
    }

    /// Hands a piece over; an error may be an earlier piece's.
    ///
    /// # Errors
    /// Of open(2) and write(2); Interrupted: it is to end.
    pub fn write(&mut self, piece: Vec<u8>) -> io::Result<()> {
        while self.waiting >= AHEAD {
            self.one_result()?;
        }
        self.waiting += 1;
        match self.pieces.send(piece) {
            Ok(()) => Ok(()),
            // It has ended with an error, which is still to be had.
            Err(_) => self.one_result(),
        }
    }

    /// Waits until all is written, and on its medium.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn sync(&mut self) -> io::Result<()> {
        self.write(Vec::new())?;
        self.finish()
    }

    /// Waits until all is written.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn finish(&mut self) -> io::Result<()> {
        while self.waiting != 0 {
            self.one_result()?;
        }
        Ok(())
    }
}

/// Reads ahead, in pieces of one size; only the last is shorter.
pub struct Reader {
    pieces: Receiver<io::Result<Vec<u8>>>,
}

impl Reader {
    /// Standard input, or what is at a path.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn new(path: &Path, size: usize) -> io::Result<Self> {
        let (give, pieces) = sync_channel(AHEAD);
        let path: Option<PathBuf> = (!is_standard(path)).then(|| path.into());
        spawn("reader", move || {
            let opened = match &path {
                None => Ok(Box::new(io::stdin()) as Box<dyn Read>),
                Some(path) => File::open(path).map(|file| Box::new(file) as Box<dyn Read>),
            };
            let mut from = match opened {
                Ok(from) => from,
                Err(error) => {
                    let _ = give.send(Err(error));
                    return;
                }
            };
            loop {
                let mut piece = Vec::with_capacity(size);
                match (&mut from).take(size as u64).read_to_end(&mut piece) {
                    // What came before an error is not all that there was.
                    Err(error) => {
                        let _ = give.send(Err(error));
                        return;
                    }
                    Ok(0) => return,
                    Ok(_) => {
                        let is_last = piece.len() < size;
                        if give.send(Ok(piece)).is_err() || is_last {
                            return;
                        }
                    }
                }
            }
        })?;
        Ok(Reader { pieces })
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// Of open(2) and read(2); Interrupted: it is to end.
    pub fn piece(&mut self) -> io::Result<Option<Vec<u8>>> {
        wait(&self.pieces)?.transpose()
    }
}
