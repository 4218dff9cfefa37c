//! The plan on a device: buffers, bind groups and pipelines made once, a step replayed from them.

use std::fmt;
use std::sync::Arc;

use super::{Data, Executor, ProgramId, Report, check_same_tensors, check_tensors};
use crate::error::{Error, Result};
use crate::runtime::gpu::{Binding, Gpu, Program, Ring, Span, Step, Timer};
use crate::runtime::graph::{Arena, Graph, Storage, Tensor, ValueId};
use crate::runtime::plan;
use crate::runtime::plan::{BoundDispatch, BufferId, BufferRange, Plan};
use crate::runtime::tensor::shape::{Layout, Spec};

/// Most bytes that a run may report; larger outputs are for [`Executor::read`].
const REPORT_BYTES: u64 = 1024;
/// Reports under way before a run has to wait for the oldest.
const REPORT_DEPTH: usize = 4;

/// Runs graphs on a GPU.
pub struct GpuExecutor {
    gpu: Arc<Gpu>,
    programs: Vec<Compiled>,
    buffers: Shared,
    ring: Ring,
    /// Runs whose reports are still under way: ticket and what was asked for.
    pending: Vec<(u64, Vec<Spec>)>,
    /// Reports that have arrived and were not asked for yet.
    ready: Vec<Report>,
    /// What ran last: its outputs are still there, those of the others have been written over.
    last: Option<ProgramId>,
    /// For the next run, and of the last run that had one.
    timers: [Option<Timer>; 2],
}

/// Buffers that all programs use.
struct Shared {
    slots: Vec<wgpu::Buffer>,
    arenas: [Option<wgpu::Buffer>; Arena::ALL.len()],
}

struct Compiled {
    graph: Graph,
    plan: Plan,
    inputs: Vec<wgpu::Buffer>,
    program: Program,
}

impl fmt::Debug for GpuExecutor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GpuExecutor").field("programs", &self.programs.len()).finish_non_exhaustive()
    }
}

impl GpuExecutor {
    /// Plans the graphs, allocates their buffers (slots are shared: one program runs at a time) and compiles their kernels.
    pub fn new(gpu: Arc<Gpu>, graphs: Vec<Graph>, options: &plan::Options) -> Result<Self> {
        let plans = graphs.iter().map(|g| plan::plan(g, gpu.profile(), options)).collect::<Result<Vec<_>>>()?;
        Self::planned(gpu, graphs.into_iter().zip(plans).collect())
    }

    /// The same for graphs with their plans for this device.
    pub fn planned(gpu: Arc<Gpu>, planned: Vec<(Graph, Plan)>) -> Result<Self> {
        let (graphs, plans): (Vec<_>, Vec<_>) = planned.into_iter().unzip();
        check_same_tensors(&graphs)?;
        let buffers = Shared::new(&gpu, &graphs, &plans)?;
        let mut programs = Vec::new();
        for (i, (graph, plan)) in graphs.into_iter().zip(plans).enumerate() {
            let input = |(name, id): (&String, &ValueId)| {
                gpu.buffer(&format!("input {name} {i}"), graph.value(*id).spec.device_bytes() as u64)
            };
            let inputs = graph.inputs().iter().map(input).collect::<Result<Vec<_>>>()?;
            let steps = plan.dispatches.iter().map(|placed| {
                let binding = |p: &BufferRange| buffers.binding(&inputs, p);
                let bindings = placed.places.iter().map(binding).collect::<Result<Vec<_>>>()?;
                Ok(Step { label: placed.label.clone(), dispatch: &placed.dispatch, bindings })
            });
            let steps = steps.collect::<Result<Vec<_>>>()?;
            let program = Program::in_parts(&gpu, &format!("program {i}"), &steps, &plan.submissions)?;
            drop(steps);
            programs.push(Compiled { graph, plan, inputs, program });
        }
        let ring = Ring::new(&gpu, REPORT_BYTES, REPORT_DEPTH)?;
        let (pending, ready, last, timers) = Default::default();
        Ok(Self { gpu, programs, buffers, ring, pending, ready, last, timers })
    }

    /// The plan of a program.
    pub fn plan(&self, program: ProgramId) -> Result<&Plan> {
        Ok(&self.compiled(program)?.plan)
    }

    /// The device.
    #[must_use]
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Runs a single node of a program, by number: for looking at a step from inside.
    pub fn run_node(&mut self, program: ProgramId, node: usize) -> Result<()> {
        let compiled = self.compiled(program)?;
        let of_node = |(i, placed): (usize, &BoundDispatch)| (placed.node == node).then_some(i);
        compiled.program.submit_steps(&self.gpu, compiled.plan.dispatches.iter().enumerate().filter_map(of_node))
    }

    /// What the place of a value holds now, in logical order (flat arenas: with their padding). Waits.
    pub fn value(&self, program: ProgramId, value: ValueId) -> Result<Vec<f32>> {
        let compiled = self.compiled(program)?;
        let missing = || Error::bug(format!("value {} has no place", value.0));
        let place = compiled.plan.places.get(value.0).copied().flatten().ok_or_else(missing)?;
        let binding = self.buffers.binding(&compiled.inputs, &place)?;
        let bytes = self.gpu.read(binding.buffer, binding.offset, binding.size)?;
        compiled.graph.value(value).spec.unpack(&bytes)
    }

    fn compiled(&self, program: ProgramId) -> Result<&Compiled> {
        self.programs.get(program.0).ok_or_else(|| no_program(program))
    }

    fn arrived(&mut self, done: Vec<(u64, Vec<u8>)>) -> Result<()> {
        for (ticket, bytes) in done {
            let at = self.pending.iter().position(|(t, _)| *t == ticket);
            let (_, specs) =
                at.map(|at| self.pending.remove(at)).ok_or_else(|| Error::bug("a report nobody asked for"))?;
            let (mut values, mut rest) = (Vec::new(), bytes.as_slice());
            for spec in specs {
                let (head, tail) =
                    rest.split_at_checked(spec.device_bytes()).ok_or_else(|| Error::bug("short report"))?;
                values.push(spec.unpack(head)?);
                rest = tail;
            }
            self.ready.push(Report { ticket, values });
        }
        Ok(())
    }

    fn arena(&self, arena: Arena) -> Result<(&[Tensor], &wgpu::Buffer)> {
        let graph = &self.compiled(ProgramId(0))?.graph;
        let missing = || Error::Graph(format!("no graph of this executor uses {arena}"));
        Ok((graph.tensors(arena), self.buffers.arenas[arena as usize].as_ref().ok_or_else(missing)?))
    }
}

fn no_program(program: ProgramId) -> Error {
    Error::bug(format!("no program {}", program.0))
}

impl Shared {
    fn new(gpu: &Gpu, graphs: &[Graph], plans: &[Plan]) -> Result<Self> {
        let mut sizes: Vec<u64> = Vec::new();
        for plan in plans {
            // Slots come largest first, so sharing them by number wastes least.
            for (i, &bytes) in plan.slots.iter().enumerate() {
                match sizes.get_mut(i) {
                    Some(size) => *size = bytes.max(*size),
                    None => sizes.push(bytes),
                }
            }
        }
        let slots =
            sizes.iter().enumerate().map(|(i, &b)| gpu.buffer(&format!("slot {i}"), b)).collect::<Result<_>>()?;
        let mut arenas = [const { None }; Arena::ALL.len()];
        for arena in Arena::ALL {
            let used = |graph: &Graph| {
                let here =
                    |storage: Storage| matches!(storage, Storage::Tensor(r, _) | Storage::Whole(r) if r == arena);
                graph.values().iter().any(|v| here(v.storage))
            };
            if let Some(graph) = graphs.iter().find(|g| used(g)) {
                arenas[arena as usize] = Some(gpu.buffer(&arena.to_string(), graph.arena_bytes(arena))?);
            }
        }
        Ok(Self { slots, arenas })
    }

    fn output<'a>(&'a self, compiled: &'a Compiled, name: &str) -> Result<(Spec, Binding<'a>)> {
        let id = compiled.graph.output(name)?;
        let place = compiled.plan.places[id.0].ok_or_else(|| Error::bug(format!("output {name} has no place")))?;
        Ok((compiled.graph.value(id).spec, self.binding(&compiled.inputs, &place)?))
    }

    fn binding<'a>(&'a self, inputs: &'a [wgpu::Buffer], place: &BufferRange) -> Result<Binding<'a>> {
        let buffer = match place.buffer {
            BufferId::Slot(i) => self.slots.get(i),
            BufferId::Input(i) => inputs.get(i),
            BufferId::Arena(arena) => self.arenas[arena as usize].as_ref(),
        };
        let buffer = buffer.ok_or_else(|| Error::bug(format!("{:?} was not allocated", place.buffer)))?;
        Ok(Binding { buffer, offset: place.offset, size: place.bytes })
    }
}

impl Executor for GpuExecutor {
    fn describe(&self) -> String {
        self.gpu.adapter_info().to_string()
    }

    fn graph(&self, program: ProgramId) -> Result<&Graph> {
        Ok(&self.compiled(program)?.graph)
    }

    fn write(&mut self, program: ProgramId, input: &str, data: Data<'_>) -> Result<()> {
        let compiled = self.compiled(program)?;
        let id = compiled.graph.input(input)?;
        let spec = compiled.graph.value(id).spec;
        let bytes = match (data, spec.layout) {
            (Data::F32(numbers), _) => spec.pack(numbers)?,
            (Data::U8(bytes), Layout::Bytes) if bytes.len() == spec.len() => {
                let mut padded = bytes.to_vec();
                padded.resize(spec.device_bytes(), 0);
                padded
            }
            (Data::U8(bytes), _) => {
                return Err(Error::argument(
                    format!("length of input `{input}`"),
                    format!("bytes of {spec}"),
                    format!("{} bytes", bytes.len()),
                ));
            }
        };
        let number = compiled.graph.inputs().keys().position(|name| name == input);
        let buffer = number.and_then(|i| compiled.inputs.get(i)).ok_or_else(|| Error::bug("input without buffer"))?;
        self.gpu.write(buffer, 0, &bytes)
    }

    fn run(&mut self, program: ProgramId, report: &[&str]) -> Result<u64> {
        if self.ring.is_full() {
            let done = self.ring.drain(&self.gpu)?;
            self.arrived(done)?;
        }
        let compiled = self.programs.get(program.0).ok_or_else(|| no_program(program))?;
        let outputs = report.iter().map(|name| self.buffers.output(compiled, name)).collect::<Result<Vec<_>>>()?;
        let sources: Vec<_> = outputs.iter().map(|(_, b)| (b.buffer, b.offset, b.size)).collect();
        let mut encoder = self.gpu.encoder("run");
        let [next, timed] = &mut self.timers;
        for part in 0..compiled.program.parts() {
            if part > 0 {
                self.gpu.submit(std::mem::replace(&mut encoder, self.gpu.encoder("run")))?;
            }
            compiled.program.encode_part(&mut encoder, part, next.as_mut());
        }
        if let Some(timer) = next.take() {
            timer.resolve(&mut encoder);
            *timed = Some(timer);
        }
        let slot = self.ring.encode_copy(&mut encoder, &sources)?;
        let specs = outputs.into_iter().map(|(spec, _)| spec).collect();
        self.gpu.submit(encoder)?;
        self.pending.push((slot.ticket(), specs));
        self.last = Some(program);
        let ticket = slot.ticket();
        self.ring.map(slot)?;
        Ok(ticket)
    }

    fn reports(&mut self, wait: bool) -> Result<Vec<Report>> {
        let done = if wait { self.ring.drain(&self.gpu)? } else { self.ring.poll(&self.gpu)? };
        self.arrived(done)?;
        Ok(std::mem::take(&mut self.ready))
    }

    fn read(&mut self, program: ProgramId, output: &str) -> Result<Vec<f32>> {
        if self.last != Some(program) {
            return Err(Error::Graph(format!("`{output}` was asked for, but the last run was not of this program")));
        }
        let (spec, binding) = self.buffers.output(self.compiled(program)?, output)?;
        spec.unpack(&self.gpu.read(binding.buffer, binding.offset, binding.size)?)
    }

    fn upload(&mut self, arena: Arena, tensors: &[Vec<f32>]) -> Result<()> {
        check_tensors(&self.compiled(ProgramId(0))?.graph, arena, tensors)?;
        if tensors.is_empty() {
            return Ok(());
        }
        let (specs, buffer) = self.arena(arena)?;
        let mut bytes = vec![0u8; buffer.size() as usize];
        for (tensor, data) in specs.iter().zip(tensors) {
            let packed = tensor.spec.pack(data)?;
            let at = tensor.offset as usize;
            bytes
                .get_mut(at..at + packed.len())
                .ok_or_else(|| Error::bug(format!("`{}` outside its arena", tensor.name)))?
                .copy_from_slice(&packed);
        }
        self.gpu.write(buffer, 0, &bytes)?;
        match &self.buffers.arenas[Arena::SavedStates as usize] {
            Some(accepted) if arena == Arena::States => self.gpu.write(accepted, 0, &bytes),
            _ => Ok(()),
        }
    }

    fn download(&mut self, arena: Arena) -> Result<Vec<Vec<f32>>> {
        if self.compiled(ProgramId(0))?.graph.tensors(arena).is_empty() {
            return Ok(Vec::new());
        }
        let (specs, buffer) = self.arena(arena)?;
        let bytes = self.gpu.read(buffer, 0, buffer.size())?;
        let one = |tensor: &Tensor| {
            let at = tensor.offset as usize;
            let range = bytes.get(at..at + tensor.spec.device_bytes());
            tensor.spec.unpack(range.ok_or_else(|| Error::bug(format!("`{}` outside its arena", tensor.name)))?)
        };
        specs.iter().map(one).collect()
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
