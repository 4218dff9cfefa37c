//! Builds forward graphs.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::runtime::graph::{Graph, Storage, ValueId};
use crate::runtime::op::Op;
use crate::runtime::tensor::{Shape, Spec};

/// Builds a forward graph: names come from scopes, shapes are inferred, and each operation checks its inputs.
///
/// ```
/// use vae_wgpu::runtime::graph::Builder;
/// use vae_wgpu::runtime::op::{Add, Relu};
/// use vae_wgpu::runtime::tensor::{Shape, Spec};
///
/// let mut b = Builder::new();
/// let x = b.input("x", Spec::nhwc(Shape::new(2, 8, 4, 4)))?;
/// let y = b.scope("block", |b| {
///     let h = b.apply("relu", &[x], |s| Relu::new(s[0]))?;
///     b.apply("add", &[h, x], |s| Add::new(s[0], s[1]))
/// })?;
/// let graph = b.output("y", y).build();
/// assert_eq!(graph.nodes()[1].name, "block.add");
/// # Ok::<(), vae_wgpu::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Builder {
    graph: Graph,
    scopes: Vec<String>,
}

impl Builder {
    /// Returns a builder of an empty graph.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a value that the host writes before each run.
    ///
    /// # Errors
    /// [`Error::Graph`] if an input of this name exists, [`Error::InvalidArgument`] for an empty or too large shape.
    pub fn input(&mut self, name: &str, spec: Spec) -> Result<ValueId> {
        spec.shape.checked("input", name)?;
        if self.graph.inputs.contains_key(name) {
            return Err(Error::Graph(format!("two inputs are called `{name}`")));
        }
        let value = self.graph.add_value(name.to_owned(), spec, Storage::Input);
        self.graph.inputs.insert(name.to_owned(), value);
        Ok(value)
    }

    /// Calls `f` and prefixes the names of the nodes that it adds with `name` and a dot. Scopes nest.
    pub fn scope<R>(&mut self, name: impl fmt::Display, f: impl FnOnce(&mut Self) -> R) -> R {
        self.scopes.push(name.to_string());
        let result = f(self);
        self.scopes.pop();
        result
    }

    fn path(&self, name: &str) -> String {
        self.scopes.iter().map(String::as_str).chain([name]).collect::<Vec<_>>().join(".")
    }

    /// Adds a node. `make` configures its operation from the shapes of `inputs`. Returns the first output of the operation.
    ///
    /// # Errors
    /// Those of `make`; [`Error::Shape`] or [`Error::InvalidArgument`] if `inputs` do not match the operands of the operation;
    /// [`Error::Graph`] if the graph has tensors of these names. Messages start with the path of the node.
    pub fn apply<O: Op + 'static>(
        &mut self,
        name: &str,
        inputs: &[ValueId],
        make: impl FnOnce(&[Shape]) -> Result<O>,
    ) -> Result<ValueId> {
        let outputs = self.apply_all(name, inputs, make)?;
        outputs.first().copied().ok_or_else(|| Error::bug(format!("{} has no output", self.path(name))))
    }

    /// Like [`Builder::apply`], but returns all outputs of the operation.
    ///
    /// # Errors
    /// As [`Builder::apply`].
    pub fn apply_all<O: Op + 'static>(
        &mut self,
        name: &str,
        inputs: &[ValueId],
        make: impl FnOnce(&[Shape]) -> Result<O>,
    ) -> Result<Vec<ValueId>> {
        let path = self.path(name);
        let shapes: Vec<_> = inputs.iter().map(|v| self.shape(*v)).collect();
        let op = make(&shapes).map_err(|e| e.at_node(&path))?;
        self.graph.push_op(&path, Arc::new(op), inputs)
    }

    /// Returns the shape of a value. For a value of another graph the shape is empty, and every operation rejects it.
    #[must_use]
    pub fn shape(&self, value: ValueId) -> Shape {
        self.graph.values.get(value.0).map_or(Shape::new(0, 0, 0, 0), |v| v.spec.shape)
    }

    /// Makes `value` an output: the host can read it after a run.
    #[must_use]
    pub fn output(mut self, name: &str, value: ValueId) -> Self {
        self.graph.outputs.insert(name.to_owned(), value);
        self
    }

    /// Returns the forward graph.
    #[must_use]
    pub fn build(self) -> Graph {
        self.graph
    }
}
