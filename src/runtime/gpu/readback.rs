//! Numbers on their way back: a ring of staging buffers, so that a loss is read some steps later and no step waits.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::Gpu;
use crate::error::{Error, Result};

/// How long a copy may take to be announced after it has been made.
const PATIENCE: Duration = Duration::from_secs(10);

/// A ring of staging buffers.
///
/// A copy goes through four hands: [`Ring::encode_copy`], [`Gpu::submit`], [`Ring::map`], and [`Ring::poll`] or
/// [`Ring::drain`], which give the copies back in the order in which they were mapped.
#[derive(Debug)]
pub struct Ring {
    bytes: u64,
    free: Vec<wgpu::Buffer>,
    pending: VecDeque<Pending>,
    next: u64,
}

/// A staging buffer with an encoded copy, to be mapped after its submission. Dropping it shortens the ring.
#[derive(Debug)]
#[must_use]
pub struct Slot {
    buffer: wgpu::Buffer,
    len: u64,
    ticket: u64,
}

impl Slot {
    /// Number of the copy: 0, 1, 2, ... for each ring.
    #[must_use]
    pub fn ticket(&self) -> u64 {
        self.ticket
    }
}

#[derive(Debug)]
struct Pending {
    slot: Slot,
    mapped: Arc<OnceLock<Result<(), wgpu::BufferAsyncError>>>,
}

impl Ring {
    /// `depth` staging buffers of `bytes` each.
    pub fn new(gpu: &Gpu, bytes: u64, depth: usize) -> Result<Self> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let free = (0..depth).map(|_| gpu.buffer_for("readback", bytes, usage)).collect::<Result<_>>()?;
        Ok(Self { bytes, free, pending: VecDeque::new(), next: 0 })
    }

    /// Whether every staging buffer is in use: poll or drain before the next copy.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Encodes copies of `(buffer, offset, size)` one behind the other into a free staging buffer. Offsets and sizes are
    /// multiples of four.
    pub fn encode_copy(
        &mut self,
        encoder: &mut wgpu::CommandEncoder,
        sources: &[(&wgpu::Buffer, u64, u64)],
    ) -> Result<Slot> {
        let len = sources.iter().map(|(_, _, size)| size).sum();
        if len > self.bytes {
            return Err(Error::bug(format!("{len} bytes to read back through a ring of {}", self.bytes)));
        }
        let buffer = self.free.pop().ok_or_else(|| Error::bug("a readback ring that is full"))?;
        let mut at = 0;
        for &(source, offset, size) in sources {
            encoder.copy_buffer_to_buffer(source, offset, &buffer, at, size);
            at += size;
        }
        let ticket = self.next;
        self.next += 1;
        Ok(Slot { buffer, len, ticket })
    }

    /// Asks for the bytes of a copy that has been submitted.
    pub fn map(&mut self, slot: Slot) -> Result<()> {
        let mapped = Arc::new(OnceLock::new());
        let done = Arc::clone(&mapped);
        slot.buffer.map_async(wgpu::MapMode::Read, 0..slot.len.max(4), move |result| {
            let _ = done.set(result);
        });
        self.pending.push_back(Pending { slot, mapped });
        Ok(())
    }

    /// The copies that have arrived, as (ticket, bytes), oldest first. Does not wait.
    pub fn poll(&mut self, gpu: &Gpu) -> Result<Vec<(u64, Vec<u8>)>> {
        gpu.poll(wgpu::PollType::Poll)?;
        self.collect()
    }

    /// All outstanding copies, as (ticket, bytes), oldest first. Waits for them.
    pub fn drain(&mut self, gpu: &Gpu) -> Result<Vec<(u64, Vec<u8>)>> {
        let start = Instant::now();
        let mut done = Vec::new();
        loop {
            gpu.wait()?;
            done.extend(self.collect()?);
            if self.pending.is_empty() {
                return Ok(done);
            }
            // The copies have been made, but another thread that polls the device has yet to say so.
            if start.elapsed() > PATIENCE {
                return Err(Error::device("reading back", "a copy did not arrive"));
            }
            std::thread::yield_now();
        }
    }

    fn collect(&mut self) -> Result<Vec<(u64, Vec<u8>)>> {
        let mut done = Vec::new();
        while let Some(result) = self.pending.front().and_then(|p| p.mapped.get().cloned()) {
            let Some(Pending { slot: Slot { buffer, len, ticket }, .. }) = self.pending.pop_front() else { break };
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
