//! The system calls as they are, with arguments that no careful caller would hand over.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use rustix::io::Errno;

fn last() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// `ioctl` with any command and any address, of which the kernel is to make what it can.
pub fn ioctl(file: &File, command: u32, address: usize) -> Result<i32, Errno> {
    // SAFETY: the kernel checks an address before it touches it, and what it may touch there are buffers of the caller's, which are
    // of bytes or integers. If the driver does not, that is what is being looked for.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::c_ulong::from(command), address) } {
        -1 => Err(last()),
        done => Ok(done),
    }
}

/// A mapping; it is gone when this is dropped.
#[derive(Debug)]
pub struct Map {
    base: *mut libc::c_void,
    bytes: usize,
}

/// How a mapping may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Read.
    Read,
    /// Read and written, seen by all.
    Write,
    /// Read and written, for oneself.
    Private,
}

impl Map {
    /// Maps `bytes` bytes of `file` from `offset` on; without a file, memory.
    pub fn new(file: Option<&File>, offset: u64, bytes: usize, how: Use) -> Result<Self, Errno> {
        let protection = libc::PROT_READ | if how == Use::Read { 0 } else { libc::PROT_WRITE };
        let mut flags = if how == Use::Private { libc::MAP_PRIVATE } else { libc::MAP_SHARED };
        if file.is_none() {
            flags |= libc::MAP_ANONYMOUS;
        }
        let fd = file.map_or(-1, AsRawFd::as_raw_fd);
        // SAFETY: a mapping at an address of the kernel's choice takes nothing from anybody.
        let base =
            unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, fd, offset as libc::off_t) };
        if base == libc::MAP_FAILED { Err(last()) } else { Ok(Self { base, bytes }) }
    }

    /// Where it begins.
    pub fn address(&self) -> usize {
        self.base.expose_provenance()
    }

    /// Has it be written, too.
    pub fn make_writable(&self) -> Result<(), Errno> {
        // SAFETY: it is our mapping; nobody counts on its not being writable.
        match unsafe { libc::mprotect(self.base, self.bytes, libc::PROT_READ | libc::PROT_WRITE) } {
            0 => Ok(()),
            _ => Err(last()),
        }
    }

    /// Has it grow by a page, in place or elsewhere.
    pub fn grow(&mut self) -> Result<(), Errno> {
        let bytes = self.bytes + 4096;
        // SAFETY: it is our mapping, and its new place is noted.
        let base = unsafe { libc::mremap(self.base, self.bytes, bytes, libc::MREMAP_MAYMOVE) };
        if base == libc::MAP_FAILED {
            return Err(last());
        }
        (self.base, self.bytes) = (base, bytes);
        Ok(())
    }

    /// The page at `page` is gone from now on.
    pub fn punch(&self, page: usize) {
        // SAFETY: it is a page of our own mapping, into which there are no references.
        unsafe { libc::munmap(self.base.wrapping_byte_add(page * 4096), 4096) };
    }

    /// A word of it.
    pub fn word(&self, at: usize) -> u64 {
        assert!(at.is_multiple_of(8) && at + 8 <= self.bytes);
        // SAFETY: it is inside the mapping and aligned. A page that is no more is a signal, not a wrong access.
        unsafe { self.base.cast::<u64>().wrapping_byte_add(at).read_volatile() }
    }

    /// Writes a word of it.
    pub fn set_word(&self, at: usize, value: u64) {
        assert!(at.is_multiple_of(8) && at + 8 <= self.bytes);
        // SAFETY: as for `word`.
        unsafe { self.base.cast::<u64>().wrapping_byte_add(at).write_volatile(value) };
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: it is our mapping, and there are no references into it.
        unsafe { libc::munmap(self.base, self.bytes) };
    }
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this status.
    With(i32),
    /// By this signal.
    By(i32),
}

/// Does `what` in a child, and waits for its end. `what` is as little as a word that is read: nothing that allocates or locks.
pub fn in_child(what: impl FnOnce()) -> Result<Ended, Errno> {
    // SAFETY: the child makes system calls and looks at memory, neither of which minds other threads' locks.
    match unsafe { libc::fork() } {
        -1 => Err(last()),
        0 => {
            what();
            // SAFETY: the child's end, without anybody's handlers.
            unsafe { libc::_exit(0) }
        }
        child => {
            let mut status = 0;
            // SAFETY: a child of ours and a live local.
            if unsafe { libc::waitpid(child, &raw mut status, 0) } == -1 {
                return Err(last());
            }
            Ok(if libc::WIFSIGNALED(status) {
                Ended::By(libc::WTERMSIG(status))
            } else {
                Ended::With(libc::WEXITSTATUS(status))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_was_punched_out_is_a_signal() {
        let map = Map::new(None, 0, 3 * 4096, Use::Write).unwrap();
        map.set_word(8, 7);
        assert_eq!(map.word(8), 7);
        map.punch(1);
        assert_eq!(in_child(|| assert!(map.word(8) == 7)).unwrap(), Ended::With(0));
        assert_eq!(
            in_child(|| assert!(std::hint::black_box(map.word(4096)) == 0)).unwrap(),
            Ended::By(libc::SIGSEGV)
        );
    }
}
