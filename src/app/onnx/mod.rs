//! ONNX models of the encoder and the decoder, which other runtimes and browsers run.
//!
//! The exporter walks the graph of an evaluation and writes each node as the ONNX nodes that compute the same. A model that gets
//! further layers is therefore exported with them, and an operation without a counterpart here is an error.

use std::collections::HashMap;

use prost::Message;

use self::proto::{
    AttributeProto, DataType, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use crate::error::{Error, Result};
use crate::runtime::graph::{Graph, Node, Storage, ValueId};
use crate::runtime::op::conv::geometry::{Geometry, Layer, LayerKind};
use crate::runtime::op::{Add, BatchNorm, Conv, GlobalAvgPool, ImageDecode, Op, PositionNorm, Relu, Upsample, operand};
use crate::runtime::tensor::{Layout, Shape};
use crate::vae::inference::Model;
use crate::vae::model::Mode;
use crate::vae::tensor_file::{append_f32, half_bytes};

mod proto;

/// Version of the operators: the first with all those of the models as they are used here. onnxruntime runs it since 1.6.
const OPERATORS: i64 = 13;
/// Version of the file format that belongs to these operators.
const FORMAT: i64 = 7;
/// Name of the first dimension of all inputs and outputs.
const BATCH: &str = "batch";
/// Largest size of a file in bytes: that of a Protobuf message.
const MAX_BYTES: usize = i32::MAX as usize;

/// What a file holds besides the network.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Name of the run, for the metadata.
    pub run: &'a str,
    /// Whether the weights of layers are stored as 16-bit floats. They are computed with as 32-bit floats all the same.
    pub half: bool,
}

/// Returns the encoder as an ONNX file: `images`, `[batch, c, h, w]` from -1 to 1, and for a conditional model the one-hot `labels`,
/// `[batch, classes]`, to `mu` and `log_std`, `[batch, latent]`.
///
/// # Errors
/// [`Error::InvalidArgument`] for more than 2 GiB, [`Error::Checkpoint`] for a weight beyond the range of 16-bit floats.
pub fn encoder(model: &Model, options: Options<'_>) -> Result<Vec<u8>> {
    let graph = model.config.graph(1, Mode::Encode)?;
    let mut writer = Writer::new(&graph, model, options.half);
    writer.input("images", "pixels: byte / 127.5 - 1")?;
    if model.config.classes > 0 {
        writer.input("labels", LABELS)?;
    }
    writer.nodes()?;
    let latent = model.config.latent_dim;
    let h = writer.vector(graph.output("h")?)?;
    let sizes = writer.integers("h.sizes", &[latent as i64, latent as i64]);
    let attributes = vec![AttributeProto::int("axis", 1)];
    writer.push("Split", "h.split", vec![h, sizes], attributes, &[("mu", &[latent]), ("log_std", &[latent])]);
    let outputs = [("mu", "means of the latent dimensions"), ("log_std", "logarithms of their standard deviations")];
    let about = "Encoder of a variational autoencoder: images to their distributions of latent vectors.";
    finish("encoder", about, writer.finish(&outputs)?, model, options)
}

/// Returns the decoder as an ONNX file: `z`, `[batch, latent]`, and for a conditional model the one-hot `labels`,
/// `[batch, classes]`, to the `mean` of the image, `[batch, c, h, w]`.
///
/// # Errors
/// As [`encoder`].
pub fn decoder(model: &Model, options: Options<'_>) -> Result<Vec<u8>> {
    let graph = model.config.graph(1, Mode::Decode)?;
    let mut writer = Writer::new(&graph, model, options.half);
    writer.input("z", "latent vectors")?;
    if model.config.classes > 0 {
        writer.input("labels", LABELS)?;
    }
    writer.nodes()?;
    let about = "Decoder of a variational autoencoder: latent vectors to images.";
    let outputs = [("mean", "pixels: byte / 127.5 - 1, not clamped")];
    finish("decoder", about, writer.finish(&outputs)?, model, options)
}

const LABELS: &str = "classes, one-hot";

/// Encodes a model with its metadata.
fn finish(name: &str, about: &str, graph: GraphProto, model: &Model, options: Options<'_>) -> Result<Vec<u8>> {
    let mut metadata = vec![
        ("config", serde_json::to_string(&model.config).map_err(Error::bug)?),
        ("run", options.run.to_owned()),
        ("weights", model.weights.checksum()),
        ("input_range", "[-1, 1]".to_owned()),
        ("sigma", model.variance()?.sqrt().to_string()),
    ];
    if !model.classes.is_empty() {
        metadata.push(("classes", serde_json::to_string(&model.classes).map_err(Error::bug)?));
    }
    let entry = |(key, value): (&str, String)| StringStringEntryProto { key: key.to_owned(), value };
    let model = ModelProto {
        ir_version: FORMAT,
        producer_name: env!("CARGO_PKG_NAME").to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        doc_string: about.to_owned(),
        graph: Some(GraphProto { name: name.to_owned(), ..graph }),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPERATORS }],
        metadata_props: metadata.into_iter().map(entry).collect(),
    };
    check_size(name, model.encoded_len())?;
    Ok(model.encode_to_vec())
}

fn check_size(name: &str, bytes: usize) -> Result<()> {
    if bytes <= MAX_BYTES {
        return Ok(());
    }
    let expected = "less than 2048 MiB, the limit of the format; export the weights as safetensors instead";
    Err(Error::argument(format!("size of the {name} as ONNX"), expected, format!("{} MiB", bytes >> 20)))
}

type Attributes = Vec<AttributeProto>;

/// Translates a graph of the model. The batch size of that graph is replaced by a named one.
struct Writer<'a> {
    graph: &'a Graph,
    model: &'a Model,
    half: bool,
    out: GraphProto,
    /// Names of values as `[batch, c, h, w]`.
    images: HashMap<ValueId, String>,
    /// Names of values as `[batch, c * h * w]`: what linear layers read and write.
    vectors: HashMap<ValueId, String>,
}

impl<'a> Writer<'a> {
    fn new(graph: &'a Graph, model: &'a Model, half: bool) -> Self {
        let (images, vectors) = Default::default();
        Self { graph, model, half, out: GraphProto::default(), images, vectors }
    }

    /// Declares an input of the graph: images of bytes as images of floats, everything else as vectors.
    fn input(&mut self, name: &str, about: &str) -> Result<()> {
        let id = self.graph.input(name)?;
        let spec = self.graph.value(id).spec;
        let dims = if spec.layout == Layout::Bytes {
            self.images.insert(id, name.to_owned());
            image_dims(spec.shape).to_vec()
        } else {
            self.vectors.insert(id, name.to_owned());
            vec![vector_len(spec.shape)]
        };
        self.out.input.push(ValueInfoProto { doc_string: about.to_owned(), ..value_info(name, &dims) });
        Ok(())
    }

    /// Writes all nodes of the graph.
    fn nodes(&mut self) -> Result<()> {
        self.graph.nodes().iter().try_for_each(|node| self.node(node))
    }

    /// Returns the graph with these outputs, each with its description.
    fn finish(mut self, outputs: &[(&str, &str)]) -> Result<GraphProto> {
        for (name, about) in outputs {
            let at = self.out.value_info.iter().position(|value| value.name == *name);
            let at = at.ok_or_else(|| Error::bug(format!("no node writes the output `{name}`")))?;
            let value = self.out.value_info.remove(at);
            self.out.output.push(ValueInfoProto { doc_string: (*about).to_owned(), ..value });
        }
        Ok(self.out)
    }

    /// Writes the ONNX nodes that compute what `node` computes.
    fn node(&mut self, node: &Node) -> Result<()> {
        let op: &dyn Op = node.op.as_ref();
        if let Some(conv) = op.downcast_ref::<Conv>().filter(|_| op.kind() == op.unfused_kind()) {
            return self.layer(node, &conv.layer);
        }
        if let Some(norm) = op.downcast_ref::<BatchNorm>().map(BatchNorm::config).filter(|c| !c.training && !c.relu) {
            let mut inputs = vec![self.image_of(node, "x")?];
            for name in ["weight", "bias", "running_mean", "running_var"] {
                inputs.push(self.tensor(node, name)?);
            }
            let epsilon = AttributeProto::float("epsilon", norm.eps as f32);
            return self.write_image(node, "BatchNormalization", inputs, vec![epsilon]);
        }
        if let Some(norm) = op.downcast_ref::<PositionNorm>().map(PositionNorm::config).filter(|c| !c.relu) {
            return self.position_norm(node, norm.eps as f32);
        }
        if op.downcast_ref::<Relu>().is_some() {
            let x = self.image_of(node, "x")?;
            return self.write_image(node, "Relu", vec![x], vec![]);
        }
        if op.downcast_ref::<GlobalAvgPool>().is_some() {
            let x = self.image_of(node, "x")?;
            return self.write_image(node, "GlobalAveragePool", vec![x], vec![]);
        }
        if op.downcast_ref::<Upsample>().is_some() {
            let x = self.image_of(node, "x")?;
            let scales = self.floats(&format!("{}.scales", node.name), &[4], &[1.0, 1.0, 2.0, 2.0]);
            let nearest =
                [("mode", "nearest"), ("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")];
            let attributes = nearest.map(|(name, value)| AttributeProto::string(name, value)).to_vec();
            // The second input is a region of interest; an empty name leaves it out.
            return self.write_image(node, "Resize", vec![x, String::new(), scales], attributes);
        }
        if op.downcast_ref::<Add>().is_some() {
            let [a, b] = [node.bound(operand("a"))?, node.bound(operand("b"))?];
            if self.vectors.contains_key(&a) && self.vectors.contains_key(&b) {
                let inputs = vec![self.vector(a)?, self.vector(b)?];
                return self.write_vector(node, "Add", inputs, vec![]);
            }
            let inputs = vec![self.image(a)?, self.image(b)?];
            return self.write_image(node, "Add", inputs, vec![]);
        }
        if op.downcast_ref::<ImageDecode>().is_some() {
            // The images that the ONNX model gets are scaled already.
            let images = self.image_of(node, "bytes")?;
            self.images.insert(node.bound(operand("y"))?, images);
            return Ok(());
        }
        Err(Error::bug(format!("no ONNX operators are known for {}", node.label())))
    }

    fn layer(&mut self, node: &Node, layer: &Layer) -> Result<()> {
        let Geometry { kernel: (kh, kw), stride, padding, .. } = layer.geometry;
        let x = match layer.kind {
            LayerKind::Linear => self.vector(node.bound(operand("x"))?)?,
            LayerKind::Conv2d | LayerKind::ConvTranspose2d => self.image_of(node, "x")?,
        };
        let inputs = vec![x, self.tensor(node, "weight")?, self.tensor(node, "bias")?];
        let window = || {
            let sizes = [("kernel_shape", vec![kh, kw]), ("strides", vec![stride; 2]), ("pads", vec![padding; 4])];
            sizes.map(|(name, sizes)| AttributeProto::ints(name, &sizes)).to_vec()
        };
        match layer.kind {
            LayerKind::Linear => self.write_vector(node, "Gemm", inputs, vec![AttributeProto::int("transB", 1)]),
            LayerKind::Conv2d => self.write_image(node, "Conv", inputs, window()),
            LayerKind::ConvTranspose2d => self.write_image(node, "ConvTranspose", inputs, window()),
        }
    }

    /// Writes a layer normalization over the channels in single steps. The operator LayerNormalization is newer than [`OPERATORS`] and
    /// needs the channels last.
    fn position_norm(&mut self, node: &Node, eps: f32) -> Result<()> {
        let (x, name) = (self.image_of(node, "x")?, &node.name);
        let [c, h, w] = image_dims(self.graph.value(node.bound(operand("x"))?).spec.shape);
        let weight = self.tensor_with(node, "weight", &[c, 1, 1])?;
        let bias = self.tensor_with(node, "bias", &[c, 1, 1])?;
        let eps = self.floats(&format!("{name}.eps"), &[], &[eps]);
        let mut step = |op_type: &str, part: &str, inputs: &[&String], dims: [usize; 3]| {
            let attributes = match op_type {
                "ReduceMean" => vec![AttributeProto::ints("axes", &[1]), AttributeProto::int("keepdims", 1)],
                _ => vec![],
            };
            let output = format!("{name}.{part}");
            self.push(op_type, &output, inputs.iter().copied().cloned().collect(), attributes, &[(&output, &dims)]);
            output
        };
        let (one, all) = ([1, h, w], [c, h, w]);
        let mean = step("ReduceMean", "mean", &[&x], one);
        let centered = step("Sub", "centered", &[&x, &mean], all);
        let squares = step("Mul", "squares", &[&centered, &centered], all);
        let variance = step("ReduceMean", "variance", &[&squares], one);
        let shifted = step("Add", "variance_eps", &[&variance, &eps], one);
        let std = step("Sqrt", "std", &[&shifted], one);
        let normalized = step("Div", "normalized", &[&centered, &std], all);
        let scaled = step("Mul", "scaled", &[&normalized, &weight], all);
        self.write_image(node, "Add", vec![scaled, bias], vec![])
    }

    /// Writes an ONNX node whose output is that of `node`, as an image.
    fn write_image(&mut self, node: &Node, op_type: &str, inputs: Vec<String>, attributes: Attributes) -> Result<()> {
        let (y, name, shape) = self.output_of(node)?;
        self.push(op_type, &node.name, inputs, attributes, &[(&name, &image_dims(shape))]);
        self.images.insert(y, name);
        Ok(())
    }

    /// Writes an ONNX node whose output is that of `node`, as a vector.
    fn write_vector(&mut self, node: &Node, op_type: &str, inputs: Vec<String>, attributes: Attributes) -> Result<()> {
        let (y, name, shape) = self.output_of(node)?;
        self.push(op_type, &node.name, inputs, attributes, &[(&name, &[vector_len(shape)])]);
        self.vectors.insert(y, name);
        Ok(())
    }

    /// Returns the output of a node, its name and its shape. An output of the graph has its name there.
    fn output_of(&self, node: &Node) -> Result<(ValueId, String, Shape)> {
        let y = node.bound(operand("y"))?;
        let value = self.graph.value(y);
        let output = self.graph.outputs().iter().find(|(_, id)| **id == y);
        Ok((y, output.map_or(&value.name, |(name, _)| name).clone(), value.spec.shape))
    }

    /// Returns the name of an operand as an image.
    fn image_of(&mut self, node: &Node, name: &'static str) -> Result<String> {
        self.image(node.bound(operand(name))?)
    }

    /// Returns the name of a value as `[batch, c, h, w]`. Reshapes it if it is a vector so far.
    fn image(&mut self, id: ValueId) -> Result<String> {
        if let Some(name) = self.images.get(&id) {
            return Ok(name.clone());
        }
        let dims = image_dims(self.graph.value(id).spec.shape);
        let vector = self.vectors.get(&id).ok_or_else(|| self.unwritten(id))?.clone();
        let name = format!("{vector}.image");
        // 0 stands for the size of the input, the batch.
        let sizes: Vec<i64> = [0].into_iter().chain(dims.map(|size| size as i64)).collect();
        let sizes = self.integers(&format!("{name}.sizes"), &sizes);
        self.push("Reshape", &name, vec![vector, sizes], vec![], &[(&name, &dims)]);
        self.images.insert(id, name.clone());
        Ok(name)
    }

    /// Returns the name of a value as `[batch, c * h * w]`. Flattens it if it is an image so far.
    fn vector(&mut self, id: ValueId) -> Result<String> {
        if let Some(name) = self.vectors.get(&id) {
            return Ok(name.clone());
        }
        let length = vector_len(self.graph.value(id).spec.shape);
        let image = self.images.get(&id).ok_or_else(|| self.unwritten(id))?.clone();
        let name = format!("{image}.vector");
        self.push("Flatten", &name, vec![image], vec![AttributeProto::int("axis", 1)], &[(&name, &[length])]);
        self.vectors.insert(id, name.clone());
        Ok(name)
    }

    fn unwritten(&self, id: ValueId) -> Error {
        Error::bug(format!("`{}` is read before it is written", self.graph.value(id).name))
    }

    /// Adds a node with the names and dimensions, without the batch, of its outputs.
    fn push(
        &mut self,
        op_type: &str,
        name: &str,
        inputs: Vec<String>,
        attributes: Attributes,
        outputs: &[(&str, &[usize])],
    ) {
        self.out.value_info.extend(outputs.iter().map(|(name, dims)| value_info(name, dims)));
        self.out.node.push(NodeProto {
            input: inputs,
            output: outputs.iter().map(|(name, _)| (*name).to_owned()).collect(),
            name: name.to_owned(),
            op_type: op_type.to_owned(),
            attribute: attributes,
        });
    }

    /// Adds a parameter or running statistic of a node with its PyTorch dimensions.
    fn tensor(&mut self, node: &Node, name: &'static str) -> Result<String> {
        let dims = self.graph.value(node.bound(operand(name))?).spec.torch_dims();
        self.tensor_with(node, name, &dims)
    }

    /// The same with other dimensions.
    fn tensor_with(&mut self, node: &Node, name: &'static str, dims: &[usize]) -> Result<String> {
        let value = self.graph.value(node.bound(operand(name))?);
        let Storage::Tensor(arena, index) = value.storage else {
            return Err(Error::bug(format!("`{}` is not a weight", value.name)));
        };
        let missing = || Error::bug(format!("no weights for `{}`", value.name));
        let data = self.model.weights.arena(arena)?.get(index).ok_or_else(missing)?;
        let name = value.name.clone();
        if self.half && value.spec.torch_dims().len() > 1 {
            let (bytes, stored) = (half_bytes(&self.model.path, &name, data)?, format!("{name}.half"));
            self.constant(&stored, DataType::Float16, dims, bytes);
            let to = AttributeProto::int("to", i32::from(DataType::Float).into());
            self.out.node.push(NodeProto {
                input: vec![stored],
                output: vec![name.clone()],
                name: format!("{name}.cast"),
                op_type: "Cast".to_owned(),
                attribute: vec![to],
            });
            return Ok(name);
        }
        Ok(self.floats(&name, dims, data))
    }

    fn floats(&mut self, name: &str, dims: &[usize], values: &[f32]) -> String {
        let mut bytes = Vec::new();
        append_f32(&mut bytes, values);
        self.constant(name, DataType::Float, dims, bytes)
    }

    fn integers(&mut self, name: &str, values: &[i64]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(name, DataType::Int64, &[values.len()], bytes)
    }

    /// Adds a constant and returns its name.
    fn constant(&mut self, name: &str, data_type: DataType, dims: &[usize], raw_data: Vec<u8>) -> String {
        let dims = dims.iter().map(|size| *size as i64).collect();
        let (data_type, name) = (data_type.into(), name.to_owned());
        self.out.initializer.push(TensorProto { dims, data_type, name: name.clone(), raw_data });
        name
    }
}

/// Dimensions of a value as an image, without the batch.
fn image_dims(shape: Shape) -> [usize; 3] {
    [shape.c, shape.h, shape.w]
}

/// Length of a value as a vector.
fn vector_len(shape: Shape) -> usize {
    shape.c * shape.h * shape.w
}

/// Describes a value of floats with these dimensions after that of the batch.
fn value_info(name: &str, dims: &[usize]) -> ValueInfoProto {
    let batch = DimensionProto { dim_param: Some(BATCH.to_owned()), dim_value: None };
    let size = |size: &usize| DimensionProto { dim_value: Some(*size as i64), dim_param: None };
    let shape = TensorShapeProto { dim: [batch].into_iter().chain(dims.iter().map(size)).collect() };
    let tensor = TensorTypeProto { elem_type: DataType::Float.into(), shape: Some(shape) };
    let r#type = Some(TypeProto { tensor_type: Some(tensor) });
    ValueInfoProto { name: name.to_owned(), r#type, doc_string: String::new() }
}

#[cfg(test)]
mod tests;
