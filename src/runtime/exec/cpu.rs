//! The reference as a device: the same graph, run node by node in logical order. Slow and simple on purpose. Convolutions use all
//! cores; the number of threads never changes a bit.

use std::fmt;

use super::{Data, Executor, ProgramId, Report, check_same_tensors, check_tensors};
use crate::error::{Error, Result};
use crate::runtime::graph::{Arena, Graph, Node, Storage, ValueId};
use crate::runtime::op::Op;
use crate::runtime::plan::{Lifetime, lifetimes};
use crate::runtime::sys::memory;
use crate::runtime::tensor::real::{Real, Tracked};

/// A number type that the references of all operations exist in.
pub trait Precision: Real {
    /// Name, for people.
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

/// Runs graphs through the references of their operations.
pub struct CpuExecutor<T: Precision = f32> {
    programs: Vec<Program<T>>,
    arenas: [Vec<Vec<T>>; Arena::ALL.len()],
    reports: Vec<Report>,
    tickets: u64,
    last: Option<ProgramId>,
}

struct Program<T> {
    graph: Graph,
    lifetimes: Vec<Option<Lifetime>>,
    /// Inputs and local values; empty when not alive.
    values: Vec<Vec<T>>,
}

impl<T: Precision> fmt::Debug for CpuExecutor<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CpuExecutor").field("precision", &T::NAME).finish_non_exhaustive()
    }
}

impl<T: Precision> CpuExecutor<T> {
    /// For graphs over the same parameters; all arenas start at zero.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`] where a run would take more memory than there is, [`Error::Graph`] for no graph or graphs over other
    /// parameters.
    pub fn new(graphs: Vec<Graph>) -> Result<Self> {
        Self::within(graphs, None)
    }

    /// The same, in at most `budget` bytes.
    ///
    /// # Errors
    /// As [`CpuExecutor::new`].
    pub fn within(graphs: Vec<Graph>, budget: Option<u64>) -> Result<Self> {
        check_same_tensors(&graphs)?;
        let first = graphs.first().ok_or_else(|| Error::Graph("no graph to run".into()))?;
        let needed = graphs.iter().map(bytes::<T>).max().unwrap_or(0);
        let limit = [budget, memory::available()].into_iter().flatten().min();
        if let Some(limit) = limit.filter(|&limit| needed > limit) {
            return Err(Error::does_not_fit("the CPU reference", needed, limit));
        }
        let zeros = |r: Arena| first.tensors(r).iter().map(|t| vec![T::zero(); t.spec.len()]).collect();
        let arenas = Arena::ALL.map(zeros);
        let programs = graphs
            .into_iter()
            .map(|graph| Program { lifetimes: lifetimes(&graph), values: vec![vec![]; graph.values().len()], graph })
            .collect();
        Ok(Self { programs, arenas, reports: Vec::new(), tickets: 0, last: None })
    }

    /// A value of the last run in full precision: an output, an input or a tensor of a arena.
    pub fn value(&self, program: ProgramId, value: ValueId) -> Result<&[T]> {
        let program = self.programs.get(program.0).ok_or_else(|| no_program(program))?;
        Ok(match program.graph.value(value).storage {
            Storage::Tensor(arena, i) => &self.arenas[arena as usize][i],
            _ => &program.values[value.0],
        })
    }

    /// The tensors of a arena in full precision, each in logical order; to be replaced only by others of the same lengths.
    pub fn tensors(&mut self, arena: Arena) -> &mut [Vec<T>] {
        &mut self.arenas[arena as usize]
    }

    fn take(&mut self, program: ProgramId, value: ValueId) -> Vec<T> {
        let program = &mut self.programs[program.0];
        match program.graph.value(value).storage {
            Storage::Tensor(arena, i) => std::mem::take(&mut self.arenas[arena as usize][i]),
            Storage::Whole(arena) => self.arenas[arena as usize].concat(),
            Storage::Input | Storage::Local => std::mem::take(&mut program.values[value.0]),
        }
    }

    fn put(&mut self, program: ProgramId, value: ValueId, data: Vec<T>) {
        let program = &mut self.programs[program.0];
        match program.graph.value(value).storage {
            Storage::Tensor(arena, i) => self.arenas[arena as usize][i] = data,
            Storage::Whole(arena) => {
                let mut rest = data.as_slice();
                for tensor in &mut self.arenas[arena as usize] {
                    let (head, tail) = rest.split_at(tensor.len());
                    tensor.copy_from_slice(head);
                    rest = tail;
                }
            }
            Storage::Input | Storage::Local => program.values[value.0] = data,
        }
    }

    fn node(&mut self, program: ProgramId, index: usize, node: &Node) -> Result<()> {
        let graph = &self.programs[program.0].graph;
        let len = |v: &ValueId| graph.value(*v).spec.len();
        let lens: Vec<usize> = node.writes.iter().map(len).collect();
        let mut taken: Vec<(ValueId, Vec<T>)> = Vec::new();
        for value in node.reads.iter().chain(&node.updates) {
            if !taken.iter().any(|(v, _)| v == value) {
                let data = self.take(program, *value);
                taken.push((*value, data));
            }
        }
        let mut written: Vec<Vec<T>> = lens.iter().map(|&n| vec![T::zero(); n]).collect();
        let mut updated: Vec<Vec<T>> = Vec::new();
        for value in &node.updates {
            let at = taken.iter().position(|(v, _)| v == value);
            updated.push(at.map(|at| taken.remove(at).1).unwrap_or_default());
        }
        let data = |v: &ValueId| taken.iter().find(|(t, _)| t == v).map_or(&[][..], |(_, d)| d.as_slice());
        let reads: Vec<&[T]> = node.reads.iter().map(data).collect();
        let mut writes: Vec<&mut [T]> = written.iter_mut().chain(&mut updated).map(Vec::as_mut_slice).collect();
        T::reference(node.op.as_ref(), node.pass.name, &reads, &mut writes).map_err(|e| e.at_node(&node.name))?;
        for (value, data) in taken {
            self.put(program, value, data);
        }
        for ((value, mut data), accumulate) in node.writes.iter().zip(written).zip(&node.accumulate) {
            if *accumulate {
                let before = self.take(program, *value);
                for (new, old) in data.iter_mut().zip(before) {
                    *new = old + *new;
                }
            }
            self.put(program, *value, data);
        }
        for (value, data) in node.updates.iter().zip(updated) {
            self.put(program, *value, data);
        }
        let program = &mut self.programs[program.0];
        for value in node.touches() {
            let dead = program.lifetimes[value.0].is_some_and(|l| l.1 == index);
            if dead && program.graph.value(value).storage == Storage::Local {
                program.values[value.0] = Vec::new();
            }
        }
        Ok(())
    }
}

/// Bytes that a run of the graph takes at most: all arenas, and the inputs and local values that are alive together.
fn bytes<T>(graph: &Graph) -> u64 {
    let arenas: usize = Arena::ALL.iter().flat_map(|&r| graph.tensors(r)).map(|t| t.spec.len()).sum();
    let end = graph.nodes().len();
    let mut changes = vec![(0i128, 0i128); end + 1];
    for (value, lifetime) in graph.values().iter().zip(lifetimes(graph)) {
        let (first, last) = match (value.storage, lifetime) {
            (Storage::Local, Some(lifetime)) => lifetime,
            (Storage::Input, _) => (0, end),
            _ => continue,
        };
        // Outputs are alive for ever.
        changes[first.min(end)].0 += value.spec.len() as i128;
        changes[last.min(end)].1 += value.spec.len() as i128;
    }
    let (mut alive, mut most) = (0, 0);
    for (born, dead) in changes {
        alive += born;
        most = most.max(alive);
        alive -= dead;
    }
    let numbers = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(arenas as u64);
    numbers.saturating_mul(size_of::<T>() as u64)
}

fn no_program(program: ProgramId) -> Error {
    Error::bug(format!("no program {}", program.0))
}

impl<T: Precision> Executor for CpuExecutor<T> {
    fn describe(&self) -> String {
        format!("CPU reference ({})", T::NAME)
    }

    fn graph(&self, program: ProgramId) -> Result<&Graph> {
        self.programs.get(program.0).map(|p| &p.graph).ok_or_else(|| no_program(program))
    }

    fn write(&mut self, program: ProgramId, input: &str, data: Data<'_>) -> Result<()> {
        let graph = self.graph(program)?;
        let id = graph.input(input)?;
        let expected = graph.value(id).spec.len();
        let numbers: Vec<T> = match data {
            Data::F32(v) => v.iter().map(|&x| T::from_f64(f64::from(x))).collect(),
            Data::U8(v) => v.iter().map(|&x| T::from_f64(f64::from(x))).collect(),
        };
        if numbers.len() != expected {
            return Err(Error::argument(format!("length of input `{input}`"), expected, numbers.len()));
        }
        self.put(program, id, numbers);
        Ok(())
    }

    fn run(&mut self, program: ProgramId, report: &[&str]) -> Result<u64> {
        let nodes = self.graph(program)?.nodes().to_vec();
        for (name, id) in self.graph(program)?.inputs() {
            if self.value(program, *id)?.is_empty() {
                return Err(Error::Graph(format!("input `{name}` was not written")));
            }
        }
        for (index, node) in nodes.iter().enumerate() {
            self.node(program, index, node)?;
        }
        self.last = Some(program);
        let values = report.iter().map(|name| self.read(program, name)).collect::<Result<_>>()?;
        let ticket = self.tickets;
        self.tickets += 1;
        self.reports.push(Report { ticket, values });
        Ok(ticket)
    }

    fn reports(&mut self, _wait: bool) -> Result<Vec<Report>> {
        Ok(std::mem::take(&mut self.reports))
    }

    fn read(&mut self, program: ProgramId, output: &str) -> Result<Vec<f32>> {
        let id = self.graph(program)?.output(output)?;
        if self.last != Some(program) {
            return Err(Error::Graph(format!("`{output}` was asked for, but the last run was not of this program")));
        }
        Ok(self.value(program, id)?.iter().map(|v| v.value() as f32).collect())
    }

    fn upload(&mut self, arena: Arena, tensors: &[Vec<f32>]) -> Result<()> {
        check_tensors(&self.programs[0].graph, arena, tensors)?;
        let number = |v: &Vec<f32>| v.iter().map(|&x| T::from_f64(f64::from(x))).collect();
        self.arenas[arena as usize] = tensors.iter().map(number).collect();
        if arena == Arena::States {
            self.arenas[Arena::SavedStates as usize] = self.arenas[arena as usize].clone();
        }
        Ok(())
    }

    fn download(&mut self, arena: Arena) -> Result<Vec<Vec<f32>>> {
        let number = |v: &Vec<T>| v.iter().map(|x| x.value() as f32).collect();
        Ok(self.arenas[arena as usize].iter().map(number).collect())
    }
}
