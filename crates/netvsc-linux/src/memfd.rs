//! Memory that processes share: the memory of a guest whose host is another process, or the other way round.
//!
//! A [`SharedFile`] is a `memfd` whose size is sealed, so that nobody who holds it can pull the memory away from under
//! the others' feet. Its descriptor is handed on as descriptors are: by inheritance, or over a socket.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use vmbus::Pfn;
use vmbus::memory::{PAGE_SIZE, SharedPages};

use crate::mapping::map_file;

/// The seals that keep a file's size.
const SIZE_SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

/// Why memory cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum MemfdError {
    /// No pages, or more than there are addresses for.
    #[error("a shared file has at least one page and fits into the address space, not {0} pages")]
    Pages(usize),
    /// A file whose size is no number of pages.
    #[error("a shared file is whole pages of 4096 bytes, this one has {0} bytes")]
    Ragged(u64),
    /// A file that somebody could make smaller while it is mapped.
    #[error("the size of a shared file is sealed, that of this one is not")]
    NotSealed,
    /// Not as many page frame numbers as pages.
    #[error("one page frame number for each of {pages} pages, or none; got {frames}")]
    Frames {
        /// Pages of the file.
        pages: usize,
        /// Numbers given.
        frames: usize,
    },
    /// The kernel says no.
    #[error("{what}: {error}")]
    Kernel {
        /// What was asked for.
        what: &'static str,
        /// What it said.
        error: io::Error,
    },
}

fn kernel(what: &'static str) -> impl Fn(rustix::io::Errno) -> MemfdError {
    move |error| MemfdError::Kernel { what, error: error.into() }
}

/// A file of zeroed memory that several processes can map.
#[derive(Debug)]
pub struct SharedFile {
    file: OwnedFd,
    pages: usize,
}

impl SharedFile {
    /// A new file of `pages` pages. `name` is what `/proc` shows.
    ///
    /// # Errors
    /// [`MemfdError::Pages`], or what the kernel says.
    pub fn create(name: &str, pages: usize) -> Result<Self, MemfdError> {
        let size =
            pages.checked_mul(PAGE_SIZE).filter(|size| (1..=isize::MAX as usize).contains(size));
        let size = size.ok_or(MemfdError::Pages(pages))?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create(name, flags).map_err(kernel("memfd_create"))?;
        rustix::fs::ftruncate(&file, size as u64).map_err(kernel("ftruncate"))?;
        fcntl_add_seals(&file, SIZE_SEALS | SealFlags::SEAL).map_err(kernel("sealing"))?;
        Ok(Self { file, pages })
    }

    /// A file that another process made, or this one.
    ///
    /// # Errors
    /// [`MemfdError::NotSealed`] if it could shrink, [`MemfdError::Ragged`] or [`MemfdError::Pages`] if it is no number of
    /// pages, or what the kernel says.
    pub fn adopt(file: OwnedFd) -> Result<Self, MemfdError> {
        let seals = fcntl_get_seals(&file).map_err(kernel("asking for seals"))?;
        if !seals.contains(SIZE_SEALS) {
            return Err(MemfdError::NotSealed);
        }
        let file = File::from(file);
        let what = "asking for the size";
        let size = file.metadata().map_err(|error| MemfdError::Kernel { what, error })?.len();
        if !size.is_multiple_of(PAGE_SIZE as u64) {
            return Err(MemfdError::Ragged(size));
        }
        let pages = usize::try_from(size / PAGE_SIZE as u64).unwrap_or(0);
        if pages == 0 || isize::try_from(size).is_err() {
            return Err(MemfdError::Pages(pages));
        }
        Ok(Self { file: file.into(), pages })
    }

    /// Number of pages.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// The whole memory, mapped once more, with the page frame numbers by which the peer knows it (or none). It stays as long
    /// as any view of it, whatever becomes of the file.
    ///
    /// # Errors
    /// [`MemfdError::Frames`], or what the kernel says.
    pub fn map(&self, frames: &[Pfn]) -> Result<SharedPages, MemfdError> {
        if !frames.is_empty() && frames.len() != self.pages {
            return Err(MemfdError::Frames { pages: self.pages, frames: frames.len() });
        }
        map_file(&self.file, 0, self.pages, frames).map_err(kernel("mmap"))
    }

    /// `pages` pages from page `first` on, mapped by themselves: they stay as long as any view of them. Otherwise as
    /// [`SharedFile::map`].
    ///
    /// # Errors
    /// [`MemfdError::Pages`] if they are not all inside, [`MemfdError::Frames`], or what the kernel says.
    pub fn map_part(
        &self,
        first: usize,
        pages: usize,
        frames: &[Pfn],
    ) -> Result<SharedPages, MemfdError> {
        if pages == 0 || first.checked_add(pages).is_none_or(|end| end > self.pages) {
            return Err(MemfdError::Pages(pages));
        }
        if !frames.is_empty() && frames.len() != pages {
            return Err(MemfdError::Frames { pages, frames: frames.len() });
        }
        let offset = (first * PAGE_SIZE) as u64;
        map_file(&self.file, offset, pages, frames).map_err(kernel("mmap"))
    }

    /// Another handle of the file, to be handed to the peer.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn handle(&self) -> Result<OwnedFd, MemfdError> {
        let what = "another descriptor";
        self.file.try_clone().map_err(|error| MemfdError::Kernel { what, error })
    }
}

impl AsFd for SharedFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmbus::memory::SharedMemory;

    #[test]
    fn two_mappings_show_the_same_memory_which_outlives_the_file() {
        let file = SharedFile::create("test", 3).unwrap();
        let other = SharedFile::adopt(file.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!((file.pages(), other.pages()), (3, 3));
        let frames = [Pfn(7), Pfn(8), Pfn(9)];
        let (one, two) = (file.map(&frames).unwrap(), other.map(&[]).unwrap());
        drop((file, other));
        assert_eq!((one.frames(), two.frames()), (&frames[..], &[][..]));
        one.write(2 * PAGE_SIZE - 2, b"wire").unwrap();
        let part = two.slice(1, 2).unwrap();
        drop((one, two));
        let mut back = [0; 2];
        part.read(PAGE_SIZE, &mut back).unwrap();
        assert_eq!(&back, b"re");
    }

    #[test]
    fn a_part_is_mapped_by_itself() {
        let file = SharedFile::create("test", 3).unwrap();
        let (whole, part) = (file.map(&[]).unwrap(), file.map_part(1, 2, &[]).unwrap());
        part.write(PAGE_SIZE, b"x").unwrap();
        let mut back = [0; 1];
        whole.read(2 * PAGE_SIZE, &mut back).unwrap();
        assert_eq!(&back, b"x");
        for (first, pages) in [(0, 0), (3, 1), (2, 2), (usize::MAX, 1)] {
            let error = file.map_part(first, pages, &[]).unwrap_err();
            assert!(matches!(error, MemfdError::Pages(p) if p == pages), "{error}");
        }
        let error = file.map_part(0, 2, &[Pfn(1)]).unwrap_err();
        assert!(matches!(error, MemfdError::Frames { pages: 2, frames: 1 }), "{error}");
    }

    #[test]
    fn sizes_and_frames_have_to_fit() {
        for pages in [0, usize::MAX, usize::MAX / PAGE_SIZE] {
            assert!(
                matches!(SharedFile::create("test", pages), Err(MemfdError::Pages(p)) if p == pages)
            );
        }
        let file = SharedFile::create("test", 2).unwrap();
        let error = file.map(&[Pfn(1)]).unwrap_err();
        assert!(matches!(error, MemfdError::Frames { pages: 2, frames: 1 }), "{error}");
    }

    #[test]
    fn a_file_that_could_shrink_is_refused() {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let loose = memfd_create("test", flags).unwrap();
        rustix::fs::ftruncate(&loose, 4096).unwrap();
        fcntl_add_seals(&loose, SealFlags::GROW).unwrap();
        assert!(matches!(SharedFile::adopt(loose), Err(MemfdError::NotSealed)));
        for (size, ragged) in [(4095, true), (0, false)] {
            let odd = memfd_create("test", flags).unwrap();
            rustix::fs::ftruncate(&odd, size).unwrap();
            fcntl_add_seals(&odd, SIZE_SEALS).unwrap();
            let error = SharedFile::adopt(odd).unwrap_err();
            assert_eq!(matches!(error, MemfdError::Ragged(4095)), ragged, "{error}");
            assert_eq!(matches!(error, MemfdError::Pages(0)), !ragged, "{error}");
        }
        let sealed = SharedFile::create("test", 1).unwrap();
        assert!(rustix::fs::ftruncate(&sealed, 0).is_err(), "nobody can pull it away");
    }
}
