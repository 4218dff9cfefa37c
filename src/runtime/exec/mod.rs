//! Running graphs: one interface for the GPU and the CPU reference.
//!
//! An [`Executor`] holds the arenas (parameters, gradients, optimizer state, running statistics) and runs any number of graphs over
//! them: a training step for each batch size, evaluation, a decoder.

use std::fmt;

use crate::error::{Error, Result};
use crate::runtime::gpu::Span;
use crate::runtime::graph::{Arena, Graph, ValueId};
use crate::runtime::op::{Exchanges, Sum};

pub mod cpu;
pub mod entry;
pub mod gpu;

pub use cpu::CpuExecutor;
pub use gpu::GpuExecutor;

/// A graph of an executor, from [`Executor::add`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ProgramId(usize);

/// An input of a program, from [`Executor::input`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct InputId {
    program: ProgramId,
    value: ValueId,
}

/// An output of a program, from [`Executor::output`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct OutputId {
    program: ProgramId,
    value: ValueId,
}

/// Values for an input, in logical order.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// For inputs of any layout.
    F32(&'a [f32]),
    /// For inputs of bytes.
    U8(&'a [u8]),
}

/// The outputs that a run reports.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The ticket that [`Executor::run`] returned.
    pub ticket: u64,
    /// The values of each output asked for, in logical order.
    pub values: Vec<Vec<f32>>,
}

/// Runs graphs on a device.
pub trait Executor: fmt::Debug {
    /// Describes device, driver and backend for a reader.
    fn describe(&self) -> String;

    /// Adds a graph. All graphs of an executor have the same parameters and running statistics, which are zero at first.
    ///
    /// # Errors
    /// [`Error::Graph`] for a graph with other parameters than the first one, [`Error::DoesNotFit`] if it needs too much memory.
    fn add(&mut self, graph: Graph) -> Result<ProgramId>;

    /// Returns the graph of a program.
    ///
    /// # Errors
    /// [`Error::Bug`] for a program of another executor.
    fn graph(&self, program: ProgramId) -> Result<&Graph>;

    /// Finds an input of a program by its name.
    ///
    /// # Errors
    /// [`Error::Unknown`] lists the inputs of the program.
    fn input(&self, program: ProgramId, name: &str) -> Result<InputId> {
        Ok(InputId { program, value: self.graph(program)?.input(name)? })
    }

    /// Finds an output of a program by its name.
    ///
    /// # Errors
    /// [`Error::Unknown`] lists the outputs of the program.
    fn output(&self, program: ProgramId, name: &str) -> Result<OutputId> {
        Ok(OutputId { program, value: self.graph(program)?.output(name)? })
    }

    /// Writes an input for the next run of its program.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for data of another length or type.
    fn write(&mut self, input: InputId, data: Data<'_>) -> Result<()>;

    /// Starts a run and requests a report of some outputs, at most 1 KiB. Does not wait for a GPU. Returns the ticket of the
    /// report.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails, now or in an earlier run.
    fn run(&mut self, program: ProgramId, report: &[OutputId]) -> Result<u64>;

    /// Runs a program like [`Executor::run`], of which several processes each run a part, and exchanges values with the others. `run` leaves
    /// such values as they are.
    ///
    /// - [`Exchanges::Tensors`]: wherever the processes exchange a tensor ([`Graph::exchanges`]), waits for the device, hands out the tensor,
    ///   and continues with what all of them have.
    /// - [`Exchanges::Sums`]: starts the whole run, hands out each of its sums ([`Graph::sums`]) once the device has it, and writes what comes
    ///   back. Sums that are complete at the same time are handed out together, one after the other in a slice.
    ///
    /// # Errors
    /// As [`Executor::run`], and those of the exchange.
    fn run_exchanging(&mut self, program: ProgramId, report: &[OutputId], exchanges: Exchanges<'_>) -> Result<u64>;

    /// Exchanges the sums of a program as [`Executor::run_exchanging`] does, after its run or without one.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails, and those of `sum`.
    fn exchange_sums(&mut self, program: ProgramId, sum: Sum<'_>) -> Result<()>;

    /// Returns the reports that are ready, oldest first. With `wait`, waits for those of all runs so far.
    ///
    /// # Errors
    /// [`Error::Device`] if the device failed.
    fn reports(&mut self, wait: bool) -> Result<Vec<Report>>;

    /// Waits for the oldest report that has not been returned, while the device works on later runs, and returns it with those that are ready
    /// too, oldest first.
    ///
    /// # Errors
    /// As [`Executor::reports`].
    fn oldest_reports(&mut self) -> Result<Vec<Report>> {
        self.reports(true)
    }

    /// Returns an output of the last run, in logical order. Waits for the run.
    ///
    /// # Errors
    /// [`Error::Graph`] if the last run was of another program: programs share memory.
    fn read(&mut self, output: OutputId) -> Result<Vec<f32>>;

    /// Replaces the tensors of an arena, each in logical order. [`Arena::States`] replaces [`Arena::SavedStates`] too.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for another number of tensors or other lengths, [`Error::Graph`] if no program uses the arena.
    fn upload(&mut self, arena: Arena, tensors: &[Vec<f32>]) -> Result<()>;

    /// Returns the tensors of an arena, each in logical order. Waits for the last run.
    ///
    /// # Errors
    /// [`Error::Graph`] if no program uses the arena.
    fn download(&mut self, arena: Arena) -> Result<Vec<Vec<f32>>>;

    /// Returns the values of an arena as one slice, in the order of the device and with its padding, which costs less than
    /// [`Executor::download`]. Waits for the last run.
    ///
    /// # Errors
    /// As [`Executor::download`].
    fn download_flat(&mut self, arena: Arena) -> Result<Vec<f32>>;

    /// Measures the time of every dispatch of the next run. Returns `false` if the device cannot.
    ///
    /// # Errors
    /// [`Error::Device`] if the queries cannot be created.
    fn time_next(&mut self) -> Result<bool> {
        Ok(false)
    }

    /// Returns the times of the last run that was measured, once. Waits for the run.
    ///
    /// # Errors
    /// [`Error::Device`] if the device failed.
    fn spans(&mut self) -> Result<Vec<Span>> {
        Ok(Vec::new())
    }
}

fn unknown_program(program: ProgramId) -> Error {
    Error::bug(format!("no program {} in this executor", program.0))
}

fn unused_arena(arena: Arena) -> Error {
    Error::Graph(format!("no graph of this executor uses {arena}"))
}

fn not_the_last_run(graph: &Graph, output: OutputId) -> Error {
    let name = &graph.value(output.value).name;
    Error::Graph(format!("cannot read `{name}`: the last run was of another program"))
}

/// Rejects graphs that cannot share arenas: they must have the same tensors in the same order.
fn check_same_tensors(first: &Graph, other: &Graph) -> Result<()> {
    for arena in [Arena::Params, Arena::States] {
        let (first, other) = (first.tensors(arena), other.tensors(arena));
        if let Some((i, (a, b))) = first.iter().zip(other).enumerate().find(|(_, (a, b))| a != b) {
            return Err(Error::Graph(format!("{arena} {i} is `{}` in one graph and `{}` in another", a.name, b.name)));
        }
        if first.len() != other.len() {
            return Err(Error::Graph(format!("graphs with {} and {} {arena}", first.len(), other.len())));
        }
    }
    Ok(())
}

/// Rejects tensors for an arena that differ from its own in number or length.
fn check_tensors(graph: &Graph, arena: Arena, tensors: &[Vec<f32>]) -> Result<()> {
    let expected = graph.tensors(arena);
    if expected.len() != tensors.len() {
        return Err(Error::argument(format!("number of {arena}"), expected.len(), tensors.len()));
    }
    for (tensor, data) in expected.iter().zip(tensors) {
        if tensor.spec.len() != data.len() {
            return Err(Error::argument(format!("length of `{}`", tensor.name), tensor.spec.len(), data.len()));
        }
    }
    Ok(())
}
