//! The CPU reference as a device: runs a graph node by node, in logical order.
//!
//! It favours clarity over speed. Convolutions use all cores; the number of threads does not affect results.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::runtime::exec::{
    Data, Executor, InputId, OutputId, ProgramId, Report, check_same_tensors, check_tensors, not_the_last_run,
    unknown_program, unused_arena,
};
use crate::runtime::graph::{Arena, Graph, Node, Storage, ValueId};
use crate::runtime::op::{Exchanges, Op, Sum};
use crate::runtime::plan::{Lifetime, lifetimes};
use crate::runtime::sys::memory;
use crate::runtime::tensor::real::{Real, Tracked};

/// A number type that every operation has a reference for.
pub trait Precision: Real {
    /// Name for a reader.
    const NAME: &'static str;
    /// Runs the reference of a pass.
    fn reference(op: &dyn Op, pass: &str, reads: &[&[Self]], writes: &mut [&mut [Self]]) -> Result<()>;
}

impl Precision for f32 {
    const NAME: &'static str = "f32";
    fn reference(op: &dyn Op, pass: &str, reads: &[&[Self]], writes: &mut [&mut [Self]]) -> Result<()> {
        op.reference_f32(pass, reads, writes)
    }
}

impl Precision for f64 {
    const NAME: &'static str = "f64";
    fn reference(op: &dyn Op, pass: &str, reads: &[&[Self]], writes: &mut [&mut [Self]]) -> Result<()> {
        op.reference_f64(pass, reads, writes)
    }
}

impl Precision for Tracked {
    const NAME: &'static str = "tracked";
    fn reference(op: &dyn Op, pass: &str, reads: &[&[Self]], writes: &mut [&mut [Self]]) -> Result<()> {
        op.reference_tracked(pass, reads, writes)
    }
}

/// Runs graphs with the CPU reference of each operation, in the number type `T`.
///
/// ```
/// use vae_wgpu::runtime::exec::{CpuExecutor, Data, Executor};
/// use vae_wgpu::runtime::graph::Builder;
/// use vae_wgpu::runtime::op::Relu;
/// use vae_wgpu::runtime::tensor::{Shape, Spec};
///
/// let mut b = Builder::new();
/// let x = b.input("x", Spec::nhwc(Shape::new(1, 4, 1, 1)))?;
/// let y = b.apply("relu", &[x], |s| Relu::new(s[0]))?;
///
/// let mut exec = CpuExecutor::<f32>::new();
/// let program = exec.add(b.output("y", y).build())?;
/// exec.write(exec.input(program, "x")?, Data::F32(&[-1.0, 0.0, 0.5, 2.0]))?;
/// exec.run(program, &[])?;
/// assert_eq!(exec.read(exec.output(program, "y")?)?, [0.0, 0.0, 0.5, 2.0]);
/// # Ok::<(), vae_wgpu::Error>(())
/// ```
pub struct CpuExecutor<T: Precision = f32> {
    programs: Vec<Program<T>>,
    arenas: BTreeMap<Arena, Vec<Vec<T>>>,
    /// Limit of memory in bytes.
    budget: Option<u64>,
    reports: Vec<Report>,
    tickets: u64,
    last: Option<ProgramId>,
}

struct Program<T> {
    graph: Arc<Graph>,
    lifetimes: Vec<Option<Lifetime>>,
    /// Inputs and local values; empty when not alive.
    values: Vec<Vec<T>>,
}

impl<T: Precision> fmt::Debug for CpuExecutor<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CpuExecutor").field("precision", &T::NAME).finish_non_exhaustive()
    }
}

impl<T: Precision> Default for CpuExecutor<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Precision> CpuExecutor<T> {
    /// Returns an executor without programs. It uses at most the available memory.
    #[must_use]
    pub fn new() -> Self {
        Self::within(None)
    }

    /// Returns an executor that uses at most `budget` bytes, and at most the available memory.
    #[must_use]
    pub fn within(budget: Option<u64>) -> Self {
        let (programs, arenas, reports) = Default::default();
        Self { programs, arenas, budget, reports, tickets: 0, last: None }
    }

    /// Returns a value of the last run in full precision: an output, an input or a tensor of an arena.
    ///
    /// # Errors
    /// [`Error::Bug`] for a program of another executor.
    pub fn value(&self, program: ProgramId, value: ValueId) -> Result<&[T]> {
        let program = self.program(program)?;
        Ok(match program.graph.value(value).storage {
            Storage::Tensor(arena, i) => {
                self.arenas.get(&arena).and_then(|tensors| tensors.get(i)).ok_or_else(|| unused_arena(arena))?
            }
            _ => &program.values[value.0],
        })
    }

    /// Returns the tensors of an arena in full precision, each in logical order. Their lengths must not change.
    pub fn tensors(&mut self, arena: Arena) -> &mut [Vec<T>] {
        self.arenas.get_mut(&arena).map_or(&mut [], Vec::as_mut_slice)
    }

    fn program(&self, program: ProgramId) -> Result<&Program<T>> {
        self.programs.get(program.0).ok_or_else(|| unknown_program(program))
    }

    fn arena(&self, arena: Arena) -> Result<&Vec<Vec<T>>> {
        self.arenas.get(&arena).ok_or_else(|| unused_arena(arena))
    }

    /// Moves a value out of the memory of the executor. Tensors of an arena are copied.
    fn take(&mut self, program: ProgramId, id: ValueId, storage: Storage) -> Vec<T> {
        match storage {
            Storage::Tensor(arena, i) => std::mem::take(&mut self.tensors(arena)[i]),
            Storage::Tensors(arena, first, end) => self.tensors(arena)[first..end].concat(),
            Storage::Input | Storage::Local => std::mem::take(&mut self.programs[program.0].values[id.0]),
        }
    }

    fn put(&mut self, program: ProgramId, id: ValueId, storage: Storage, data: Vec<T>) {
        match storage {
            Storage::Tensor(arena, i) => self.tensors(arena)[i] = data,
            Storage::Tensors(arena, first, end) => {
                let mut rest = data.as_slice();
                for tensor in &mut self.tensors(arena)[first..end] {
                    let (head, tail) = rest.split_at(tensor.len());
                    tensor.copy_from_slice(head);
                    rest = tail;
                }
            }
            Storage::Input | Storage::Local => self.programs[program.0].values[id.0] = data,
        }
    }

    /// Replaces the tensors of an arena. Running statistics are those of the last applied step, too.
    fn put_arena(&mut self, arena: Arena, tensors: &[Vec<f32>]) {
        let elements = |v: &Vec<f32>| v.iter().map(|&x| T::from_f64(f64::from(x))).collect();
        let values: Vec<Vec<T>> = tensors.iter().map(elements).collect();
        if let (Arena::States, Some(saved)) = (arena, self.arenas.get_mut(&Arena::SavedStates)) {
            saved.clone_from(&values);
        }
        self.arenas.insert(arena, values);
    }

    fn run_node(&mut self, program: ProgramId, graph: &Graph, index: usize, node: &Node) -> Result<()> {
        let value = |id: ValueId| graph.value(id);
        let mut taken: Vec<(ValueId, Vec<T>)> = Vec::new();
        for &id in node.reads.iter().chain(&node.updates) {
            if !taken.iter().any(|(other, _)| *other == id) {
                taken.push((id, self.take(program, id, value(id).storage)));
            }
        }
        let mut written: Vec<Vec<T>> = node.writes.iter().map(|id| vec![T::zero(); value(*id).spec.len()]).collect();
        let mut updated: Vec<Vec<T>> = Vec::new();
        for id in &node.updates {
            let at = taken.iter().position(|(other, _)| other == id);
            updated.push(at.map(|at| taken.remove(at).1).unwrap_or_default());
        }
        let data = |id: &ValueId| taken.iter().find(|(other, _)| other == id).map_or(&[][..], |(_, d)| d.as_slice());
        let reads: Vec<&[T]> = node.reads.iter().map(data).collect();
        let mut writes: Vec<&mut [T]> = written.iter_mut().chain(&mut updated).map(Vec::as_mut_slice).collect();
        T::reference(node.op.as_ref(), node.pass.name, &reads, &mut writes).map_err(|e| e.at_node(&node.name))?;
        for (id, data) in taken {
            self.put(program, id, value(id).storage, data);
        }
        for ((&id, mut data), accumulate) in node.writes.iter().zip(written).zip(&node.accumulate) {
            let storage = value(id).storage;
            if *accumulate {
                let before = self.take(program, id, storage);
                for (new, old) in data.iter_mut().zip(before) {
                    *new = old + *new;
                }
            }
            self.put(program, id, storage, data);
        }
        for (&id, data) in node.updates.iter().zip(updated) {
            self.put(program, id, value(id).storage, data);
        }
        let program = &mut self.programs[program.0];
        for id in node.touches() {
            let dead = program.lifetimes[id.0].is_some_and(|(_, last)| last == index);
            if dead && value(id).storage == Storage::Local {
                program.values[id.0] = Vec::new();
            }
        }
        Ok(())
    }

    /// Runs all nodes. Values are exchanged in single precision.
    fn run_nodes(&mut self, program: ProgramId, report: &[OutputId], mut with: Exchanges<'_>) -> Result<u64> {
        let graph = Arc::clone(&self.program(program)?.graph);
        for (name, id) in graph.inputs() {
            if self.value(program, *id)?.is_empty() {
                return Err(Error::Graph(format!("input `{name}` was not written")));
            }
        }
        let exchanges = if matches!(with, Exchanges::Tensors(_)) { graph.exchanges()? } else { Vec::new() };
        for (index, node) in graph.nodes().iter().enumerate() {
            self.run_node(program, &graph, index, node)?;
            for (_, id, exchange) in exchanges.iter().filter(|(after, ..)| *after == index) {
                let Exchanges::Tensors(gather) = &mut with else { continue };
                let own: Vec<f32> = self.value(program, *id)?.iter().map(|v| v.to_f64() as f32).collect();
                let merged = (exchange.merge)(&gather(&own)?);
                if merged.len() != own.len() {
                    return Err(Error::bug(format!("{}: {} exchanged values", node.label(), merged.len())));
                }
                let merged = merged.into_iter().map(|v| T::from_f64(f64::from(v))).collect();
                self.put(program, *id, graph.value(*id).storage, merged);
            }
        }
        if let Exchanges::Sums(sum) = with {
            self.exchange_sums(program, sum)?;
        }
        self.last = Some(program);
        let values = report.iter().map(|output| self.read(*output)).collect::<Result<_>>()?;
        let ticket = self.tickets;
        self.tickets += 1;
        if !report.is_empty() {
            self.reports.push(Report { ticket, values });
        }
        Ok(ticket)
    }
}

/// Returns the most bytes that a run needs at a time: arenas, and the inputs and local values that are alive together.
fn peak_bytes<T>(graph: &Graph) -> u64 {
    let arenas: usize = graph.arenas().into_iter().flat_map(|arena| graph.tensors(arena)).map(|t| t.spec.len()).sum();
    let end = graph.nodes().len();
    // For each node: elements of values that it is the first and the last to touch.
    let mut changes = vec![(0i128, 0i128); end + 1];
    for (value, lifetime) in graph.values().iter().zip(lifetimes(graph)) {
        let (first, last) = match (value.storage, lifetime) {
            (Storage::Local, Some(lifetime)) => lifetime,
            (Storage::Input, _) => (0, end),
            _ => continue,
        };
        // Outputs have no last node.
        changes[first.min(end)].0 += value.spec.len() as i128;
        changes[last.min(end)].1 += value.spec.len() as i128;
    }
    let (mut alive, mut most) = (0, 0);
    for (born, dead) in changes {
        alive += born;
        most = most.max(alive);
        alive -= dead;
    }
    let elements = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(arenas as u64);
    elements.saturating_mul(size_of::<T>() as u64)
}

impl<T: Precision> Executor for CpuExecutor<T> {
    fn describe(&self) -> String {
        format!("CPU reference ({})", T::NAME)
    }

    fn add(&mut self, graph: Graph) -> Result<ProgramId> {
        if let Some(first) = self.programs.first() {
            check_same_tensors(&first.graph, &graph)?;
        }
        let needed = peak_bytes::<T>(&graph);
        let limit = [self.budget, memory::available()].into_iter().flatten().min();
        if let Some(limit) = limit.filter(|&limit| needed > limit) {
            return Err(Error::does_not_fit("the CPU reference", needed, limit));
        }
        for arena in graph.arenas() {
            let saved = (arena == Arena::SavedStates).then(|| self.arenas.get(&Arena::States).cloned()).flatten();
            let zeros = || graph.tensors(arena).iter().map(|t| vec![T::zero(); t.spec.len()]).collect();
            self.arenas.entry(arena).or_insert_with(|| saved.unwrap_or_else(zeros));
        }
        let (lifetimes, values) = (lifetimes(&graph), vec![vec![]; graph.values().len()]);
        self.programs.push(Program { graph: Arc::new(graph), lifetimes, values });
        Ok(ProgramId(self.programs.len() - 1))
    }

    fn graph(&self, program: ProgramId) -> Result<&Graph> {
        Ok(&self.program(program)?.graph)
    }

    fn write(&mut self, input: InputId, data: Data<'_>) -> Result<()> {
        let value = self.graph(input.program)?.value(input.value);
        let expected = value.spec.len();
        let elements: Vec<T> = match data {
            Data::F32(v) => v.iter().map(|&x| T::from_f64(f64::from(x))).collect(),
            Data::U8(v) => v.iter().map(|&x| T::from_f64(f64::from(x))).collect(),
        };
        if elements.len() != expected {
            return Err(Error::argument(format!("length of input `{}`", value.name), expected, elements.len()));
        }
        self.put(input.program, input.value, Storage::Input, elements);
        Ok(())
    }

    fn run(&mut self, program: ProgramId, report: &[OutputId]) -> Result<u64> {
        self.run_nodes(program, report, Exchanges::None)
    }

    fn run_exchanging(&mut self, program: ProgramId, report: &[OutputId], exchanges: Exchanges<'_>) -> Result<u64> {
        self.run_nodes(program, report, exchanges)
    }

    fn exchange_sums(&mut self, program: ProgramId, sum: Sum<'_>) -> Result<()> {
        let graph = Arc::clone(&self.program(program)?.graph);
        // As on a device, sums that are complete after the same node are handed out together.
        for together in graph.sums().chunk_by(|a, b| a.0 == b.0) {
            let mut values = Vec::new();
            let mut lengths = Vec::new();
            for &(_, id) in together {
                let storage = graph.value(id).storage;
                let own = self.take(program, id, storage);
                values.extend(own.iter().map(|v| v.to_f64() as f32));
                lengths.push(own.len());
            }
            sum(&mut values)?;
            let mut rest = values.iter().map(|&v| T::from_f64(f64::from(v)));
            for (&(_, id), len) in together.iter().zip(lengths) {
                let storage = graph.value(id).storage;
                let all = rest.by_ref().take(len).collect();
                self.put(program, id, storage, all);
            }
        }
        Ok(())
    }

    fn reports(&mut self, _wait: bool) -> Result<Vec<Report>> {
        Ok(std::mem::take(&mut self.reports))
    }

    fn read(&mut self, output: OutputId) -> Result<Vec<f32>> {
        if self.last != Some(output.program) {
            return Err(not_the_last_run(self.graph(output.program)?, output));
        }
        Ok(self.value(output.program, output.value)?.iter().map(|v| v.to_f64() as f32).collect())
    }

    fn upload(&mut self, arena: Arena, tensors: &[Vec<f32>]) -> Result<()> {
        let first = self.programs.first().ok_or_else(|| unused_arena(arena))?;
        check_tensors(&first.graph, arena, tensors)?;
        if tensors.is_empty() {
            return Ok(());
        }
        self.arena(arena)?;
        self.put_arena(arena, tensors);
        Ok(())
    }

    fn download(&mut self, arena: Arena) -> Result<Vec<Vec<f32>>> {
        let first = self.programs.first().ok_or_else(|| unused_arena(arena))?;
        if first.graph.tensors(arena).is_empty() {
            return Ok(Vec::new());
        }
        let elements = |v: &Vec<T>| v.iter().map(|x| x.to_f64() as f32).collect();
        Ok(self.arena(arena)?.iter().map(elements).collect())
    }

    fn download_flat(&mut self, arena: Arena) -> Result<Vec<f32>> {
        Ok(self.arena(arena)?.iter().flatten().map(|x| x.to_f64() as f32).collect())
    }
}
