// SPDX-License-Identifier: GPL-2.0

//! Fences of an open file, which user space signals: what the `kernel` crate lacks for them.
//!
//! Like `dmabuf.rs`, it counts as the driver's own code. Static inlines are in `fence_shim.h`.
//!
//! All of a file's fences are signalled when it is closed. Then nothing of a fence refers to the
//! module any more: its operations are for one that is pending, and its timer has gone.

use core::ptr::null_mut;
use kernel::{
    bindings,
    error::to_result,
    new_mutex,
    prelude::*,
    sync::Mutex,
    types::Opaque, //
};

#[allow(
    improper_ctypes,
    reason = "Some configurations have fields of size zero in structs that are only pointed to."
)]
extern "C" {
    // See fence_shim.h.
    fn pagekit_fence_set_up_timer(
        timer: *mut bindings::timer_list,
        function: Option<unsafe extern "C" fn(*mut bindings::timer_list)>,
    );
    fn pagekit_fence_start_timer(timer: *mut bindings::timer_list, seconds: c_uint);
    fn pagekit_fence_put(fence: *mut bindings::dma_fence);
}

/// A fence is signalled after so many seconds, so that nobody waits for ever.
const TIMEOUT: c_uint = 10;

static OPS: bindings::dma_fence_ops = bindings::dma_fence_ops {
    get_driver_name: Some(driver_name),
    get_timeline_name: Some(timeline_name),
    ..pin_init::zeroed()
};

/// # Safety
///
/// To be called by the core.
unsafe extern "C" fn driver_name(_fence: *mut bindings::dma_fence) -> *const c_char {
    c"pagekit".as_char_ptr()
}

/// # Safety
///
/// To be called by the core.
unsafe extern "C" fn timeline_name(_fence: *mut bindings::dma_fence) -> *const c_char {
    c"unbound".as_char_ptr()
}

/// A fence and the timer that signals it. On drop it is signalled.
///
/// # Invariants
///
/// It owns a reference on `fence`, and the timer is set up.
#[pin_data(PinnedDrop)]
struct Pending {
    fence: *mut bindings::dma_fence,
    #[pin]
    timer: Opaque<bindings::timer_list>,
}

// SAFETY: Fences and timers may be used by any thread.
unsafe impl Send for Pending {}

impl Pending {
    fn new() -> Result<Pin<KBox<Self>>> {
        // Whoever puts the last reference frees it as such a box.
        let flags = GFP_KERNEL_ACCOUNT | __GFP_ZERO;
        let fence = KBox::into_raw(KBox::<bindings::dma_fence>::new_uninit(flags)?).cast();
        // SAFETY: Nobody else has it yet. The operations are constant. Without another lock it has
        // one of its own.
        unsafe {
            let context = bindings::dma_fence_context_alloc(1);
            bindings::dma_fence_init(fence, &OPS, null_mut(), context, 1);
        }
        // INVARIANT: The reference of the new fence is this one's, and the timer is set up here.
        let pending = pin_init!(Self {
            fence,
            // SAFETY: It is set up where it stays. What it calls is for such timers.
            timer <- Opaque::ffi_init(|timer| unsafe {
                pagekit_fence_set_up_timer(timer, Some(expire));
            }),
        });
        let pending = KBox::pin_init(pending, GFP_KERNEL_ACCOUNT).inspect_err(|_| {
            // SAFETY: Nobody has taken over the reference.
            unsafe { pagekit_fence_put(fence) };
        })?;
        // SAFETY: The timer is set up, and all that it uses is there.
        unsafe { pagekit_fence_start_timer(pending.timer.get(), TIMEOUT) };
        Ok(pending)
    }
}

#[pinned_drop]
impl PinnedDrop for Pending {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariants the timer is set up, and the reference is ours.
        unsafe {
            bindings::timer_delete_sync(self.timer.get());
            bindings::dma_fence_signal(self.fence);
            pagekit_fence_put(self.fence);
        }
    }
}

/// # Safety
///
/// To be called by the kernel, for a timer of a `Pending`.
unsafe extern "C" fn expire(timer: *mut bindings::timer_list) {
    // SAFETY: The timer is one of a `Pending`, which owns a reference on the fence, and goes when
    // this is done.
    unsafe {
        let timer = timer.cast::<Opaque<bindings::timer_list>>();
        let pending = kernel::container_of!(timer, Pending, timer);
        bindings::dma_fence_signal((*pending).fence);
    }
}

/// The fences of an open file, by their numbers: these begin with 1, and none is used again.
#[pin_data]
pub(crate) struct Fences {
    #[pin]
    list: Mutex<KVVec<Option<Pin<KBox<Pending>>>>>,
}

impl Fences {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            list <- new_mutex!(KVVec::new()),
        })
    }

    /// Adds a new fence to `resv`, of one who writes or who reads, and returns its number. `EBUSY`
    /// if there is one that it would have to wait for.
    ///
    /// # Safety
    ///
    /// `resv` must be a reservation object whose lock the caller holds.
    pub(crate) unsafe fn add(&self, resv: *mut bindings::dma_resv, write: bool) -> Result<u32> {
        const READ: bindings::dma_resv_usage = bindings::dma_resv_usage_DMA_RESV_USAGE_READ;
        const WRITE: bindings::dma_resv_usage = bindings::dma_resv_usage_DMA_RESV_USAGE_WRITE;
        // C's `dma_resv_usage_rw()` is inline: who reads waits for writes, and who writes for all.
        let (others, own) = if write { (READ, WRITE) } else { (WRITE, READ) };
        // SAFETY: The caller holds the lock.
        unsafe {
            if !bindings::dma_resv_test_signaled(resv, others) {
                return Err(EBUSY);
            }
            to_result(bindings::dma_resv_reserve_fences(resv, 1))?;
        }
        let pending = Pending::new()?;
        let fence = pending.fence;
        let mut list = self.list.lock();
        list.push(Some(pending), GFP_KERNEL_ACCOUNT)?;
        // SAFETY: The caller holds the lock, under which there is room for it. The list has the
        // fence, and is locked. This takes a reference of its own.
        unsafe { bindings::dma_resv_add_fence(resv, fence, own) };
        Ok(u32::try_from(list.len())?)
    }

    /// Signals the fence with that number. `ENOENT` if there is none, or this was done before, and
    /// `ETIMEDOUT` if it took too long.
    pub(crate) fn signal(&self, number: u32) -> Result {
        let at = (number as usize).wrapping_sub(1);
        let pending = self.list.lock().get_mut(at).and_then(Option::take);
        let pending = pending.ok_or(ENOENT)?;
        // SAFETY: There is a reference on the fence.
        let late = unsafe { bindings::dma_fence_get_status(pending.fence) } != 0;
        drop(pending);
        if late {
            return Err(ETIMEDOUT);
        }
        Ok(())
    }
}
