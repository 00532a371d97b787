//! A queue(3) TAILQ of things that are owned elsewhere: being on the list is
//! being known, not being kept.
//!
//! Who owns a node takes it off before it goes ([`ZoneBox`] sees to that); who
//! has the list may look at every node on it.
//!
//! [`ZoneBox`]: super::zone::ZoneBox

use core::{
    cell::Cell,
    ptr::NonNull,
    sync::atomic::{AtomicBool, Ordering},
};

/// The fields through which a [`List`] chains its nodes.
pub struct Links<N> {
    prev: Cell<Option<NonNull<N>>>,
    next: Cell<Option<NonNull<N>>>,
    linked: AtomicBool,
}

// SAFETY: the two pointers are read and written by the list alone, which is
// borrowed exclusively for that.
unsafe impl<N> Sync for Links<N> {}
// SAFETY: as above.
unsafe impl<N> Send for Links<N> {}

impl<N> Links<N> {
    /// On no list.
    pub const fn new() -> Self {
        Links {
            prev: Cell::new(None),
            next: Cell::new(None),
            linked: AtomicBool::new(false),
        }
    }

    /// Whether the node is on a list. It changes in its owner's hands only.
    pub fn is_linked(&self) -> bool {
        self.linked.load(Ordering::Relaxed)
    }
}

impl<N> Drop for Links<N> {
    fn drop(&mut self) {
        // A panic is the kernel's end: the list never sees what was freed.
        assert!(!self.is_linked(), "a node goes while it is on a list");
    }
}

impl<N> Default for Links<N> {
    fn default() -> Self {
        Self::new()
    }
}

/// What can be on a [`List`].
pub trait Node: Sized {
    /// The links, which nothing but a list touches.
    fn links(&self) -> &Links<Self>;
}

/// Owns a node, which others may see while it is on a list.
///
/// # Safety
/// The node stays where it is, and nobody has it exclusively, until it is
/// dropped, with its last owner. (Its [`Links`] see that it is on no list
/// then.)
pub unsafe trait Owner {
    /// What it owns.
    type Node: Node;
    /// Where it is.
    fn node(&self) -> NonNull<Self::Node>;
}

/// See the module's page.
pub struct List<N> {
    head: Option<NonNull<N>>,
    tail: Option<NonNull<N>>,
}

// SAFETY: whoever has the list may look at the nodes from its thread.
unsafe impl<N: Sync> Send for List<N> {}

impl<N: Node> List<N> {
    /// An empty list.
    pub const fn new() -> Self {
        List {
            head: None,
            tail: None,
        }
    }

    /// Puts a node that is on no list at the end.
    pub fn insert(&mut self, owner: &impl Owner<Node = N>) {
        let node = owner.node();
        // SAFETY: an owned node stays until it is off the list again, and so do
        // those that are on it.
        unsafe {
            let links = node.as_ref().links();
            assert!(!links.is_linked(), "a node on two lists");
            links.linked.store(true, Ordering::Relaxed);
            links.prev.set(self.tail);
            links.next.set(None);
            match self.tail {
                Some(tail) => tail.as_ref().links().next.set(Some(node)),
                None => self.head = Some(node),
            }
        }
        self.tail = Some(node);
    }

    /// Takes a node off, which is on this list or on none.
    pub fn remove(&mut self, owner: &impl Owner<Node = N>) {
        let node = owner.node();
        // SAFETY: as in insert().
        unsafe {
            let links = node.as_ref().links();
            if !links.is_linked() {
                return;
            }
            let (prev, next) = (links.prev.take(), links.next.take());
            match prev {
                Some(prev) => prev.as_ref().links().next.set(next),
                None => {
                    assert!(self.head == Some(node), "a node of another list");
                    self.head = next;
                }
            }
            match next {
                Some(next) => next.as_ref().links().prev.set(prev),
                None => self.tail = prev,
            }
            links.linked.store(false, Ordering::Relaxed);
        }
    }

    /// Whether no node is on it.
    pub fn is_empty(&self) -> bool {
        self.head.is_none()
    }

    /// The nodes, those first that came first.
    pub fn iter(&self) -> impl Iterator<Item = &N> {
        let mut at = self.head;
        core::iter::from_fn(move || {
            // SAFETY: on the list, and nobody takes it off while that is
            // borrowed.
            let node = unsafe { at?.as_ref() };
            at = node.links().next.get();
            Some(node)
        })
    }
}

impl<N: Node> Default for List<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::{boxed::Box, vec::Vec};

    struct Numbered {
        links: Links<Numbered>,
        number: u32,
    }
    impl Node for Numbered {
        fn links(&self) -> &Links<Self> {
            &self.links
        }
    }
    struct Owned(NonNull<Numbered>);
    impl Owned {
        fn new(number: u32) -> Self {
            let links = Links::new();
            Owned(NonNull::from(Box::leak(Box::new(Numbered {
                links,
                number,
            }))))
        }
    }
    // SAFETY: a Box does not move its contents, and drop() is as below.
    unsafe impl Owner for Owned {
        type Node = Numbered;
        fn node(&self) -> NonNull<Numbered> {
            self.0
        }
    }
    impl Drop for Owned {
        fn drop(&mut self) {
            // SAFETY: leaked in new(), and given back once.
            let node = unsafe { Box::from_raw(self.0.as_ptr()) };
            if node.links.is_linked() {
                std::process::abort();
            }
        }
    }

    fn numbers(list: &List<Numbered>) -> Vec<u32> {
        list.iter().map(|n| n.number).collect()
    }

    proptest::proptest! {
        /// Any order of putting on and taking off, against a Vec.
        #[test]
        fn it_is_a_queue_that_forgets_from_anywhere(steps in proptest::collection::vec(0usize..8, 0..64)) {
            let owned: Vec<_> = (0..8).map(Owned::new).collect();
            let (mut list, mut model) = (List::new(), Vec::new());
            for i in steps {
                if model.contains(&(i as u32)) {
                    model.retain(|n| *n != i as u32);
                    list.remove(&owned[i]);
                } else {
                    model.push(i as u32);
                    list.insert(&owned[i]);
                }
                assert_eq!(numbers(&list), model);
            }
            for owner in &owned {
                // Taking off what is off already changes nothing.
                list.remove(owner);
                list.remove(owner);
            }
            assert!(numbers(&list).is_empty());
        }
    }

    #[test]
    #[should_panic(expected = "a node on two lists")]
    fn a_node_is_on_one_list_at_most() {
        let node = core::mem::ManuallyDrop::new(Owned::new(1));
        let mut list = List::new();
        list.insert(&*node);
        list.insert(&*node);
    }
}
