//! Readback through a ring of staging buffers: a loss is read some steps later, so no step waits for it.

use std::collections::VecDeque;

use crate::error::{Error, Result};
use crate::runtime::gpu::{Gpu, free};
use crate::runtime::sys::signal::Signal;

/// A ring of staging buffers.
///
/// Each readback takes four calls, in this order: [`Ring::encode_copy`], [`Gpu::submit`], [`Ring::map`], and one of [`Ring::poll`],
/// [`Ring::wait_for_oldest`] and [`Ring::drain`]. These return copies in the order of their [`Ring::map`] calls.
#[derive(Debug)]
pub struct Ring {
    bytes: u64,
    free: Vec<wgpu::Buffer>,
    pending: VecDeque<Pending>,
    next: u64,
}

/// A staging buffer with an encoded copy, for [`Ring::map`] after the submission. Dropping it removes the buffer from the ring.
#[derive(Debug)]
#[must_use]
pub struct StagedCopy {
    buffer: wgpu::Buffer,
    len: u64,
    ticket: u64,
}

impl StagedCopy {
    /// Returns the number of the copy, counted from 0 in each ring.
    #[must_use]
    pub fn ticket(&self) -> u64 {
        self.ticket
    }
}

#[derive(Debug)]
struct Pending {
    copy: StagedCopy,
    submission: wgpu::SubmissionIndex,
    /// Whether the staging buffer can be read.
    mapped: Signal<Result<(), wgpu::BufferAsyncError>>,
}

impl Drop for Ring {
    fn drop(&mut self) {
        free(self.free.iter().chain(self.pending.iter().map(|pending| &pending.copy.buffer)));
    }
}

impl Ring {
    /// Creates a ring of `depth` staging buffers of `bytes` each.
    ///
    /// # Errors
    /// As [`Gpu::buffer`].
    pub fn new(gpu: &Gpu, bytes: u64, depth: usize) -> Result<Self> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let free = (0..depth).map(|_| gpu.buffer_for("readback", bytes, usage)).collect::<Result<_>>()?;
        Ok(Self { bytes, free, pending: VecDeque::new(), next: 0 })
    }

    /// Returns whether `depth` copies of `bytes` each can be in flight together.
    #[must_use]
    pub fn fits(&self, bytes: u64, depth: usize) -> bool {
        bytes <= self.bytes && depth <= self.free.len()
    }

    /// Returns whether every staging buffer is in use. If so, the next copy needs a [`Ring::poll`] or [`Ring::drain`] before it.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Encodes copies of the ranges `(buffer, offset, size)` into one staging buffer, without gaps. Offsets and sizes must be
    /// multiples of four.
    ///
    /// # Errors
    /// [`Error::Bug`] if the ring is full or the ranges exceed a staging buffer.
    pub fn encode_copy(
        &mut self,
        encoder: &mut wgpu::CommandEncoder,
        sources: &[(&wgpu::Buffer, u64, u64)],
    ) -> Result<StagedCopy> {
        let len = sources.iter().map(|(_, _, size)| size).sum();
        if len > self.bytes {
            return Err(Error::bug(format!("{len} bytes exceed a staging buffer of {} bytes", self.bytes)));
        }
        let buffer = self.free.pop().ok_or_else(|| Error::bug("the readback ring is full"))?;
        let mut at = 0;
        for &(source, offset, size) in sources {
            encoder.copy_buffer_to_buffer(source, offset, &buffer, at, size);
            at += size;
        }
        let ticket = self.next;
        self.next += 1;
        Ok(StagedCopy { buffer, len, ticket })
    }

    /// Requests the bytes of a copy after its submission. [`Ring::poll`] and the like report a failure.
    pub fn map(&mut self, copy: StagedCopy, submission: wgpu::SubmissionIndex) {
        let (mapped, done) = Signal::new();
        copy.buffer.map_async(wgpu::MapMode::Read, 0..copy.len.max(4), done);
        self.pending.push_back(Pending { copy, submission, mapped });
    }

    /// Takes back the buffer of a copy whose submission failed.
    pub fn release(&mut self, copy: StagedCopy) {
        self.free.push(copy.buffer);
    }

    /// Returns finished copies as (ticket, bytes), oldest first. Does not wait.
    ///
    /// # Errors
    /// [`Error::Device`] if the device failed.
    pub fn poll(&mut self, gpu: &Gpu) -> Result<Vec<(u64, Vec<u8>)>> {
        gpu.poll(wgpu::PollType::Poll)?;
        self.collect()
    }

    /// Waits for all copies and returns them as (ticket, bytes), oldest first.
    ///
    /// # Errors
    /// [`Error::Device`] if the device failed.
    pub async fn drain(&mut self, gpu: &Gpu) -> Result<Vec<(u64, Vec<u8>)>> {
        let all = self.pending.len();
        self.wait(gpu, wgpu::PollType::wait_indefinitely(), all).await
    }

    /// Waits for the oldest copy, while later submissions run on, and returns it with those that have finished too. Returns nothing if there
    /// is none.
    ///
    /// # Errors
    /// As [`Ring::drain`].
    pub async fn wait_for_oldest(&mut self, gpu: &Gpu) -> Result<Vec<(u64, Vec<u8>)>> {
        let Some(oldest) = self.pending.front() else { return Ok(Vec::new()) };
        let submission_index = Some(oldest.submission.clone());
        self.wait(gpu, wgpu::PollType::Wait { submission_index, timeout: None }, 1).await
    }

    /// Waits for the `count` oldest copies. In a browser the poll returns at once, and the callbacks end the wait.
    async fn wait(&mut self, gpu: &Gpu, how: wgpu::PollType, count: usize) -> Result<Vec<(u64, Vec<u8>)>> {
        gpu.poll(how)?;
        for Pending { mapped, .. } in self.pending.iter().take(count) {
            // `collect` reports a failure.
            let _ = mapped.wait().await;
        }
        gpu.health()?;
        self.collect()
    }

    fn collect(&mut self) -> Result<Vec<(u64, Vec<u8>)>> {
        let mut done = Vec::new();
        while let Some(result) = self.pending.front().and_then(|p| p.mapped.get()) {
            let Some(Pending { copy: StagedCopy { buffer, len, ticket }, .. }) = self.pending.pop_front() else {
                break;
            };
            let failed = |e: &dyn std::fmt::Display| Error::device("reading back", e);
            result.map_err(|e| failed(&e))?;
            let bytes = buffer.get_mapped_range(0..len.max(4)).map_err(|e| failed(&e))?;
            done.push((ticket, bytes.iter().copied().take(len as usize).collect()));
            drop(bytes);
            buffer.unmap();
            self.free.push(buffer);
        }
        Ok(done)
    }
}
