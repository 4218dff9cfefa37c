//! The ResNet VAE as a graph.
//!
//! The encoder consists of groups of pre-activation residual blocks (He et al., arXiv:1603.05027). The first block of each group
//! halves the resolution and doubles the channels. The decoder mirrors the encoder; there are no skip connections between them. The
//! encoder outputs the mean and log standard deviation of a diagonal Gaussian (Kingma and Welling, arXiv:1312.6114), the decoder the
//! mean of a Gaussian, whose variance the [`Likelihood`] determines.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::runtime::graph::{Builder, Graph, Root, ValueId};
use crate::runtime::kernel::Profile;
use crate::runtime::op::{
    AdamConfig, Add, BatchNorm, BatchNormConfig, Conv, Elbo, ElboConfig, GlobalAvgPool, ImageDecode, Likelihood,
    PositionNorm, PositionNormConfig, Relu, Reparameterize, Upsample,
};
use crate::runtime::plan;
use crate::runtime::plan::Plan;
use crate::runtime::tensor::{MAX_ELEMENTS, Shape, Spec};

/// Normalization before every ReLU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Norm {
    /// Batch normalization (Ioffe and Szegedy, arXiv:1502.03167), momentum 0.1.
    Batch,
    /// Layer normalization over the channels of each pixel.
    Position,
}

impl std::fmt::Display for Norm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Batch => "batch",
            Self::Position => "position",
        })
    }
}

impl std::str::FromStr for Norm {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "batch" => Ok(Self::Batch),
            "position" => Ok(Self::Position),
            _ => Err(Error::Unknown { kind: "norm", name: name.to_owned(), known: "batch, position".to_owned() }),
        }
    }
}

/// What the last layer of the encoder reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Head {
    /// The mean of each channel: global average pooling (Lin, Chen and Yan, arXiv:1312.4400).
    #[default]
    Pool,
    /// The whole feature map, so that the latent variables can depend on where something is.
    Flatten,
}

impl std::fmt::Display for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pool => "pool",
            Self::Flatten => "flatten",
        })
    }
}

impl std::str::FromStr for Head {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "pool" => Ok(Self::Pool),
            "flatten" => Ok(Self::Flatten),
            _ => Err(Error::Unknown { kind: "head", name: name.to_owned(), known: "pool, flatten".to_owned() }),
        }
    }
}

/// Configuration of the model.
///
/// ```
/// use vae_wgpu::vae::model::{Mode, VaeConfig};
///
/// let config = VaeConfig { channels: 8, blocks: 1, ..VaeConfig::default() };
/// let graph = config.graph(4, Mode::Decode)?;
/// assert_eq!(graph.value(graph.output("mean")?).spec.shape, config.images(4));
/// assert!(VaeConfig { channels: 7, ..config }.check().is_err());
/// # Ok::<(), vae_wgpu::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaeConfig {
    /// Channels after the first convolution, which each group doubles. Even, at least 2.
    pub channels: usize,
    /// Residual blocks in each group; at least 1.
    pub blocks: usize,
    /// Groups of the encoder and of the decoder; each halves or doubles the resolution.
    pub groups: usize,
    /// Number of latent dimensions.
    pub latent_dim: usize,
    /// Normalization.
    pub norm: Norm,
    /// Height and width of an image: a multiple of 2^groups.
    pub image_size: usize,
    /// Channels of an image.
    pub image_channels: usize,
    /// What the last layer of the encoder reads.
    #[serde(default, skip_serializing_if = "is_pool")]
    pub head: Head,
    /// Distribution of a pixel around its decoded value.
    #[serde(default, skip_serializing_if = "is_unit")]
    pub likelihood: Likelihood,
    /// Number of classes of a conditional VAE (Sohn et al., "Learning Structured Output Representation using Deep Conditional
    /// Generative Models", 2015), whose encoder and decoder know the class of an image; 0 for none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub classes: usize,
}

/// Files with a pooling head do not name it, so that earlier versions can read them.
fn is_pool(head: &Head) -> bool {
    *head == Head::Pool
}

/// Files with the unit likelihood do not name it, so that earlier versions can read them.
fn is_unit(likelihood: &Likelihood) -> bool {
    *likelihood == Likelihood::Unit
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Default for VaeConfig {
    /// 32 channels, 4 blocks, 3 groups, 64 latent dimensions, batch norm, the optimal likelihood, 32x32 RGB images: 2,434,691
    /// parameters.
    fn default() -> Self {
        Self {
            channels: 32,
            blocks: 4,
            groups: 3,
            latent_dim: 64,
            norm: Norm::Batch,
            image_size: 32,
            image_channels: 3,
            head: Head::Flatten,
            likelihood: Likelihood::Optimal,
            classes: 0,
        }
    }
}

/// Largest number of classes: labels are bytes.
pub const MAX_CLASSES: usize = 256;

/// Epsilon of both normalizations.
const NORM_EPS: f64 = 1e-5;
/// Momentum of batch norm's running statistics.
const NORM_MOMENTUM: f64 = 0.1;

/// Name of the running statistic that holds the variance of the optimal likelihood.
pub(crate) const VARIANCE: &str = "loss.variance";

/// Name of the parameter whose second half is added to log_std.
pub(crate) const POSTERIOR_BIAS: &str = "encoder.fc.bias";

/// Purpose of a graph of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Loss, gradients and update, with batch statistics.
    Train,
    /// Loss and gradients of a micro-batch, with batch statistics, added to those of the micro-batches before it in a step of up to this
    /// many. With [`Mode::Update`], which follows the last one, they make a training step.
    Accumulate(usize),
    /// Like [`Mode::Accumulate`], in one of several processes that share a step: the running statistics become those of the batch.
    AccumulateShare(usize),
    /// Like [`Mode::AccumulateShare`], with batch norms over the micro-batches that all processes run at the same time.
    AccumulateSynchronized(usize),
    /// The update of a step of up to this many micro-batches of several processes, which also moves the running statistics.
    UpdateShares(usize),
    /// The update of a training step of several micro-batches. It is the same for every batch size.
    Update,
    /// Loss, `h` (mu, then log_std) and `mean` of a batch, with running statistics.
    Evaluate,
    /// `h` of `images`, with running statistics.
    Encode,
    /// `mean` of `z`, with running statistics.
    Decode,
}

impl Mode {
    /// Returns the largest number of micro-batches of a step, in the modes that have one.
    pub(crate) fn most(self) -> Option<usize> {
        match self {
            Self::Accumulate(most)
            | Self::AccumulateShare(most)
            | Self::AccumulateSynchronized(most)
            | Self::UpdateShares(most) => Some(most),
            Self::Train | Self::Update | Self::Evaluate | Self::Encode | Self::Decode => None,
        }
    }
}

impl VaeConfig {
    /// Checks the ranges of all fields.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the name of the field.
    pub fn check(&self) -> Result<()> {
        let bad = |what: &str, expected: String, found: usize| Err(Error::argument(what, expected, found));
        if self.channels < 2 || !self.channels.is_multiple_of(2) || self.channels > 4096 {
            return bad("channels", "an even number from 2 to 4096".into(), self.channels);
        }
        for (what, found, most) in
            [("blocks", self.blocks, 256), ("groups", self.groups, 8), ("latent dimensions", self.latent_dim, 65_536)]
        {
            if found == 0 || found > most {
                return bad(what, format!("1 to {most}"), found);
            }
        }
        if self.classes > MAX_CLASSES {
            return bad("classes", format!("0 to {MAX_CLASSES}"), self.classes);
        }
        if self.image_channels == 0 || self.image_channels > 16 {
            return bad("image channels", "1 to 16".into(), self.image_channels);
        }
        let granule = 1 << self.groups;
        if self.image_size == 0 || !self.image_size.is_multiple_of(granule) || self.image_size > 1024 {
            return bad("image size", format!("a multiple of {granule} up to 1024"), self.image_size);
        }
        Ok(())
    }

    /// Returns the shape of a batch of images.
    #[must_use]
    pub const fn images(&self, batch: usize) -> Shape {
        Shape::new(batch, self.image_channels, self.image_size, self.image_size)
    }

    /// Returns the graph for one batch size. The graphs of a model share their parameters and running statistics.
    ///
    /// Inputs, depending on the mode: `images` (bytes, `[batch, c, h, w]`), `labels` (one-hot, `[batch, classes]`, if there are classes),
    /// `eps` (`[batch, latent]`), `z` (`[batch, latent]`), `objective` (weight of the KL term and free bits, see [`Elbo`]), `hyperparams` ([`StepScalars`](crate::runtime::op::optim::StepScalars)),
    /// `micro_batch` ([`MicroBatch`](crate::runtime::op::MicroBatch)), `statistics` and `count`
    /// ([`ReplayStates`](crate::runtime::op::ReplayStates)). Outputs: `terms`
    /// (total, recon, kl, mse), `kl_dims` (`[latent]`), `h` (`[batch, 2 * latent]`: mu, then log_std), `mean` (`[batch, c, h, w]`), `norm` (gradient norm, finite
    /// flag).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an invalid configuration or a batch that is too large to index.
    pub fn graph(&self, batch: usize, mode: Mode) -> Result<Graph> {
        self.rewritten(batch, mode, false, false)
    }

    /// Returns the same graph with fused operations: [`Graph::fused`].
    ///
    /// # Errors
    /// As [`VaeConfig::graph`].
    pub fn fused_graph(&self, batch: usize, mode: Mode) -> Result<Graph> {
        self.rewritten(batch, mode, true, false)
    }

    fn rewritten(&self, batch: usize, mode: Mode, fuse: bool, recompute: bool) -> Result<Graph> {
        let (graph, loss) = self.forward(batch, mode)?;
        let (graph, momentum) = match mode {
            Mode::AccumulateShare(_) | Mode::AccumulateSynchronized(_) | Mode::UpdateShares(_) => {
                graph.with_batch_statistics()?
            }
            _ => (graph, None),
        };
        let graph = match mode {
            Mode::AccumulateSynchronized(_) => graph.with_synchronized_norms()?,
            _ => graph,
        };
        let graph = if fuse { graph.fused()? } else { graph };
        let with_gradients = |graph: Graph| {
            let graph = graph.with_gradients(&[Root::Loss(loss)], &[])?;
            if recompute { graph.with_recompute(block_of) } else { Ok(graph) }
        };
        match mode {
            Mode::Train => with_gradients(graph)?.with_adam(AdamConfig::default(), loss),
            Mode::Accumulate(most) => with_gradients(graph)?.with_accumulation(most, loss),
            Mode::AccumulateShare(most) | Mode::AccumulateSynchronized(most) => {
                with_gradients(graph)?.with_shared_accumulation(most, loss)
            }
            Mode::UpdateShares(most) => graph.update_of_shares(AdamConfig::default(), most, momentum),
            Mode::Update => graph.update_after_accumulation(AdamConfig::default()),
            Mode::Evaluate => Ok(graph),
            Mode::Encode => graph.only(&["h"]),
            Mode::Decode => graph.only(&["mean"]),
        }
    }

    /// Returns the training graph without the update: loss and all gradients.
    ///
    /// # Errors
    /// As [`VaeConfig::graph`].
    pub fn gradient_graph(&self, batch: usize) -> Result<Graph> {
        let (graph, loss) = self.forward(batch, Mode::Train)?;
        graph.with_gradients(&[Root::Loss(loss)], &[])
    }

    fn forward(&self, batch: usize, mode: Mode) -> Result<(Graph, ValueId)> {
        self.check()?;
        self.images(batch).checked("model", &format!("a batch of {batch}"))?;
        let training = !matches!(mode, Mode::Evaluate | Mode::Encode | Mode::Decode);
        let mut b = Builder::new();
        let bytes = b.input("images", Spec::bytes(self.images(batch)))?;
        let x = b.apply("image_decode", &[bytes], |s| ImageDecode::new(s[0]))?;
        let labels = match self.classes {
            0 => None,
            classes => Some(b.input("labels", Spec::nhwc(Shape::new(batch, classes, 1, 1)))?),
        };
        let h = b.scope("encoder", |b| self.encoder(b, x, labels, training))?;
        let latent = Spec::nhwc(Shape::new(batch, self.latent_dim, 1, 1));
        let z = if mode == Mode::Decode {
            b.input("z", latent)?
        } else {
            let eps = b.input("eps", latent)?;
            b.apply("reparameterize", &[h, eps], |s| Reparameterize::new(s[0], s[1]))?
        };
        let mean = b.scope("decoder", |b| self.decoder(b, z, labels, training))?;
        let objective = b.input("objective", Spec::flat(2))?;
        let config = ElboConfig { likelihood: self.likelihood, training };
        let inputs = [x, mean, h, objective];
        let losses = b.apply_all("loss", &inputs, |s| Elbo::new(s[0], s[1], s[2], config))?;
        let &[terms, kl_dims] = losses.as_slice() else { return Err(Error::bug("a loss with other outputs")) };
        let b = b.output("mean", mean).output("h", h).output("terms", terms).output("kl_dims", kl_dims);
        Ok((b.build(), terms))
    }

    /// Returns the graph for a device, rewritten as `options` ask, and its plan.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`] with the largest batch that fits; as [`VaeConfig::graph`].
    pub fn plan(&self, batch: usize, mode: Mode, profile: &Profile, options: &plan::Options) -> Result<(Graph, Plan)> {
        let build = |batch: usize| {
            let graph = self.rewritten(batch, mode, options.fuse, options.recompute_blocks)?;
            let plan = plan::plan(&graph, profile, options)?;
            Ok((graph, plan))
        };
        let error = match build(batch) {
            Err(error) if batch > 1 || matches!(error, Error::DoesNotFit { .. }) => error,
            result => return result,
        };
        let (what, needed, limit, unit) = match (error, build(1)) {
            (Error::DoesNotFit { what, needed, limit, unit, .. }, _) => (what, needed, limit, unit),
            // A batch of 1 is valid, so this batch has a tensor with more elements than an index can address.
            (Error::InvalidArgument { .. }, Ok((_, one))) => {
                let needed = one.memory.largest.saturating_mul(batch as u64);
                ("the largest tensor".to_owned(), needed, MAX_ELEMENTS as u64 * 4, "bytes")
            }
            (error, _) => return Err(error),
        };
        let (mut fits, mut fails) = (0, batch);
        while fails - fits > 1 {
            let middle = fits + (fails - fits) / 2;
            if build(middle).is_ok() { fits = middle } else { fails = middle }
        }
        let (what, largest_batch) = (format!("{what} of batch {batch}"), Some(fits));
        Err(Error::DoesNotFit { what, needed, limit, unit, largest_batch })
    }
}

/// Returns the residual block of a node: `encoder.groups.0.blocks.1` for `encoder.groups.0.blocks.1.conv2`.
fn block_of(node: &str) -> Option<&str> {
    let start = node.find(".blocks.")? + ".blocks.".len();
    let digits = node.get(start..)?.find('.')?;
    node.get(..start + digits)
}

/// Change of resolution in a residual block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Keeps the resolution.
    Same,
    /// Halves the resolution.
    Down,
    /// Doubles the resolution.
    Up,
}

/// Adds a normalization and a ReLU, with parameters `name.weight` and `name.bias`. [`Norm::Batch`] also has running statistics; it
/// normalizes with them, or with batch statistics and updates them if `training`.
///
/// # Errors
/// Errors of [`Builder::apply`].
pub fn norm_relu(b: &mut Builder, name: &str, x: ValueId, norm: Norm, training: bool) -> Result<ValueId> {
    let y = match norm {
        Norm::Batch => {
            let config = BatchNormConfig { eps: NORM_EPS, momentum: NORM_MOMENTUM, training, relu: false };
            b.apply(name, &[x], |s| BatchNorm::new(s[0], config))?
        }
        Norm::Position => {
            let config = PositionNormConfig { eps: NORM_EPS, relu: false };
            b.apply(name, &[x], |s| PositionNorm::new(s[0], config))?
        }
    };
    b.apply(&format!("{name}.relu"), &[y], |s| Relu::new(s[0]))
}

/// Adds a pre-activation bottleneck block with `out` output channels:
///
/// ```text
/// main = norm relu conv1x1(c -> c/2) norm relu C norm relu conv1x1(c/2 -> out)
///   C: same = conv3x3; down = conv3x3 stride 2; up = conv_transpose4x4 stride 2     (c/2 -> c/2)
/// skip = x if its shape matches; otherwise norm relu conv1x1(c -> out; stride 2 if down), then nearest x2 if up
/// y = main + skip
/// ```
///
/// # Errors
/// Errors of [`Builder::apply`].
pub fn residual_block(
    b: &mut Builder,
    x: ValueId,
    out: usize,
    scale: Scale,
    norm: Norm,
    training: bool,
) -> Result<ValueId> {
    let middle = b.shape(x).c / 2;
    let stride = if scale == Scale::Down { 2 } else { 1 };
    let h = norm_relu(b, "norm1", x, norm, training)?;
    let h = conv(b, "conv1", h, middle, 1, 1)?;
    let h = norm_relu(b, "norm2", h, norm, training)?;
    let h = match scale {
        Scale::Up => b.apply("conv2", &[h], |s| Conv::conv_transpose2d(s[0], middle, 4, 2, 1))?,
        _ => conv(b, "conv2", h, middle, 3, stride)?,
    };
    let h = norm_relu(b, "norm3", h, norm, training)?;
    let h = conv(b, "conv3", h, out, 1, 1)?;
    let skip = if scale == Scale::Same && b.shape(x).c == out {
        x
    } else {
        let s = norm_relu(b, "skip_norm", x, norm, training)?;
        let s = conv(b, "skip_conv", s, out, 1, stride)?;
        if scale == Scale::Up { b.apply("skip_up", &[s], |s| Upsample::new(s[0]))? } else { s }
    };
    b.apply("add", &[h, skip], |s| Add::new(s[0], s[1]))
}

fn conv(b: &mut Builder, name: &str, x: ValueId, out: usize, kernel: usize, stride: usize) -> Result<ValueId> {
    b.apply(name, &[x], |s| Conv::conv2d(s[0], out, kernel, stride, kernel / 2))
}

/// Adds the linear layer `fc`. With labels, a second one, `label`, is added to its output: together they are the linear layer of x and
/// the one-hot label, concatenated.
fn linear_with_labels(b: &mut Builder, x: ValueId, labels: Option<ValueId>, out: Shape) -> Result<ValueId> {
    let y = b.apply("fc", &[x], |s| Conv::linear(s[0], out))?;
    let Some(labels) = labels else { return Ok(y) };
    let of_label = b.apply("label", &[labels], |s| Conv::linear(s[0], out))?;
    b.apply("label.add", &[y, of_label], |s| Add::new(s[0], s[1]))
}

impl VaeConfig {
    fn groups(&self, b: &mut Builder, mut x: ValueId, scale: Scale, training: bool) -> Result<ValueId> {
        for g in 0..self.groups {
            let c = b.shape(x).c;
            let out = if scale == Scale::Down { c * 2 } else { c / 2 };
            for block in 0..self.blocks {
                let scale = if block == 0 { scale } else { Scale::Same };
                x = b.scope(format_args!("groups.{g}.blocks.{block}"), |b| {
                    residual_block(b, x, out, scale, self.norm, training)
                })?;
            }
        }
        Ok(x)
    }

    fn encoder(&self, b: &mut Builder, x: ValueId, labels: Option<ValueId>, training: bool) -> Result<ValueId> {
        let h = conv(b, "stem", x, self.channels, 3, 1)?;
        let h = self.groups(b, h, Scale::Down, training)?;
        let h = norm_relu(b, "norm", h, self.norm, training)?;
        let h = match self.head {
            Head::Pool => b.apply("pool", &[h], |s| GlobalAvgPool::new(s[0]))?,
            Head::Flatten => h,
        };
        let out = Shape::vector(2 * self.latent_dim);
        linear_with_labels(b, h, labels, out)
    }

    fn decoder(&self, b: &mut Builder, z: ValueId, labels: Option<ValueId>, training: bool) -> Result<ValueId> {
        let size = self.image_size >> self.groups;
        let out = Shape::new(1, self.channels << self.groups, size, size);
        let h = linear_with_labels(b, z, labels, out)?;
        let h = self.groups(b, h, Scale::Up, training)?;
        let h = norm_relu(b, "norm", h, self.norm, training)?;
        conv(b, "out", h, self.image_channels, 3, 1)
    }
}
