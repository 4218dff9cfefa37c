//! Fixtures of whole graphs: residual blocks with their gradients, and models over five training steps.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use vae_wgpu::runtime::exec::{CpuExecutor, Data, Executor, GpuExecutor};
use vae_wgpu::runtime::graph::{Arena, Builder, Graph, Root, ValueId};
use vae_wgpu::runtime::op::{AdamConfig, Likelihood, StepScalars};
use vae_wgpu::runtime::plan::Options;
use vae_wgpu::runtime::tensor::{Shape, Spec};
use vae_wgpu::vae::inference::{Model, draws};
use vae_wgpu::vae::model::{Head, Mode, Norm, Scale, VaeConfig, residual_block};
use vae_wgpu::vae::names;
use vae_wgpu::vae::runner::{Device, Hyperparams, Runner};
use vae_wgpu::vae::tensor_file::{Array, TensorFile};

use crate::fixtures::{OracleCase, OracleTensor};
use crate::pass::Engine;

/// Compares results with the tensors of a case. A small set of fixtures omits the large tensors.
struct Shares<'a> {
    case: &'a OracleCase,
    /// Tensors compared, and the percent of the limit that each used.
    used: BTreeMap<String, f64>,
}

impl<'a> Shares<'a> {
    fn new(case: &'a OracleCase) -> Self {
        Self { case, used: BTreeMap::new() }
    }

    /// The share of its limit that each tensor used; an error if an output of the fixture was not compared.
    fn report(self) -> Result<String> {
        let outputs = self.case.tensors.iter().filter(|(_, tensor)| tensor.is_output());
        let missed: Vec<_> = outputs.map(|(name, _)| name).filter(|name| !self.used.contains_key(*name)).collect();
        ensure!(missed.is_empty() && !self.used.is_empty(), "not compared: {missed:?}");
        Ok(self.used.iter().map(|(name, share)| format!("{name} {share:.0} %")).collect::<Vec<_>>().join(", "))
    }

    /// Compares every element, within the tolerance of the fixture or, in double precision, `relative` of the largest.
    fn elements(&mut self, found: &[f32], name: &str, relative: Option<f64>) -> Result<()> {
        match self.case.tensors.get(name) {
            Some(expected) => self.elements_of(found, expected, name, relative),
            None => Ok(()),
        }
    }

    fn elements_of(&mut self, found: &[f32], expected: &OracleTensor, name: &str, relative: Option<f64>) -> Result<()> {
        ensure!(!found.is_empty() && found.len() == expected.data.len(), "{name}: {} numbers", found.len());
        let mut worst = 0.0f64;
        for (i, (&found, &want)) in found.iter().zip(&expected.data).enumerate() {
            let limit = match relative {
                Some(relative) => relative * (f64::from(want).abs() + expected.fact("max_abs")),
                None => expected.tolerance(),
            } + f64::from(f32::MIN_POSITIVE);
            let share = (f64::from(found) - f64::from(want)).abs() / limit;
            // Not `share > 1.0`, which NaN would pass.
            if !(share <= 1.0) {
                bail!("{name}[{i}]: {found:e} instead of {want:e}, {:.0} % of the limit {limit:e}", 100.0 * share);
            }
            worst = worst.max(share);
        }
        self.used.insert(name.to_owned(), 100.0 * worst);
        Ok(())
    }

    /// Compares a tensor after several steps: its L2 distance, relative to the size of its update.
    fn update(&mut self, found: &[f32], name: &str) -> Result<()> {
        let Some(expected) = self.case.tensors.get(name) else { return Ok(()) };
        ensure!(!found.is_empty() && found.len() == expected.data.len(), "{name}: {} numbers", found.len());
        let squares = found.iter().zip(&expected.data).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
        let distance = squares.sum::<f64>().sqrt();
        let limit = (8.0 * expected.fact("f32_update_err_l2")).max(1e-3 * expected.fact("update_l2")).max(1e-6);
        if !(distance <= limit) {
            bail!("{name}: {distance:e} away in l2, {:.0} % of the limit {limit:e}", 100.0 * distance / limit);
        }
        self.used.insert(name.to_owned(), 100.0 * distance / limit);
        Ok(())
    }
}

fn executor(engine: Engine<'_>, gpu: Option<&Arc<vae_wgpu::runtime::gpu::Gpu>>) -> Result<Box<dyn Executor>> {
    Ok(match (engine, gpu) {
        (Engine::F64, _) => Box::new(CpuExecutor::<f64>::new()),
        (Engine::F32, _) => Box::new(CpuExecutor::<f32>::new()),
        (Engine::Gpu(_), Some(gpu)) => Box::new(GpuExecutor::new(Arc::clone(gpu), &Options::default())?),
        (Engine::Gpu(_), None) => bail!("no adapter"),
    })
}

/// Double precision runs the unfused graph, the other engines the fused one.
fn fuses(engine: Engine<'_>) -> bool {
    !matches!(engine, Engine::F64)
}

/// The tensors of an arena from the fixture, by `prefix` and name.
fn tensors(case: &OracleCase, graph: &Graph, arena: Arena, prefix: &str) -> Result<Vec<Vec<f32>>> {
    graph.tensors(arena).iter().map(|t| Ok(case.tensor(&format!("{prefix}{}", t.name))?.data.clone())).collect()
}

fn norm(name: &str) -> Result<Norm> {
    Ok(name.parse()?)
}

/// Compares a block: forward, all gradients, running statistics.
pub(crate) fn block(
    case: &OracleCase,
    engine: Engine<'_>,
    gpu: Option<&Arc<vae_wgpu::runtime::gpu::Gpu>>,
) -> Result<String> {
    let text = |name: &str| Ok::<_, anyhow::Error>(case.attr(name)?.as_str().context("not a text")?.to_owned());
    let scale = match text("scale")?.as_str() {
        "same" => Scale::Same,
        "down" => Scale::Down,
        "up" => Scale::Up,
        other => bail!("no scale `{other}`"),
    };
    let (n, c, out, size) = (case.size("batch")?, case.size("in_c")?, case.size("out_c")?, case.size("height")?);
    let mut b = Builder::new();
    let x = b.input("x", Spec::nhwc(Shape::new(n, c, size, size)))?;
    let y = residual_block(&mut b, x, out, scale, norm(&text("norm")?)?, true)?;
    let shape = b.shape(y);
    let dy = b.input("dy", Spec::nhwc(shape))?;
    let graph = b.output("y", y).build();
    let graph = if fuses(engine) { graph.fused()? } else { graph };
    let graph = graph.with_gradients(&[Root::Seeded(y, dy)], &["x"])?;
    let mut exec = executor(engine, gpu)?;
    let program = exec.add(graph.clone())?;
    for arena in [Arena::Params, Arena::States] {
        exec.upload(arena, &tensors(case, &graph, arena, "param/")?)?;
    }
    exec.write(exec.input(program, "x")?, Data::F32(&case.tensor("x")?.data))?;
    exec.write(exec.input(program, "dy")?, Data::F32(&case.tensor("dy")?.data))?;
    exec.run(program, &[])?;
    let tight = matches!(engine, Engine::F64).then_some(2e-7);
    let mut shares = Shares::new(case);
    for name in ["y", "dx"] {
        shares.elements(&exec.read(exec.output(program, name)?)?, name, tight)?;
    }
    let grads = exec.download(Arena::Grads)?;
    for (i, (param, grad)) in graph.params().iter().zip(&grads).enumerate() {
        let name = format!("grad/{}", param.name);
        if graph.zero_grad_params().contains(&i) {
            ensure!(grad.iter().all(|g| *g == 0.0), "{name} is not left alone");
        }
        // A gradient that is zero in theory is rounding noise in the fixture.
        let tight = tight.filter(|_| !graph.zero_grad_params().contains(&i));
        shares.elements(grad, &name, tight)?;
    }
    for (state, found) in graph.states().iter().zip(exec.download(Arena::States)?) {
        let name = format!("after/{}", state.name);
        let mut expected = case.tensor(&name)?.clone();
        if let Some(norm) = state.name.strip_suffix(".running_mean") {
            // A mean that cancels has the rounding error of its terms. PyTorch's CPU kernel sums in double precision, so the error
            // in the fixture does not include it.
            let variance = |prefix: &str| case.tensor(&format!("{prefix}/{norm}.running_var"));
            let (before, after) = (variance("param")?, variance("after")?);
            let batch = after.data.iter().zip(&before.data).map(|(a, b)| (a - 0.9 * b) / 0.1).fold(0.0, f32::max);
            expected.raise_scale(0.1 * f64::from(batch).sqrt());
        }
        shares.elements_of(&found, &expected, &name, tight)?;
    }
    shares.report()
}

/// Compares a model: the first step in detail, five training steps, evaluation.
pub(crate) fn model(
    case: &OracleCase,
    engine: Engine<'_>,
    gpu: Option<&Arc<vae_wgpu::runtime::gpu::Gpu>>,
) -> Result<String> {
    let config = config(case)?;
    let (batch, steps) = (case.size("batch")?, case.size("steps")?);
    let weight_decay = case.number("weight_decay")?;
    let rates: Vec<f64> = serde_json::from_value(case.manifest["lr_per_step"].clone())?;
    ensure!(rates.len() == steps && steps > 0, "{} learning rates for {steps} steps", rates.len());

    let build = |mode| if fuses(engine) { config.fused_graph(batch, mode) } else { config.graph(batch, mode) };
    let mut graph = build(Mode::Train)?;
    let mut modules: BTreeMap<String, ValueId> = BTreeMap::new();
    for name in case.tensors.keys().filter_map(|name| name.strip_prefix("act1/")) {
        let value = graph.value_named(&format!("{name}.y")).or_else(|| graph.value_named(&format!("{name}.add.y")));
        let value = value.with_context(|| format!("no module {name}"))?;
        // Fusion removes the values between a norm and its convolution.
        if !fuses(engine) || graph.nodes().iter().any(|node| node.writes.contains(&value)) {
            modules.insert(name.to_owned(), value);
        }
    }
    for (name, value) in &modules {
        graph = graph.with_output(name, *value);
    }
    let images = images(case)?;
    let eps: Vec<&[f32]> = case.tensor("eps")?.data.chunks_exact(batch * config.latent_dim).collect();
    ensure!(eps.len() == steps, "noise for {} steps", eps.len());

    let mut exec = executor(engine, gpu)?;
    let program = exec.add(graph.clone())?;
    let evaluation = exec.add(build(Mode::Evaluate)?)?;
    let starts = [Arena::Params, Arena::States].map(|r| (r, tensors(case, &graph, r, "init/")));
    for (arena, tensors) in &starts {
        exec.upload(*arena, tensors.as_ref().map_err(|e| anyhow::anyhow!("{e:#}"))?)?;
    }
    let scalars = |step: usize| {
        let (bias_correction1, bias_correction2) = AdamConfig::default().bias_corrections(step as u64);
        let lr = rates.get(step).copied().unwrap_or_default() as f32;
        StepScalars { lr, bias_correction1, bias_correction2, weight_decay: weight_decay as f32, clip: 0.0 }
    };
    let tight = matches!(engine, Engine::F64).then_some(5e-7);
    let mut shares = Shares::new(case);
    let mut losses = Vec::new();
    for (step, eps) in eps.iter().enumerate() {
        exec.write(exec.input(program, "images")?, Data::U8(&images))?;
        exec.write(exec.input(program, "eps")?, Data::F32(eps))?;
        exec.write(exec.input(program, "objective")?, Data::F32(&[1.0, 0.0]))?;
        exec.write(exec.input(program, "hyperparams")?, Data::F32(&scalars(step).to_array()))?;
        exec.run(program, &[exec.output(program, "terms")?])?;
        let report = exec.reports(true)?.pop().context("no report")?;
        losses.extend(report.values.iter().flat_map(|terms| terms[..3].to_vec()));
        if step > 0 {
            continue;
        }
        let (mu, log_std) = halves(&exec.read(exec.output(program, "h")?)?, config.latent_dim);
        shares.elements(&mu, "mu1", tight)?;
        shares.elements(&log_std, "log_std1", tight)?;
        shares.elements(&exec.read(exec.output(program, "mean")?)?, "mu_x1", tight)?;
        for name in modules.keys() {
            let name_in_file = format!("act1/{name}");
            shares.elements(&exec.read(exec.output(program, name)?)?, &name_in_file, tight)?;
        }
        for (i, (param, grad)) in graph.params().iter().zip(exec.download(Arena::Grads)?).enumerate() {
            let name = format!("grad1/{}", param.name);
            if graph.zero_grad_params().contains(&i) {
                ensure!(grad.iter().all(|g| *g == 0.0), "{name} is not left alone");
            }
            shares.elements(&grad, &name, tight)?;
        }
    }
    shares.elements(&losses, "losses", None)?;
    zero_grad_params(case, &graph)?;
    for arena in [Arena::Params, Arena::States] {
        for (tensor, found) in graph.tensors(arena).iter().zip(exec.download(arena)?) {
            let name = format!("final/{}", tensor.name);
            shares.update(&found, &name)?;
        }
    }
    exec.write(exec.input(evaluation, "images")?, Data::U8(&images))?;
    exec.write(exec.input(evaluation, "eps")?, Data::F32(eps[0]))?;
    exec.write(exec.input(evaluation, "objective")?, Data::F32(&[1.0, 0.0]))?;
    exec.run(evaluation, &[])?;
    let (mu, log_std) = halves(&exec.read(exec.output(evaluation, "h")?)?, config.latent_dim);
    shares.elements(&mu, "eval_mu", None)?;
    shares.elements(&log_std, "eval_log_std", None)?;
    shares.elements(&exec.read(exec.output(evaluation, "mean")?)?, "eval_mu_x", None)?;
    shares.elements(&exec.read(exec.output(evaluation, "terms")?)?[..3], "eval_losses", None)?;

    if let (Engine::Gpu(_), Some(gpu)) = (engine, gpu) {
        // The runner of `train` gives the same bits.
        let mut runner =
            Runner::new(config, &[(batch, Mode::Train)], &Device::Gpu(Arc::clone(gpu)), &Options::default())?;
        for (arena, tensors) in &starts {
            runner.upload(*arena, tensors.as_ref().map_err(|e| anyhow::anyhow!("{e:#}"))?)?;
        }
        for (eps, lr) in eps.iter().zip(&rates) {
            let hyper = Hyperparams { lr: *lr, weight_decay, ..Hyperparams::default() };
            runner.train_with_noise(&images, eps, &hyper)?;
        }
        let reports = runner.reports(true)?;
        let by_runner: Vec<f32> = reports.iter().flat_map(|r| [r.total, r.recon, r.kl]).collect();
        ensure!(by_runner == losses, "the runner's losses differ: {by_runner:?} and {losses:?}");
        ensure!(runner.download(Arena::Params)? == exec.download(Arena::Params)?, "the runner's weights differ");
    }
    shares.report()
}

fn config(case: &OracleCase) -> Result<VaeConfig> {
    let attr = |name: &str| case.attr("config")?.get(name).with_context(|| format!("config without {name}"));
    let size = |name: &str| Ok::<_, anyhow::Error>(attr(name)?.as_u64().context("not a size")? as usize);
    Ok(VaeConfig {
        channels: size("stem")?,
        blocks: size("blocks_per_group")?,
        groups: size("groups")?,
        latent_dim: size("latent")?,
        norm: norm(attr("norm")?.as_str().context("not a text")?)?,
        image_size: size("image")?,
        image_channels: size("channels")?,
        head: Head::Pool,
        likelihood: Likelihood::Unit,
        classes: 0,
    })
}

fn images(case: &OracleCase) -> Result<Vec<u8>> {
    Ok(case.tensor("x")?.data.iter().map(|x| ((x + 1.0) * 127.5).round() as u8).collect())
}

/// The weights of a model whose outputs in evaluation the fixture has, and those outputs: mu, log_std and, if the fixture has it, the
/// decoded mean. `None` if it has none: in a small set the large tensors are left out. Without running statistics the first training step
/// evaluates too.
pub(crate) fn evaluated(case: &OracleCase) -> Option<(&'static str, [&'static str; 3])> {
    if case.tensors.contains_key("eval_mu") {
        return Some(("final/", ["eval_mu", "eval_log_std", "eval_mu_x"]));
    }
    let running = case.tensors.keys().any(|name| name.ends_with(".running_mean"));
    (!running).then_some(("init/", ["mu1", "log_std1", "mu_x1"]))
}

/// PyTorch's weights under the names of pi-tau/vae, in a file without configuration, are the model that they were: its reconstructions are
/// PyTorch's.
pub(crate) fn seed_names(case: &OracleCase) -> Result<String> {
    let (prefix, [mu, log_std, mean]) = evaluated(case).context("no outputs of an evaluation")?;
    let config = config(case)?;
    let mut file = TensorFile::default();
    for (name, tensor) in &case.tensors {
        let Some(name) = name.strip_prefix(prefix) else { continue };
        let theirs =
            names::to_seed(name, config.groups, config.blocks).with_context(|| format!("no name for {name}"))?;
        file.tensors.insert(theirs, Array { dims: tensor.shape()?, data: tensor.data.clone() });
    }
    let path = Path::new("seed.safetensors");
    let model = Model::from_bytes(&file.to_bytes(path)?, path.to_owned())?;
    ensure!(model.config == config, "{:?}", model.config);
    let batch = case.size("batch")?;
    let work = [(Mode::Encode, batch), (Mode::Decode, batch)];
    let mut trained = model.on(&Device::Cpu, &Options::default(), batch, &work)?;
    let h = trained.encode(&images(case)?)?;
    let eps = &case.tensor("eps")?.data[..batch * config.latent_dim];
    let decoded = trained.decode(&draws(&h, eps, config.latent_dim))?;
    let mut shares = Shares::new(case);
    let halves = halves(&h, config.latent_dim);
    for (found, name) in [(&halves.0, mu), (&halves.1, log_std), (&decoded, mean)] {
        shares.elements(found, name, None)?;
    }
    ensure!(shares.used.len() >= 2, "compared: {:?}", shares.used);
    Ok(format!("{:?}", shares.used))
}

/// The parameters without gradient are those whose gradient is zero in PyTorch.
fn zero_grad_params(case: &OracleCase, graph: &Graph) -> Result<()> {
    let mut expected: Vec<String> = serde_json::from_value(case.manifest["null_gradient_params"].clone())?;
    let mut found: Vec<String> = graph.zero_grad_params().iter().map(|&i| graph.params()[i].name.clone()).collect();
    expected.sort();
    found.sort();
    ensure!(found == expected, "left alone: {found:?} instead of {expected:?}");
    Ok(())
}

fn halves(h: &[f32], latent: usize) -> (Vec<f32>, Vec<f32>) {
    let rows = || h.chunks_exact(2 * latent);
    (rows().flat_map(|r| r[..latent].to_vec()).collect(), rows().flat_map(|r| r[latent..].to_vec()).collect())
}
