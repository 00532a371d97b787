//! bus_dma(9) with bounce pages: what a device gets of a transfer whose
//! addresses it does not take as they are.
//!
//! The rules are those of x86/x86/busdma_bounce.c (load, sync, the alignment of
//! a segment) and kern/subr_busdma_bounce.c (the zone: few pages, shared by
//! every SIM, never cleared, and a load that has to wait for some). A virtual
//! address is the physical one here.

use crate::{sys, thread::broken};
use std::{
    collections::VecDeque,
    sync::{
        Condvar, LazyLock, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

const PAGE: usize = sys::PAGE_SIZE as usize;

/// What a fresh bounce page holds: the data of some other device's command.
pub const STALE: u8 = 0xd5;

/// A tag: what a device takes, and what its driver does about the rest.
#[derive(Clone, Copy, Debug)]
pub struct Tag {
    /// Addresses that are no multiple of it bounce.
    pub alignment: usize,
    /// A segment does not cross a multiple of it; 0 for none.
    pub boundary: usize,
    /// The longest segment.
    pub longest: usize,
    /// The driver has a lockfunc, so that a load can be finished later.
    pub lockfunc: bool,
    /// The driver syncs a read with PREWRITE too, which fills the bounce pages
    /// with what the buffer holds.
    pub prewrite: bool,
}

/// A part of a transfer's memory, which lies in one page.
type Part = (*mut u8, usize);

/// Memory of a transfer that is contiguous as the process sees it.
pub(crate) struct Run {
    /// Its parts, page by page.
    pub parts: Vec<Part>,
    /// It is named by pages, and has no kernel address.
    pub unmapped: bool,
}

impl Run {
    /// Kernel memory, cut at the ends of pages.
    pub fn mapped(at: *mut u8, len: usize) -> Self {
        let (mut parts, mut here, mut left) = (Vec::new(), at, len);
        while left != 0 {
            let part = left.min(PAGE - here as usize % PAGE);
            parts.push((here, part));
            here = here.wrapping_add(part);
            left -= part;
        }
        Run {
            parts,
            unmapped: false,
        }
    }
}

#[repr(C, align(4096))]
struct BouncePage([u8; PAGE]);

/// A bounce page in use, and whose bytes it stands for.
struct Bounced {
    page: Box<BouncePage>,
    client: Vec<Part>,
}

// SAFETY: the memory is the transfer's, which is under way.
unsafe impl Send for Bounced {}

/// A load: the segments that the device is told.
pub struct Map {
    /// Address, length, and whether it is a bounce page.
    pub(crate) segments: Vec<(usize, usize, bool)>,
    bounced: Vec<Bounced>,
}

/// How a load ended.
pub(crate) enum Loaded {
    /// There are the segments.
    Now(Map),
    /// EINPROGRESS: bounce pages are awaited.
    Deferred,
}

#[derive(Default)]
struct Zone {
    free: VecDeque<Box<BouncePage>>,
    /// Pages that loads without a lockfunc wait for.
    waiting: VecDeque<usize>,
    total: usize,
}

static ZONE: LazyLock<Mutex<Zone>> = LazyLock::new(|| {
    let mut zone = Zone::default();
    zone.grow(64);
    Mutex::new(zone)
});
static FREED: Condvar = Condvar::new();
static BOUNCED: AtomicU64 = AtomicU64::new(0);

impl Zone {
    fn grow(&mut self, pages: usize) {
        while self.total < pages {
            self.free.push_back(Box::new(BouncePage([STALE; PAGE])));
            self.total += 1;
        }
    }
}

/// Sets how many bounce pages there are, while none is in use.
pub fn set_pages(pages: usize) {
    let mut zone = ZONE.lock().unwrap();
    assert_eq!(zone.free.len(), zone.total, "bounce pages are in use");
    *zone = Zone::default();
    zone.grow(pages);
}

/// Pages that were bounced so far.
pub fn bounced() -> u64 {
    BOUNCED.load(Ordering::SeqCst)
}

/// Where the next segment of a load comes from.
struct Cut {
    parts: Vec<Part>,
    len: usize,
    bounces: bool,
}

/// Cuts a run as bounce_bus_dmamap_load_ma() and _load_buffer() do.
fn cut(tag: &Tag, run: &Run) -> Vec<Cut> {
    let mut cuts = Vec::new();
    let mut rest: VecDeque<Part> = run.parts.iter().copied().collect();
    let mut left: usize = run.parts.iter().map(|(_, len)| len).sum();
    while let Some((at, _)) = rest.front() {
        let in_page = PAGE - *at as usize % PAGE;
        let most = left.min(tag.longest);
        let bounces = !(*at as usize).is_multiple_of(tag.alignment);
        let mut len = in_page;
        if bounces {
            len = len.next_multiple_of(tag.alignment);
        }
        len = len.min(most);
        if bounces && run.unmapped && !len.is_multiple_of(tag.alignment) {
            broken("panic: Segment size is not aligned (busdma, INVARIANTS)");
        }
        let mut parts = Vec::new();
        let mut wanted = len;
        while wanted != 0 {
            let (at, part) = rest.pop_front().expect("as long as the run");
            let taken = part.min(wanted);
            parts.push((at, taken));
            if taken < part {
                rest.push_front((at.wrapping_add(taken), part - taken));
            }
            wanted -= taken;
        }
        left -= len;
        cuts.push(Cut {
            parts,
            len,
            bounces,
        });
    }
    cuts
}

fn within(tag: &Tag, at: usize, len: usize) -> bool {
    tag.boundary == 0 || at / tag.boundary == (at + len - 1) / tag.boundary
}

impl Map {
    /// _bus_dmamap_addseg(): joins what is adjacent, where the tag allows it.
    fn add(&mut self, tag: &Tag, at: usize, len: usize, bounced: bool) {
        if let Some((last, last_len, was)) = self.segments.last_mut()
            && *last + *last_len == at
            && *was == bounced
            && *last_len + len <= tag.longest
            && within(tag, *last, *last_len + len)
        {
            *last_len += len;
        } else {
            self.segments.push((at, len, bounced));
        }
    }

    /// Loads a transfer's memory, with `writes` for one that the device reads.
    /// Where pages are short it waits if `waits`; else the load stays on the
    /// zone's list, as that of a driver which took EINPROGRESS for an error.
    pub(crate) fn load(tag: &Tag, runs: &[Run], writes: bool, waits: bool) -> Loaded {
        let cuts: Vec<Cut> = runs.iter().flat_map(|run| cut(tag, run)).collect();
        let needed = cuts.iter().filter(|cut| cut.bounces).count();
        let mut map = Map {
            segments: Vec::new(),
            bounced: Vec::new(),
        };
        let mut pages = VecDeque::new();
        if needed != 0 {
            let mut zone = ZONE.lock().unwrap();
            while zone.free.len() < needed {
                if !waits {
                    zone.waiting.push_back(needed);
                    return Loaded::Deferred;
                }
                zone = FREED.wait(zone).unwrap();
            }
            pages = zone.free.drain(..needed).collect();
            BOUNCED.fetch_add(needed as u64, Ordering::SeqCst);
        }
        for cut in cuts {
            if !cut.bounces {
                for (at, len) in &cut.parts {
                    map.add(tag, *at as usize, *len, false);
                }
                continue;
            }
            let mut page = pages.pop_front().expect("so many are needed");
            map.add(tag, page.0.as_mut_ptr() as usize, cut.len, true);
            map.bounced.push(Bounced {
                page,
                client: cut.parts,
            });
        }
        if writes || tag.prewrite {
            map.sync(true);
        }
        Loaded::Now(map)
    }

    /// bounce_bus_dmamap_sync(): to the bounce pages, or back from them; all of
    /// what each stands for, whatever the device has moved.
    fn sync(&mut self, to_pages: bool) {
        for bounced in &mut self.bounced {
            let mut here = bounced.page.0.as_mut_ptr();
            for (at, len) in &bounced.client {
                // SAFETY: the transfer's memory, which stays until it is done;
                // a page's parts are no longer than the page.
                unsafe {
                    if to_pages {
                        core::ptr::copy_nonoverlapping(*at, here, *len);
                    } else {
                        core::ptr::copy_nonoverlapping(here, *at, *len);
                    }
                    here = here.add(*len);
                }
            }
        }
    }

    /// BUS_DMASYNC_POSTREAD.
    pub(crate) fn postread(&mut self) {
        self.sync(false);
    }

    /// The segments as memory.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let part = |(at, len, _): &(usize, usize, bool)| (*at as *mut u8, *len);
        self.segments.iter().map(part).collect()
    }
}

/// free_bounce_pages(): the zone's pages go back as they are. A load that waits
/// is finished by busdma_thread(), which calls the tag's lockfunc.
impl Drop for Map {
    fn drop(&mut self) {
        if self.bounced.is_empty() {
            return;
        }
        let mut zone = ZONE.lock().unwrap();
        zone.free.extend(self.bounced.drain(..).map(|b| b.page));
        let ready = zone.waiting.front().is_some_and(|n| *n <= zone.free.len());
        drop(zone);
        if ready {
            broken("panic: driver error: _bus_dma_dflt_lock called");
        }
        FREED.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tag of an NVMe controller's data.
    const PRPS: Tag = Tag {
        alignment: 4,
        boundary: PAGE,
        longest: PAGE,
        lockfunc: false,
        prewrite: true,
    };

    fn load(tag: &Tag, at: *mut u8, len: usize) -> Map {
        match Map::load(tag, &[Run::mapped(at, len)], false, false) {
            Loaded::Now(map) => map,
            Loaded::Deferred => panic!("deferred"),
        }
    }

    #[test]
    fn a_misaligned_transfer_starts_at_a_page_and_ends_inside_it() {
        let mut memory = [BouncePage([7; PAGE]), BouncePage([8; PAGE])];
        let at = memory[0].0.as_mut_ptr();
        let map = load(&PRPS, at.wrapping_add(4), PAGE);
        let lens: Vec<_> = map.segments.iter().map(|s| (s.1, s.2)).collect();
        assert_eq!(lens, [(PAGE - 4, false), (4, false)]);
        let map = load(&PRPS, at.wrapping_add(5), PAGE);
        let lens: Vec<_> = map.segments.iter().map(|s| (s.1, s.2)).collect();
        assert_eq!(lens, [(PAGE - 4, true), (4, true)]);
        assert!(map.segments.iter().all(|s| s.0.is_multiple_of(PAGE)));
        // SAFETY: the first page of the zone's.
        let first = unsafe { *(map.segments[0].0 as *const [u8; PAGE]) };
        assert_eq!((first[0], first[PAGE - 5], first[PAGE - 4]), (7, 8, STALE));
    }

    #[test]
    fn without_a_boundary_what_is_adjacent_is_one_segment() {
        let mut memory = [BouncePage([0; PAGE]), BouncePage([0; PAGE])];
        let tag = Tag {
            alignment: 2,
            boundary: 0,
            longest: 4 << 20,
            lockfunc: true,
            prewrite: false,
        };
        let at = memory[0].0.as_mut_ptr();
        let map = load(&tag, at, 2 * PAGE);
        assert_eq!(map.segments, [(at as usize, 2 * PAGE, false)]);
    }
}
