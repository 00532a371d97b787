//! A queue(3) STAILQ whose entries are owned: putting one in moves it, taking
//! one out moves it back, and there is no way to hold both.

use core::{mem::ManuallyDrop, ptr::NonNull};

/// The field through which a [`Fifo`] chains its nodes.
pub struct Link<N>(Option<NonNull<N>>);

// SAFETY: only the queue that owns the node follows the link.
unsafe impl<N> Send for Link<N> {}
// SAFETY: as above.
unsafe impl<N> Sync for Link<N> {}

impl<N> Link<N> {
    /// Not in a queue.
    pub const fn new() -> Self {
        Link(None)
    }
}

impl<N> Default for Link<N> {
    fn default() -> Self {
        Self::new()
    }
}

/// An owning pointer that can stand in a [`Fifo`].
///
/// # Safety
/// `into_raw` gives a pointer that stays valid and unaliased until it is given
/// to `from_raw`; `link` names a field that nothing but the queue touches.
pub unsafe trait Entry: Sized {
    /// What the pointer points at.
    type Node;
    /// Gives up ownership.
    fn into_raw(self) -> NonNull<Self::Node>;
    /// Takes ownership back.
    ///
    /// # Safety
    /// `node` came from `into_raw` and was not taken back since.
    unsafe fn from_raw(node: NonNull<Self::Node>) -> Self;
    /// Where the queue keeps the next node.
    ///
    /// # Safety
    /// `node` came from `into_raw` and was not taken back since.
    unsafe fn link(node: NonNull<Self::Node>) -> *mut Link<Self::Node>;
}

/// First in, first out.
pub struct Fifo<E: Entry> {
    head: Option<NonNull<E::Node>>,
    tail: Option<NonNull<E::Node>>,
    len: usize,
}

// SAFETY: the queue owns its entries; it is as sendable as they are.
unsafe impl<E: Entry + Send> Send for Fifo<E> {}

impl<E: Entry> Fifo<E> {
    /// An empty queue.
    pub const fn new() -> Self {
        Fifo {
            head: None,
            tail: None,
            len: 0,
        }
    }

    /// A queue of one.
    pub fn of(entry: E) -> Self {
        let mut fifo = Fifo::new();
        fifo.push(entry);
        fifo
    }

    /// Entries in the queue.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Shows every entry to `look`, those first that went in first.
    pub fn for_each(&mut self, mut look: impl FnMut(&E)) {
        let mut at = self.head;
        while let Some(node) = at {
            // SAFETY: queued nodes are the queue's; the entry is given back
            // whole, by not being dropped.
            unsafe {
                at = (*E::link(node)).0;
                look(&ManuallyDrop::new(E::from_raw(node)));
            }
        }
    }

    /// Puts an entry at the end.
    pub fn push(&mut self, entry: E) {
        let node = entry.into_raw();
        // SAFETY: the node is ours since into_raw; the tail is ours while queued.
        unsafe {
            (*E::link(node)).0 = None;
            match self.tail {
                Some(tail) => (*E::link(tail)).0 = Some(node),
                None => self.head = Some(node),
            }
        }
        self.tail = Some(node);
        self.len += 1;
    }

    /// Takes the first entry.
    pub fn pop(&mut self) -> Option<E> {
        let node = self.head?;
        // SAFETY: queued nodes are ours, and this one leaves the queue here.
        let entry = unsafe {
            self.head = (*E::link(node)).0;
            E::from_raw(node)
        };
        if self.head.is_none() {
            self.tail = None;
        }
        self.len -= 1;
        Some(entry)
    }

    /// Takes out, in order, every entry that `wanted` picks.
    pub fn take_if(&mut self, mut wanted: impl FnMut(&E) -> bool) -> Fifo<E> {
        let (mut taken, mut kept) = (Fifo::new(), Fifo::new());
        while let Some(entry) = self.pop() {
            let to = if wanted(&entry) {
                &mut taken
            } else {
                &mut kept
            };
            to.push(entry);
        }
        *self = kept;
        taken
    }

    /// Takes out the first entry that `wanted` picks, and looks no further.
    pub fn take_first(&mut self, wanted: impl Fn(&E) -> bool) -> Option<E> {
        let (mut before, mut at) = (None, self.head);
        while let Some(node) = at {
            // SAFETY: queued nodes are the queue's; one that is not wanted is given
            // back whole, by not being dropped, and one that is leaves the queue.
            unsafe {
                let next = (*E::link(node)).0;
                let entry = ManuallyDrop::new(E::from_raw(node));
                if wanted(&entry) {
                    match before {
                        Some(before) => (*E::link(before)).0 = next,
                        None => self.head = next,
                    }
                    if next.is_none() {
                        self.tail = before;
                    }
                    self.len -= 1;
                    return Some(ManuallyDrop::into_inner(entry));
                }
                (before, at) = (Some(node), next);
            }
        }
        None
    }

    /// Puts all of `last` behind what is there.
    pub fn append(&mut self, mut last: Fifo<E>) {
        last.prepend(core::mem::take(self));
        *self = last;
    }

    /// Puts all of `first` before what is there.
    pub fn prepend(&mut self, mut first: Fifo<E>) {
        let Some(tail) = first.tail else {
            return;
        };
        // SAFETY: queued nodes are the queue's, and `first` is ours.
        unsafe { (*E::link(tail)).0 = self.head };
        self.head = first.head.take();
        self.tail = self.tail.or(first.tail);
        first.tail = None;
        self.len += core::mem::take(&mut first.len);
    }

    /// Takes everything.
    pub fn take(&mut self) -> Fifo<E> {
        core::mem::take(self)
    }
}

impl<E: Entry> Default for Fifo<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E: Entry> Drop for Fifo<E> {
    fn drop(&mut self) {
        while let Some(entry) = self.pop() {
            drop(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::{boxed::Box, rc::Rc, vec::Vec};

    struct Node {
        value: u32,
        next: Link<Node>,
        _alive: Rc<()>,
    }
    struct Owned(Box<Node>);

    // SAFETY: a Box is an owning, stable pointer; `next` is the queue's alone.
    unsafe impl Entry for Owned {
        type Node = Node;
        fn into_raw(self) -> NonNull<Node> {
            NonNull::new(Box::into_raw(self.0)).unwrap()
        }
        unsafe fn from_raw(node: NonNull<Node>) -> Self {
            // SAFETY: the caller gives back what into_raw gave.
            Owned(unsafe { Box::from_raw(node.as_ptr()) })
        }
        unsafe fn link(node: NonNull<Node>) -> *mut Link<Node> {
            // SAFETY: the caller owns the node.
            unsafe { &raw mut (*node.as_ptr()).next }
        }
    }

    fn filled(alive: &Rc<()>, n: u32) -> Fifo<Owned> {
        let mut fifo = Fifo::new();
        for value in 0..n {
            fifo.push(Owned(Box::new(Node {
                value,
                next: Link::new(),
                _alive: alive.clone(),
            })));
        }
        fifo
    }

    fn values(fifo: &mut Fifo<Owned>) -> Vec<u32> {
        core::iter::from_fn(|| fifo.pop())
            .map(|e| e.0.value)
            .collect()
    }

    #[test]
    fn entries_come_out_in_the_order_they_went_in() {
        let alive = Rc::new(());
        let mut fifo = filled(&alive, 5);
        assert_eq!(fifo.len(), 5);
        assert_eq!(values(&mut fifo), [0, 1, 2, 3, 4]);
        assert!(fifo.is_empty());
        assert_eq!(Rc::strong_count(&alive), 1);
    }

    #[test]
    fn taking_some_leaves_the_others_in_order() {
        let alive = Rc::new(());
        let mut fifo = filled(&alive, 6);
        let mut seen = Vec::new();
        fifo.for_each(|e| seen.push(e.0.value));
        assert_eq!(seen, [0, 1, 2, 3, 4, 5]);
        let mut odd = fifo.take_if(|e| e.0.value % 2 == 1);
        assert_eq!(values(&mut odd), [1, 3, 5]);
        assert_eq!(values(&mut fifo), [0, 2, 4]);
    }

    #[test]
    fn taking_the_first_leaves_its_likes() {
        let alive = Rc::new(());
        let mut fifo = filled(&alive, 6);
        let third = fifo.take_first(|e| e.0.value % 3 == 2).unwrap();
        assert_eq!(third.0.value, 2);
        assert!(fifo.take_first(|e| e.0.value > 9).is_none());
        assert_eq!(values(&mut fifo), [0, 1, 3, 4, 5]);
    }

    #[test]
    fn what_is_put_before_comes_first() {
        let alive = Rc::new(());
        for (n, m) in [(0, 0), (0, 2), (2, 0), (2, 3), (1, 0), (1, 2)] {
            let (mut fifo, first) = (filled(&alive, n), filled(&alive, m));
            match n % 2 {
                0 => fifo.prepend(first),
                _ => {
                    let mut all = first;
                    all.append(fifo);
                    fifo = all;
                }
            }
            assert_eq!(fifo.len(), (n + m) as usize);
            fifo.push(Owned(Box::new(Node {
                value: 9,
                next: Link::new(),
                _alive: alive.clone(),
            })));
            let wanted: Vec<_> = (0..m).chain(0..n).chain([9]).collect();
            assert_eq!(values(&mut fifo), wanted);
        }
        assert_eq!(Rc::strong_count(&alive), 1);
    }

    #[test]
    fn dropping_the_queue_frees_its_entries() {
        let alive = Rc::new(());
        drop(filled(&alive, 7));
        assert_eq!(Rc::strong_count(&alive), 1);
    }
}
