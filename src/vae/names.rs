//! Tensor names of other programs, and what they say about the model.
//!
//! <https://github.com/pi-tau/vae> numbers the layers of encoder and decoder: `encoder.net.1.block.2.weight` is
//! `encoder.groups.0.blocks.0.conv1.weight` here. Shapes are equal.

use crate::runtime::op::Likelihood;
use crate::vae::model::{Head, Norm, VARIANCE, VaeConfig};
use crate::vae::tensor_file::{Array, TensorFile};

/// Layers of a residual block: here, and in pi-tau/vae.
const LAYERS: [(&str, &str); 8] = [
    ("norm1", "block.0"),
    ("conv1", "block.2"),
    ("norm2", "block.3"),
    ("conv2", "block.5"),
    ("norm3", "block.6"),
    ("conv3", "block.8"),
    ("skip_norm", "id.0"),
    ("skip_conv", "id.2"),
];

/// Buffers of pi-tau/vae that hold its prior, N(0, I).
const PRIOR: [&str; 2] = ["mu_prior", "std_prior"];

/// Returns the name in pi-tau/vae of a tensor of a model with `groups` of `blocks`, or `None` if it has no such tensor.
#[must_use]
pub fn to_seed(name: &str, groups: usize, blocks: usize) -> Option<String> {
    let (half, rest) = name.split_once('.')?;
    let (encoder, count) = (half == "encoder", groups * blocks);
    if let Some(path) = rest.strip_prefix("groups.") {
        let (group, path) = path.split_once(".blocks.")?;
        let (block, path) = path.split_once('.')?;
        let (layer, kind) = path.split_once('.')?;
        let (_, theirs) = LAYERS.iter().find(|(ours, _)| *ours == layer)?;
        let (group, block): (usize, usize) = (group.parse().ok()?, block.parse().ok()?);
        let index = group * blocks + block + if encoder { 1 } else { 2 };
        return Some(format!("{half}.net.{index}.{theirs}.{kind}"));
    }
    let (layer, kind) = rest.split_once('.')?;
    let index = match (encoder, layer) {
        (true, "stem") | (false, "fc") => 0,
        (true, "norm") => count + 1,
        (true, "fc") => count + 5,
        (false, "norm") => count + 2,
        (false, "out") => count + 4,
        _ => return None,
    };
    Some(format!("{half}.net.{index}.{kind}"))
}

/// Gives the tensors of a file from pi-tau/vae the names that they have here. Leaves other files as they are.
pub(crate) fn from_seed(file: &mut TensorFile) {
    let index = |name: &str| name.strip_prefix("encoder.net.")?.split('.').next()?.parse::<usize>().ok();
    let blocks_of = |suffix: &str| {
        let names = file.tensors.keys().filter(|name| name.ends_with(suffix));
        names.filter_map(|name| index(name)).collect::<std::collections::BTreeSet<_>>()
    };
    let (all, first) = (blocks_of(".block.2.weight"), blocks_of(".id.2.weight"));
    if all.is_empty() || first.is_empty() {
        return;
    }
    let (groups, blocks) = (first.len(), all.len() / first.len());
    let ours = names(groups, blocks);
    for name in PRIOR {
        file.tensors.remove(name);
    }
    for name in ours {
        if let Some(array) = to_seed(&name, groups, blocks).and_then(|theirs| file.tensors.remove(&theirs)) {
            file.tensors.insert(name, array);
        }
    }
}

/// Names of all tensors that a model of this size can have.
fn names(groups: usize, blocks: usize) -> Vec<String> {
    let mut layers: Vec<String> =
        ["encoder.stem", "encoder.norm", "encoder.fc", "decoder.fc", "decoder.norm", "decoder.out"]
            .map(str::to_owned)
            .into();
    for half in ["encoder", "decoder"] {
        for (group, block) in (0..groups).flat_map(|group| (0..blocks).map(move |block| (group, block))) {
            layers.extend(LAYERS.iter().map(|(layer, _)| format!("{half}.groups.{group}.blocks.{block}.{layer}")));
        }
    }
    const KINDS: [&str; 4] = ["weight", "bias", "running_mean", "running_var"];
    layers.iter().flat_map(|layer| KINDS.map(|kind| format!("{layer}.{kind}"))).collect()
}

/// Returns the configuration that the shapes of a model's tensors imply, or `None` if they are not those of a model.
pub(crate) fn config_of_shapes(file: &TensorFile) -> Option<VaeConfig> {
    let dims = |name: &str| file.tensors.get(name).map(|array: &Array| array.dims.as_slice());
    let &[channels, image_channels, ..] = dims("encoder.stem.weight")? else { return None };
    let &[twice_latent, encoded] = dims("encoder.fc.weight")? else { return None };
    let &[decoded, _] = dims("decoder.fc.weight")? else { return None };
    let has = |name: String| file.tensors.contains_key(&name);
    let conv = |group: usize, block: usize| format!("encoder.groups.{group}.blocks.{block}.conv1.weight");
    let groups = (0..).take_while(|group| has(conv(*group, 0))).count();
    let blocks = (0..).take_while(|block| has(conv(0, *block))).count();
    let pixels = decoded.checked_div(channels.checked_shl(groups as u32)?)?;
    let classes = dims("decoder.label.weight").and_then(|dims| dims.get(1).copied()).unwrap_or(0);
    let config = VaeConfig {
        channels,
        blocks,
        groups,
        latent_dim: twice_latent / 2,
        norm: if has("encoder.norm.running_mean".to_owned()) { Norm::Batch } else { Norm::Position },
        image_size: pixels.isqrt().checked_shl(groups as u32)?,
        image_channels,
        head: if encoded == decoded && pixels > 1 { Head::Flatten } else { Head::Pool },
        likelihood: if has(VARIANCE.to_owned()) { Likelihood::Optimal } else { Likelihood::Unit },
        classes,
    };
    config.check().is_ok().then_some(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vae::model::Mode;
    use crate::vae::train::Recipe;
    use crate::vae::weights::TensorSchema;

    fn file(config: &VaeConfig) -> TensorFile {
        let graph = config.graph(1, Mode::Encode).unwrap();
        let array = |(name, dims): (String, Vec<usize>)| (name, Array { data: vec![0.5; dims.iter().product()], dims });
        TensorFile {
            tensors: TensorSchema::of(&graph).weights().into_iter().map(array).collect(),
            ..TensorFile::default()
        }
    }

    #[test]
    fn names_of_the_seed_are_recognised() {
        let config = VaeConfig { norm: Norm::Position, ..Recipe::Seed.settings().model };
        let ours = file(&config);
        let mut theirs = TensorFile::default();
        for (name, array) in &ours.tensors {
            theirs.tensors.insert(to_seed(name, 3, 4).unwrap(), array.clone());
        }
        assert_eq!(theirs.tensors.len(), ours.tensors.len());
        for name in [
            "encoder.net.0.weight",
            "encoder.net.1.block.2.weight",
            "encoder.net.9.id.2.bias",
            "encoder.net.12.block.8.weight",
            "encoder.net.13.weight",
            "encoder.net.17.bias",
            "decoder.net.0.weight",
            "decoder.net.2.block.5.weight",
            "decoder.net.14.bias",
            "decoder.net.16.weight",
        ] {
            assert!(theirs.tensors.contains_key(name), "{name}");
        }
        for name in PRIOR {
            theirs.tensors.insert(name.to_owned(), Array { dims: vec![16], data: vec![0.0; 16] });
        }
        from_seed(&mut theirs);
        assert_eq!(theirs, ours);
        // Own names stay.
        let mut again = ours.clone();
        from_seed(&mut again);
        assert_eq!(again, ours);
    }

    #[test]
    fn configurations_follow_from_shapes() {
        let small =
            VaeConfig { channels: 4, blocks: 2, groups: 2, latent_dim: 3, image_size: 8, ..VaeConfig::default() };
        for config in [
            VaeConfig::default(),
            VaeConfig { norm: Norm::Position, image_channels: 1, ..small },
            VaeConfig { likelihood: Likelihood::Unit, ..small },
            VaeConfig { head: Head::Flatten, ..small },
            VaeConfig { classes: 7, ..small },
        ] {
            assert_eq!(config_of_shapes(&file(&config)), Some(config));
        }
        assert_eq!(config_of_shapes(&TensorFile::default()), None);
    }
}
