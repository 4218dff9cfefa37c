//! Running graphs: one interface over the GPU and over the CPU reference.
//!
//! An [`Executor`] holds the arenas (parameters, gradients, moments, running statistics) and runs any of the graphs that it
//! was made for, all over the same parameters: a training step at the usual batch size and at the last, shorter one, and
//! evaluation.

use std::fmt;

use crate::error::{Error, Result};
use crate::runtime::gpu::Span;
use crate::runtime::graph::{Arena, Graph};

pub mod cpu;
pub mod gpu;

pub use cpu::CpuExecutor;
pub use gpu::GpuExecutor;

/// A graph of an executor, by its number in the list that the executor was made from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ProgramId(pub usize);

/// Numbers for an input, in logical order.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// For every layout.
    F32(&'a [f32]),
    /// For inputs of bytes.
    U8(&'a [u8]),
}

/// The outputs that a run was asked to report.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// What [`Executor::run`] returned.
    pub ticket: u64,
    /// One for each name asked for, in logical order.
    pub values: Vec<Vec<f32>>,
}

/// Runs graphs on a device.
pub trait Executor: fmt::Debug {
    /// Device, driver and backend, for people.
    fn describe(&self) -> String;

    /// The graph of a program.
    fn graph(&self, program: ProgramId) -> Result<&Graph>;

    /// Writes an input for the next run of a program.
    fn write(&mut self, program: ProgramId, input: &str, data: Data<'_>) -> Result<()>;

    /// Starts a run and asks for outputs to be reported; does not wait for a GPU. Returns the ticket of the report.
    fn run(&mut self, program: ProgramId, report: &[&str]) -> Result<u64>;

    /// Reports that are ready, oldest first; with `wait`, those of all runs so far.
    fn reports(&mut self, wait: bool) -> Result<Vec<Report>>;

    /// An output of the last run, in logical order. Waits. Programs share memory: an error if another one ran since.
    fn read(&mut self, program: ProgramId, output: &str) -> Result<Vec<f32>>;

    /// Replaces the tensors of a arena, each in logical order. Running statistics count as accepted: a refused step goes back
    /// to them.
    fn upload(&mut self, arena: Arena, tensors: &[Vec<f32>]) -> Result<()>;

    /// The tensors of a arena, each in logical order. Waits.
    fn download(&mut self, arena: Arena) -> Result<Vec<Vec<f32>>>;

    /// Has the device time every dispatch of the next run, which stays the same but for its speed; `false` where it cannot.
    fn time_next(&mut self) -> Result<bool> {
        Ok(false)
    }

    /// The times of the run that was timed last, once; none where there was no such run. Waits.
    fn spans(&mut self) -> Result<Vec<Span>> {
        Ok(Vec::new())
    }
}

/// Checks that graphs can share arenas: the same tensors in the same order.
pub(crate) fn check_same_tensors(graphs: &[Graph]) -> Result<()> {
    for graph in graphs.iter().skip(1) {
        for arena in [Arena::Params, Arena::States] {
            let (first, other) = (graphs[0].tensors(arena), graph.tensors(arena));
            if let Some(((a, b), i)) = first.iter().zip(other).zip(0..).find(|((a, b), _)| a != b) {
                return Err(Error::Graph(format!(
                    "{arena} {i} is `{}` in one graph and `{}` in another",
                    a.name, b.name
                )));
            }
            if first.len() != other.len() {
                return Err(Error::Graph(format!("graphs with {} and {} {arena}", first.len(), other.len())));
            }
        }
    }
    Ok(())
}

/// Checks the number and lengths of the tensors for a arena.
pub(crate) fn check_tensors(graph: &Graph, arena: Arena, tensors: &[Vec<f32>]) -> Result<()> {
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
