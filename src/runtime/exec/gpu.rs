//! Plans on a device: buffers, bind groups and pipelines are made once, each run replays them.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::runtime::exec::{
    Data, Executor, InputId, OutputId, ProgramId, Report, check_same_tensors, check_tensors, not_the_last_run,
    unknown_program, unused_arena,
};
use crate::runtime::gpu::{Binding, Gpu, Program, Ring, Span, Step, Timer, free};
use crate::runtime::graph::{Arena, Graph, Tensor, ValueId};
use crate::runtime::op::{Exchanges, Sum};
use crate::runtime::plan;
use crate::runtime::plan::{BufferId, BufferRange, Plan};
use crate::runtime::sys::platform::block_on;
use crate::runtime::tensor::{Layout, Spec};

/// Most bytes that a run can report; larger outputs are for [`Executor::read`].
const REPORT_BYTES: u64 = 1024;
/// Number of reports in flight before a run waits for the oldest.
const REPORT_DEPTH: usize = 4;

/// Runs graphs on a GPU.
///
/// ```no_run
/// use std::sync::Arc;
/// use vae_wgpu::runtime::exec::{Data, Executor, GpuExecutor};
/// use vae_wgpu::runtime::gpu::{Gpu, Options};
/// use vae_wgpu::runtime::graph::Builder;
/// use vae_wgpu::runtime::op::Relu;
/// use vae_wgpu::runtime::plan;
/// use vae_wgpu::runtime::tensor::{Shape, Spec};
///
/// let mut b = Builder::new();
/// let x = b.input("x", Spec::nhwc(Shape::new(1, 4, 1, 1)))?;
/// let y = b.apply("relu", &[x], |s| Relu::new(s[0]))?;
///
/// let gpu = Arc::new(Gpu::open(&Options::default())?);
/// let mut exec = GpuExecutor::new(gpu, &plan::Options::default())?;
/// let program = exec.add(b.output("y", y).build())?;
/// exec.write(exec.input(program, "x")?, Data::F32(&[-1.0, 0.0, 0.5, 2.0]))?;
/// exec.run(program, &[])?;
/// assert_eq!(exec.read(exec.output(program, "y")?)?, [0.0, 0.0, 0.5, 2.0]);
/// # Ok::<(), vae_wgpu::Error>(())
/// ```
pub struct GpuExecutor {
    gpu: Arc<Gpu>,
    options: plan::Options,
    programs: Vec<Compiled>,
    buffers: Shared,
    ring: Ring,
    /// For the sums of a run that processes exchange.
    staging: Option<Ring>,
    /// Ticket and reported outputs of the runs whose reports are in flight.
    pending: Vec<(u64, Vec<Spec>)>,
    /// Reports that have arrived and were not taken yet.
    ready: Vec<Report>,
    /// The program that ran last. Its outputs are intact; those of the others have been overwritten.
    last: Option<ProgramId>,
    /// For the next run, and of the last run that had one.
    timers: [Option<Timer>; 2],
}

/// Buffers that all programs use, because only one runs at a time.
#[derive(Clone, Default)]
struct Shared {
    slots: Vec<wgpu::Buffer>,
    arenas: BTreeMap<Arena, wgpu::Buffer>,
}

struct Compiled {
    graph: Graph,
    plan: Plan,
    /// In the order of [`Graph::inputs`].
    inputs: Vec<wgpu::Buffer>,
    program: Program,
}

impl Compiled {
    /// Returns a ring for copies of all sums of the plan: `old`, if it is large enough.
    fn staging(&self, gpu: &Gpu, old: Option<Ring>) -> Result<Ring> {
        let bytes = |value: &ValueId| self.graph.value(*value).spec.device_bytes() as u64;
        let most = self.plan.sums.values().map(|sums| sums.iter().map(bytes).sum()).max().unwrap_or(0);
        match old.filter(|old| old.fits(most, self.plan.sums.len())) {
            Some(old) => Ok(old),
            None => Ring::new(gpu, most, self.plan.sums.len()),
        }
    }
}

impl fmt::Debug for GpuExecutor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GpuExecutor").field("programs", &self.programs.len()).finish_non_exhaustive()
    }
}

impl Drop for GpuExecutor {
    fn drop(&mut self) {
        let Shared { slots, arenas } = &self.buffers;
        let inputs = self.programs.iter().flat_map(|compiled| &compiled.inputs);
        free(slots.iter().chain(arenas.values()).chain(inputs));
    }
}

impl GpuExecutor {
    /// Returns an executor without programs. [`Executor::add`] plans with `options`.
    ///
    /// # Errors
    /// [`Error::Device`] if the buffers for reports cannot be allocated.
    pub fn new(gpu: Arc<Gpu>, options: &plan::Options) -> Result<Self> {
        let ring = Ring::new(&gpu, REPORT_BYTES, REPORT_DEPTH)?;
        let (programs, buffers, staging, pending, ready, last, timers) = Default::default();
        Ok(Self { gpu, options: options.clone(), programs, buffers, ring, staging, pending, ready, last, timers })
    }

    /// Adds a graph with its plan for this device: allocates its buffers and compiles its kernels.
    ///
    /// Adding the largest program first is cheapest. A larger one reallocates buffers that the programs before it use.
    ///
    /// # Errors
    /// As [`Executor::add`]; [`Error::Shader`] or [`Error::Device`] for a kernel that does not compile.
    pub fn add_planned(&mut self, graph: Graph, plan: Plan) -> Result<ProgramId> {
        if let Some(first) = self.programs.first() {
            check_same_tensors(&first.graph, &graph)?;
        }
        let number = self.programs.len();
        // All or nothing: an error below leaves the executor as it is.
        let mut buffers = self.buffers.clone();
        let reallocated = buffers.grow(&self.gpu, &graph, &plan)?;
        let input = |(name, id): (&String, &ValueId)| {
            self.gpu.buffer(&format!("input {name} {number}"), graph.value(*id).spec.device_bytes() as u64)
        };
        let inputs = graph.inputs().iter().map(input).collect::<Result<Vec<_>>>()?;
        let program = buffers.program(&self.gpu, number, &plan, &inputs)?;
        if reallocated {
            let earlier = self.programs.iter().enumerate();
            let rebound = earlier.map(|(i, old)| buffers.program(&self.gpu, i, &old.plan, &old.inputs));
            let rebound = rebound.collect::<Result<Vec<_>>>()?;
            self.programs.iter_mut().zip(rebound).for_each(|(compiled, program)| compiled.program = program);
            self.last = None;
        }
        let before = std::mem::replace(&mut self.buffers, buffers);
        let replaced = before.slots.iter().zip(&self.buffers.slots).filter(|(old, new)| old != new);
        free(replaced.map(|(old, _)| old));
        self.programs.push(Compiled { graph, plan, inputs, program });
        Ok(ProgramId(number))
    }

    /// Returns the plan of a program.
    ///
    /// # Errors
    /// [`Error::Bug`] for a program of another executor.
    pub fn plan(&self, program: ProgramId) -> Result<&Plan> {
        Ok(&self.compiled(program)?.plan)
    }

    /// Returns the device.
    #[must_use]
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Runs a single node of a program, by number, to inspect a step.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    pub fn run_node(&mut self, program: ProgramId, node: usize) -> Result<()> {
        let compiled = self.compiled(program)?;
        let dispatches = compiled.plan.dispatches.iter().enumerate();
        let steps = dispatches.filter_map(|(i, dispatch)| (dispatch.node == node).then_some(i));
        compiled.program.submit_steps(&self.gpu, steps)
    }

    /// Returns the present contents of the memory of a value, in logical order; whole arenas with their padding. Waits.
    ///
    /// # Errors
    /// [`Error::Bug`] for a value that no node touches, [`Error::Device`] if the device fails.
    pub fn value(&self, program: ProgramId, value: ValueId) -> Result<Vec<f32>> {
        block_on(self.value_async(program, value))
    }

    async fn value_async(&self, program: ProgramId, value: ValueId) -> Result<Vec<f32>> {
        let compiled = self.compiled(program)?;
        let binding = self.buffers.value(compiled, value)?;
        let bytes = self.gpu.read_async(binding.buffer, binding.offset, binding.size).await?;
        compiled.graph.value(value).spec.unpack(&bytes)
    }

    /// Like [`Executor::reports`], for a browser.
    ///
    /// # Errors
    /// As [`Executor::reports`].
    pub async fn reports_async(&mut self, wait: bool) -> Result<Vec<Report>> {
        let copies = if wait { self.ring.drain(&self.gpu).await? } else { self.ring.poll(&self.gpu)? };
        self.receive(copies)?;
        Ok(std::mem::take(&mut self.ready))
    }

    /// Like [`Executor::oldest_reports`], for a browser.
    ///
    /// # Errors
    /// As [`Executor::reports`].
    pub async fn oldest_reports_async(&mut self) -> Result<Vec<Report>> {
        let copies = self.ring.wait_for_oldest(&self.gpu).await?;
        self.receive(copies)?;
        Ok(std::mem::take(&mut self.ready))
    }

    /// Like [`Executor::read`], for a browser.
    ///
    /// # Errors
    /// As [`Executor::read`].
    pub async fn read_async(&self, output: OutputId) -> Result<Vec<f32>> {
        if self.last != Some(output.program) {
            return Err(not_the_last_run(self.graph(output.program)?, output));
        }
        self.value_async(output.program, output.value).await
    }

    /// Like [`Executor::download`], for a browser.
    ///
    /// # Errors
    /// As [`Executor::download`].
    pub async fn download_async(&self, arena: Arena) -> Result<Vec<Vec<f32>>> {
        let first = self.programs.first().ok_or_else(|| unused_arena(arena))?;
        if first.graph.tensors(arena).is_empty() {
            return Ok(Vec::new());
        }
        let (specs, buffer) = self.arena(arena)?;
        let bytes = self.gpu.read_async(buffer, 0, buffer.size()).await?;
        let one = |tensor: &Tensor| {
            let at = tensor.offset as usize;
            let range = bytes.get(at..at + tensor.spec.device_bytes());
            tensor.spec.unpack(range.ok_or_else(|| outside(tensor))?)
        };
        specs.iter().map(one).collect()
    }

    /// Starts a run, and exchanges values after the submissions that the plan names.
    fn run_parts(&mut self, program: ProgramId, report: &[OutputId], mut with: Exchanges<'_>) -> Result<u64> {
        if self.ring.is_full() {
            // The device keeps working on the later ones.
            let copies = block_on(self.ring.wait_for_oldest(&self.gpu))?;
            self.receive(copies)?;
        }
        let compiled = self.programs.get(program.0).ok_or_else(|| unknown_program(program))?;
        let (mut specs, mut sources) = (Vec::new(), Vec::new());
        for output in report {
            if output.program != program {
                return Err(not_the_last_run(self.graph(output.program)?, *output));
            }
            let Binding { buffer, offset, size } = self.buffers.value(compiled, output.value)?;
            specs.push(compiled.graph.value(output.value).spec);
            sources.push((buffer, offset, size));
        }
        let mut staging = match with {
            Exchanges::Sums(_) => Some(compiled.staging(&self.gpu, self.staging.take())?),
            Exchanges::None | Exchanges::Tensors(_) => None,
        };
        let mut staged = None;
        let mut encoder = self.gpu.encoder("run");
        let [next, timed] = &mut self.timers;
        for part in 0..compiled.program.parts() {
            if part > 0 {
                let submission = self.gpu.submit(std::mem::replace(&mut encoder, self.gpu.encoder("run")))?;
                if let (Some(staging), Some(copy)) = (&mut staging, staged.take()) {
                    staging.map(copy, submission);
                }
                let exchange = compiled.plan.exchanges.get(&(part - 1));
                if let (Some((value, exchange)), Exchanges::Tensors(gather)) = (exchange, &mut with) {
                    let Binding { buffer, offset, size } = self.buffers.value(compiled, *value)?;
                    let spec = compiled.graph.value(*value).spec;
                    let parts = gather(&spec.unpack(&self.gpu.read(buffer, offset, size)?)?)?;
                    self.gpu.write(buffer, offset, &spec.pack(&(exchange.merge)(&parts))?)?;
                }
            }
            compiled.program.encode_part(&mut encoder, part, next.as_mut());
            if let (Some(staging), Some(sums)) = (&mut staging, compiled.plan.sums.get(&part)) {
                staged = Some(staging.encode_copy(&mut encoder, &self.buffers.ranges(compiled, sums)?)?);
            }
        }
        if let Some(timer) = next.take() {
            timer.resolve(&mut encoder);
            *timed = Some(timer);
        }
        let copy = self.ring.encode_copy(&mut encoder, &sources)?;
        let submission = match self.gpu.submit(encoder) {
            Ok(submission) => submission,
            Err(error) => {
                self.ring.release(copy);
                return Err(error);
            }
        };
        self.pending.push((copy.ticket(), specs));
        self.last = Some(program);
        let ticket = copy.ticket();
        self.ring.map(copy, submission.clone());
        if let (Some(staging), Some(copy)) = (&mut staging, staged) {
            staging.map(copy, submission);
        }
        if let (Exchanges::Sums(sum), Some(staging)) = (with, staging) {
            self.exchange_staged(program, staging, sum)?;
        }
        Ok(ticket)
    }

    /// Exchanges the sums of a program, copies of which are on their way to the host: each while the device is busy with what comes after it.
    fn exchange_staged(&mut self, program: ProgramId, mut staging: Ring, sum: Sum<'_>) -> Result<()> {
        let compiled = self.compiled(program)?;
        let mut arrived = VecDeque::new();
        for sums in compiled.plan.sums.values() {
            if arrived.is_empty() {
                arrived.extend(block_on(staging.wait_for_oldest(&self.gpu))?);
            }
            let (_, bytes) = arrived.pop_front().ok_or_else(|| Error::bug("a sum that was not copied"))?;
            let mut values: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
            sum(&mut values)?;
            let mut rest: &[u8] = bytemuck::cast_slice(&values);
            for (buffer, offset, size) in self.buffers.ranges(compiled, sums)? {
                let (own, others) =
                    rest.split_at_checked(size as usize).ok_or_else(|| Error::bug("a sum of another length"))?;
                self.gpu.write(buffer, offset, own)?;
                rest = others;
            }
        }
        self.staging = Some(staging);
        Ok(())
    }

    fn compiled(&self, program: ProgramId) -> Result<&Compiled> {
        self.programs.get(program.0).ok_or_else(|| unknown_program(program))
    }

    /// Unpacks finished copies into reports.
    fn receive(&mut self, copies: Vec<(u64, Vec<u8>)>) -> Result<()> {
        for (ticket, bytes) in copies {
            let at = self.pending.iter().position(|(t, _)| *t == ticket);
            let (_, specs) = at.map(|at| self.pending.remove(at)).ok_or_else(|| Error::bug("an unexpected report"))?;
            let (mut values, mut rest) = (Vec::new(), bytes.as_slice());
            for spec in specs {
                let (head, tail) =
                    rest.split_at_checked(spec.device_bytes()).ok_or_else(|| Error::bug("a truncated report"))?;
                values.push(spec.unpack(head)?);
                rest = tail;
            }
            // A run without outputs to report is in the ring only so that few are in flight.
            if !values.is_empty() {
                self.ready.push(Report { ticket, values });
            }
        }
        Ok(())
    }

    fn arena(&self, arena: Arena) -> Result<(&[Tensor], &wgpu::Buffer)> {
        let first = self.programs.first().ok_or_else(|| unused_arena(arena))?;
        let buffer = self.buffers.arenas.get(&arena).ok_or_else(|| unused_arena(arena))?;
        Ok((first.graph.tensors(arena), buffer))
    }

    /// Writes a whole arena. Running statistics are those of the last applied step, too.
    fn write_arena(&self, arena: Arena, bytes: &[u8]) -> Result<()> {
        let (_, buffer) = self.arena(arena)?;
        self.gpu.write(buffer, 0, bytes)?;
        match self.buffers.arenas.get(&Arena::SavedStates) {
            Some(saved) if arena == Arena::States => self.gpu.write(saved, 0, bytes),
            _ => Ok(()),
        }
    }
}

impl Shared {
    /// Allocates the arenas that `graph` uses and slots for `plan`, as far as they are missing or too small. Returns whether it
    /// replaced a buffer.
    fn grow(&mut self, gpu: &Gpu, graph: &Graph, plan: &Plan) -> Result<bool> {
        for arena in graph.arenas() {
            if self.arenas.contains_key(&arena) {
                continue;
            }
            let buffer = gpu.buffer(&arena.to_string(), graph.arena_bytes(arena))?;
            if let (Arena::SavedStates, Some(states)) = (arena, self.arenas.get(&Arena::States)) {
                let mut encoder = gpu.encoder("saved statistics");
                encoder.copy_buffer_to_buffer(states, 0, &buffer, 0, states.size());
                gpu.submit(encoder)?;
            }
            self.arenas.insert(arena, buffer);
        }
        // Plans list their slots largest first, so sharing by number wastes least.
        let mut reallocated = false;
        for (i, &bytes) in plan.slots.iter().enumerate() {
            let slot = || gpu.buffer(&format!("slot {i}"), bytes);
            match self.slots.get_mut(i) {
                None => self.slots.push(slot()?),
                Some(buffer) if buffer.size() < bytes => {
                    *buffer = slot()?;
                    reallocated = true;
                }
                Some(_) => {}
            }
        }
        Ok(reallocated)
    }

    fn program(&self, gpu: &Gpu, number: usize, plan: &Plan, inputs: &[wgpu::Buffer]) -> Result<Program> {
        let steps = plan.dispatches.iter().map(|bound| {
            let bindings = bound.ranges.iter().map(|range| self.binding(inputs, range)).collect::<Result<Vec<_>>>()?;
            Ok(Step { label: bound.label.clone(), dispatch: &bound.dispatch, bindings })
        });
        let steps = steps.collect::<Result<Vec<_>>>()?;
        Program::planned(gpu, &format!("program {number}"), &steps, &plan.submissions, &plan.texture_cache)
    }

    /// Buffer, offset and size of some values.
    fn ranges<'a>(&'a self, compiled: &'a Compiled, values: &[ValueId]) -> Result<Vec<(&'a wgpu::Buffer, u64, u64)>> {
        let range = |&value: &ValueId| {
            let Binding { buffer, offset, size } = self.value(compiled, value)?;
            Ok((buffer, offset, size))
        };
        values.iter().map(range).collect()
    }

    fn value<'a>(&'a self, compiled: &'a Compiled, id: ValueId) -> Result<Binding<'a>> {
        let name = || &compiled.graph.value(id).name;
        let range = compiled.plan.values.get(id.0).and_then(Option::as_ref);
        let range = range.ok_or_else(|| Error::bug(format!("`{}` has no memory", name())))?;
        self.binding(&compiled.inputs, range)
    }

    fn binding<'a>(&'a self, inputs: &'a [wgpu::Buffer], range: &BufferRange) -> Result<Binding<'a>> {
        let buffer = match range.buffer {
            BufferId::Slot(i) => self.slots.get(i),
            BufferId::Input(i) => inputs.get(i),
            BufferId::Arena(arena) => self.arenas.get(&arena),
        };
        let buffer = buffer.ok_or_else(|| Error::bug(format!("{:?} was not allocated", range.buffer)))?;
        Ok(Binding { buffer, offset: range.offset, size: range.bytes })
    }
}

impl Executor for GpuExecutor {
    fn describe(&self) -> String {
        self.gpu.adapter_info().to_string()
    }

    fn add(&mut self, graph: Graph) -> Result<ProgramId> {
        let plan = plan::plan(&graph, self.gpu.profile(), &self.options)?;
        self.add_planned(graph, plan)
    }

    fn graph(&self, program: ProgramId) -> Result<&Graph> {
        Ok(&self.compiled(program)?.graph)
    }

    fn write(&mut self, input: InputId, data: Data<'_>) -> Result<()> {
        let compiled = self.compiled(input.program)?;
        let value = compiled.graph.value(input.value);
        let spec = value.spec;
        let bytes = match (data, spec.layout) {
            (Data::F32(elements), _) => spec.pack(elements)?,
            (Data::U8(bytes), Layout::Bytes) if bytes.len() == spec.len() => {
                let mut padded = bytes.to_vec();
                padded.resize(spec.device_bytes(), 0);
                padded
            }
            (Data::U8(bytes), _) => {
                let what = format!("length of input `{}`", value.name);
                return Err(Error::argument(what, format!("bytes of {spec}"), format!("{} bytes", bytes.len())));
            }
        };
        self.gpu.write(self.buffers.value(compiled, input.value)?.buffer, 0, &bytes)
    }

    fn run(&mut self, program: ProgramId, report: &[OutputId]) -> Result<u64> {
        self.run_parts(program, report, Exchanges::None)
    }

    fn run_exchanging(&mut self, program: ProgramId, report: &[OutputId], exchanges: Exchanges<'_>) -> Result<u64> {
        self.run_parts(program, report, exchanges)
    }

    fn exchange_sums(&mut self, program: ProgramId, sum: Sum<'_>) -> Result<()> {
        let compiled = self.programs.get(program.0).ok_or_else(|| unknown_program(program))?;
        let mut staging = compiled.staging(&self.gpu, self.staging.take())?;
        let mut encoder = self.gpu.encoder("sums");
        let sums = compiled.plan.sums.values();
        let copy = |sums: &Vec<_>| staging.encode_copy(&mut encoder, &self.buffers.ranges(compiled, sums)?);
        let copies = sums.map(copy).collect::<Result<Vec<_>>>()?;
        let submission = self.gpu.submit(encoder)?;
        copies.into_iter().for_each(|copy| staging.map(copy, submission.clone()));
        self.exchange_staged(program, staging, sum)
    }

    fn reports(&mut self, wait: bool) -> Result<Vec<Report>> {
        block_on(self.reports_async(wait))
    }

    fn oldest_reports(&mut self) -> Result<Vec<Report>> {
        block_on(self.oldest_reports_async())
    }

    fn read(&mut self, output: OutputId) -> Result<Vec<f32>> {
        block_on(self.read_async(output))
    }

    fn upload(&mut self, arena: Arena, tensors: &[Vec<f32>]) -> Result<()> {
        let first = self.programs.first().ok_or_else(|| unused_arena(arena))?;
        check_tensors(&first.graph, arena, tensors)?;
        if tensors.is_empty() {
            return Ok(());
        }
        let (specs, buffer) = self.arena(arena)?;
        let mut bytes = vec![0u8; buffer.size() as usize];
        for (tensor, data) in specs.iter().zip(tensors) {
            let packed = tensor.spec.pack(data)?;
            let at = tensor.offset as usize;
            let range = bytes.get_mut(at..at + packed.len()).ok_or_else(|| outside(tensor))?;
            range.copy_from_slice(&packed);
        }
        self.write_arena(arena, &bytes)
    }

    fn download(&mut self, arena: Arena) -> Result<Vec<Vec<f32>>> {
        block_on(self.download_async(arena))
    }

    fn download_flat(&mut self, arena: Arena) -> Result<Vec<f32>> {
        let (_, buffer) = self.arena(arena)?;
        Ok(bytemuck::pod_collect_to_vec(&self.gpu.read(buffer, 0, buffer.size())?))
    }

    fn time_next(&mut self) -> Result<bool> {
        let most = self.programs.iter().map(|compiled| compiled.program.len()).max().unwrap_or(0);
        self.timers = [Timer::new(&self.gpu, most)?, None];
        Ok(self.timers[0].is_some())
    }

    fn spans(&mut self) -> Result<Vec<Span>> {
        self.timers[1].take().map_or(Ok(Vec::new()), |mut timer| timer.read(&self.gpu))
    }
}

fn outside(tensor: &Tensor) -> Error {
    Error::bug(format!("`{}` is outside its arena", tensor.name))
}
