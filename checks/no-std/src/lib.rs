//! The guest crates where there is no std.
//!
//! A static library with a panic handler of its own: if any crate below linked std, there would be two of them and
//! the build would fail. So it is proof enough on a host target, where no bare-metal target is installed. It is
//! built, never run.
#![no_std]

extern crate alloc;

use core::alloc::{GlobalAlloc, Layout};
use core::panic::PanicInfo;

/// An allocator without memory; nothing here runs.
struct NoMemory;

// SAFETY: it never hands out memory, so there is none to be wrong about.
unsafe impl GlobalAlloc for NoMemory {
    unsafe fn alloc(&self, _: Layout) -> *mut u8 {
        core::ptr::null_mut()
    }

    // SAFETY: nothing was handed out, so nothing comes back.
    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static ALLOCATOR: NoMemory = NoMemory;

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// A channel without a bus, on memory of our own.
#[unsafe(no_mangle)]
pub extern "C" fn check_vmbus() -> bool {
    let pages =
        |first| vmbus::memory::SharedPages::from_heap(&[vmbus::Pfn(first), vmbus::Pfn(first + 1)]);
    vmbus::channel::Channel::from_parts(pages(0), pages(2), vmbus::channel::SignalFlag::default())
        .is_ok()
}

/// A slot as PCI writes it.
#[unsafe(no_mangle)]
pub extern "C" fn check_vpci(device: u8, function: u8) -> u8 {
    vpci::Slot::new(device, function).map_or(0xff, |slot| slot.devfn().0)
}

/// An address out of text and into text again, which allocates.
#[unsafe(no_mangle)]
pub extern "C" fn check_netvsc() -> usize {
    let mac = "00:15:5d:00:00:07".parse::<netvsc::MacAddress>();
    mac.map_or(0, |mac| alloc::format!("{mac}").len())
}
