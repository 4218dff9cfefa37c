//! Tests of exported graphs.

use std::collections::HashSet;

use super::*;
use crate::runtime::graph::{Arena, initial};
use crate::runtime::op::Likelihood;
use crate::vae::model::{Head, Norm, VaeConfig};
use crate::vae::weights::{TensorSchema, Weights};

const SMALL: VaeConfig = VaeConfig {
    channels: 4,
    blocks: 1,
    groups: 1,
    latent_dim: 3,
    norm: Norm::Batch,
    image_size: 8,
    image_channels: 3,
    head: Head::Pool,
    likelihood: Likelihood::Optimal,
    classes: 0,
};

fn model(config: VaeConfig) -> Model {
    let graph = config.graph(1, Mode::Encode).unwrap();
    let [params, states] = [Arena::Params, Arena::States].map(|arena| initial(&graph, arena, 1).unwrap());
    let classes = (0..config.classes).map(|class| class.to_string()).collect();
    Model { path: "model".into(), config, weights: Weights { params, states }, kl_dims: None, classes, epoch: None }
}

/// The encoder and the decoder of a model.
fn export(model: &Model, half: bool) -> [ModelProto; 2] {
    let options = Options { run: "demo", half };
    [encoder(model, options), decoder(model, options)].map(|bytes| ModelProto::decode(&*bytes.unwrap()).unwrap())
}

/// Dimensions of a value; 0 for a named one.
fn dims(value: &ValueInfoProto) -> Vec<i64> {
    let tensor = value.r#type.clone().unwrap().tensor_type.unwrap();
    assert_eq!(tensor.elem_type(), DataType::Float, "{}", value.name);
    tensor.shape.unwrap().dim.iter().map(|dim| dim.dim_value.unwrap_or_default()).collect()
}

fn operators(model: &ModelProto) -> String {
    let nodes = &model.graph.as_ref().unwrap().node;
    nodes.iter().map(|node| node.op_type.as_str()).collect::<Vec<_>>().join(" ")
}

#[test]
fn every_value_is_written_once_and_before_it_is_read() {
    for config in [
        VaeConfig::default(),
        VaeConfig { norm: Norm::Position, image_channels: 1, blocks: 2, ..SMALL },
        VaeConfig { classes: 7, likelihood: Likelihood::Unit, ..SMALL },
        VaeConfig { head: Head::Flatten, ..SMALL },
        // Images of one pixel between encoder and decoder.
        VaeConfig { groups: 3, classes: 2, norm: Norm::Position, ..SMALL },
        VaeConfig { channels: 2, groups: 3, latent_dim: 1, ..SMALL },
    ] {
        let (model, mut constants) = (model(config), HashMap::new());
        for half in [false, true] {
            for file in export(&model, half) {
                let graph = file.graph.unwrap();
                let mut known: HashSet<&str> = graph.input.iter().map(|value| value.name.as_str()).collect();
                for constant in &graph.initializer {
                    assert!(known.insert(&constant.name), "{} twice", constant.name);
                    let size = match constant.data_type() {
                        DataType::Float => 4,
                        DataType::Int64 => 8,
                        DataType::Float16 => 2,
                        DataType::Undefined => panic!("{} has no type", constant.name),
                    };
                    let elements: i64 = constant.dims.iter().product();
                    assert_eq!(elements as usize * size, constant.raw_data.len(), "{}", constant.name);
                    constants.insert(constant.name.clone(), constant.raw_data.clone());
                }
                let mut read = HashSet::new();
                for node in &graph.node {
                    for input in node.input.iter().filter(|input| !input.is_empty()) {
                        assert!(known.contains(input.as_str()), "{} reads {input}", node.name);
                        read.insert(input.as_str());
                    }
                    for output in &node.output {
                        assert!(known.insert(output), "{} writes {output} again", node.name);
                    }
                }
                for output in &graph.output {
                    assert!(known.contains(output.name.as_str()), "no node writes {}", output.name);
                }
                let read_or_output = |name: &str| read.contains(name) || graph.output.iter().any(|o| o.name == name);
                assert!(known.iter().all(|name| read_or_output(name)), "{config:?}");
                let described = graph.input.iter().chain(&graph.output).chain(&graph.value_info);
                assert!(described.clone().all(|value| dims(value)[0] == 0 && dims(value)[1..].iter().all(|d| *d > 0)));
                assert_eq!(described.count(), known.len() - graph.initializer.len() - casts(&graph));
            }
        }
        // Between them, the files hold all weights.
        let graph = config.graph(1, Mode::Encode).unwrap();
        let names = TensorSchema::of(&graph).weights().into_iter().map(|(name, _)| name);
        for (name, values) in names.zip(model.weights.params.iter().chain(&model.weights.states)) {
            if name != crate::vae::model::VARIANCE {
                assert_eq!(constants[&name], bytemuck::cast_slice::<_, u8>(values), "{name}");
            }
        }
    }
}

fn casts(graph: &GraphProto) -> usize {
    graph.node.iter().filter(|node| node.op_type == "Cast").count()
}

#[test]
fn inputs_and_outputs_have_names_and_shapes() {
    let [encoder, decoder] = export(&model(VaeConfig { classes: 7, ..SMALL }), false);
    for (file, inputs, outputs) in [
        (
            &encoder,
            vec![("images", vec![0, 3, 8, 8]), ("labels", vec![0, 7])],
            vec![("mu", vec![0, 3]), ("log_std", vec![0, 3])],
        ),
        (&decoder, vec![("z", vec![0, 3]), ("labels", vec![0, 7])], vec![("mean", vec![0, 3, 8, 8])]),
    ] {
        let graph = file.graph.as_ref().unwrap();
        for (found, expected) in [(&graph.input, inputs), (&graph.output, outputs)] {
            let found: Vec<_> = found.iter().map(|value| (value.name.as_str(), dims(value))).collect();
            assert_eq!(found, expected);
        }
    }
    let metadata = |key: &str| encoder.metadata_props.iter().find(|entry| entry.key == key).unwrap().value.clone();
    assert_eq!(
        (metadata("run"), metadata("sigma"), metadata("input_range")),
        ("demo".into(), "1".into(), "[-1, 1]".into())
    );
    assert_eq!(metadata("classes"), r#"["0","1","2","3","4","5","6"]"#);
    assert_eq!(serde_json::from_str::<VaeConfig>(&metadata("config")).unwrap().classes, 7);
}

#[test]
fn layers_become_these_operators() {
    let [encoder, decoder] = export(&model(VaeConfig { classes: 7, ..SMALL }), false);
    let norm = "BatchNormalization Relu";
    let block = format!("{norm} Conv {norm} Conv {norm} Conv {norm} Conv");
    assert_eq!(operators(&encoder), format!("Conv {block} Add {norm} GlobalAveragePool Flatten Gemm Gemm Add Split"));
    let block = format!("{norm} Conv {norm} ConvTranspose {norm} Conv {norm} Conv Resize");
    assert_eq!(operators(&decoder), format!("Gemm Gemm Add Reshape {block} Add {norm} Conv"));
    let [_, decoder] = export(&model(VaeConfig { norm: Norm::Position, ..SMALL }), false);
    let position = "ReduceMean Sub Mul ReduceMean Add Sqrt Div Mul Add Relu";
    let expected = format!("Gemm Reshape {block} Add {norm} Conv").replace(norm, position);
    assert_eq!(operators(&decoder), expected);
}

#[test]
fn halves_are_stored_and_not_computed_with() {
    let mut model = model(SMALL);
    let [_, decoder] = export(&model, true);
    let graph = decoder.graph.unwrap();
    let halves = graph.initializer.iter().filter(|c| c.data_type() == DataType::Float16);
    // Six layers; their biases and the norms keep their precision.
    assert_eq!((halves.clone().count(), casts(&graph)), (6, 6));
    let stem = halves.into_iter().find(|c| c.name == "decoder.out.weight.half").unwrap();
    assert_eq!(stem.dims, [3, 4, 3, 3]);
    model.weights.params.iter_mut().flatten().for_each(|v| *v = 1e5);
    let error = encoder(&model, Options { run: "demo", half: true }).unwrap_err().to_string();
    assert!(error.contains("`encoder.stem.weight`") && error.contains("finite"), "{error}");
}

#[test]
fn operations_without_a_counterpart_are_rejected() {
    let config = VaeConfig { groups: 2, ..SMALL };
    let model = model(config);
    for graph in [config.fused_graph(1, Mode::Encode).unwrap(), config.gradient_graph(2).unwrap()] {
        let mut writer = Writer::new(&graph, &model, false);
        writer.input("images", "").unwrap();
        let error = writer.nodes().unwrap_err().to_string();
        assert!(error.contains("no ONNX operators are known for encoder."), "{error}");
    }
}

#[test]
fn files_above_the_limit_of_the_format_are_rejected() {
    check_size("decoder", MAX_BYTES).unwrap();
    let error = check_size("decoder", MAX_BYTES + 1).unwrap_err().to_string();
    assert!(error.contains("2048 MiB") && error.contains("safetensors"), "{error}");
}
