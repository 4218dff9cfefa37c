//! Compares every operation with PyTorch: the reference in both precisions, and the kernels in all variants.
//!
//! In double precision the reference must reproduce PyTorch's double-precision results to the rounding of the stored float32 values.
//! Single precision has the tolerance of the fixture. Each line shows the largest share of its limit that a tensor used.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use libtest_mimic::Failed;
use vae_wgpu::runtime::gpu::Gpu;
use vae_wgpu::runtime::op::{
    Adam, AdamConfig, BatchNorm, BatchNormConfig, Conv, Elbo, ElboConfig, GlobalAvgPool, Likelihood, Op, Pass,
    PositionNorm, PositionNormConfig, Relu, Reparameterize, Upsample,
};
use vae_wgpu::runtime::tensor::Shape;

use crate::fixtures::{self, OracleCase, OracleTensor};
use crate::harness::{Setup, Suite};
use crate::parity_graphs as graphs;
use crate::pass::{Engine, Values};

/// The rounds of a fixture: all passes of the operation, once or, for an optimizer, several times.
struct Plan {
    op: Box<dyn Op>,
    rounds: Vec<Round>,
}

/// Operands set before a round, and its expected results.
#[derive(Default)]
struct Round {
    set: Values,
    expect: Vec<Expect>,
}

/// From an operand to a fixture's tensor.
type Map = Box<dyn Fn(&[f64]) -> Vec<f64>>;

/// A tensor of the fixture as a function of one operand.
struct Expect {
    tensor: String,
    operand: &'static str,
    map: Map,
    /// The size of the values whose difference the tensor is, because single precision has their rounding error.
    scale: f64,
}

impl Round {
    fn set(&mut self, operand: &str, value: impl IntoIterator<Item = f32>) {
        self.set.insert(operand.to_owned(), value.into_iter().map(f64::from).collect());
    }

    fn expect(&mut self, tensor: impl Into<String>, operand: &'static str) {
        self.expect_map(tensor, operand, <[f64]>::to_vec);
    }

    fn expect_map(
        &mut self,
        tensor: impl Into<String>,
        operand: &'static str,
        map: impl Fn(&[f64]) -> Vec<f64> + 'static,
    ) {
        self.expect.push(Expect { tensor: tensor.into(), operand, map: Box::new(map), scale: 0.0 });
    }

    /// Sets the scale of the last expectation.
    fn scale(&mut self, scale: f32) {
        if let Some(expect) = self.expect.last_mut() {
            expect.scale = f64::from(scale);
        }
    }
}

impl Plan {
    /// One round with operands that have the same names in the fixture.
    fn simple(case: &OracleCase, op: impl Op + 'static, set: &[&str], expect: &[&'static str]) -> Result<Self> {
        let mut round = Round::default();
        for name in set {
            round.set(name, case.tensor(name)?.data.iter().copied());
        }
        for name in expect {
            round.expect(*name, name);
        }
        Ok(Self { op: Box::new(op), rounds: vec![round] })
    }

    fn of(case: &OracleCase) -> Result<Self> {
        let layer = ["x", "weight", "bias", "dy"];
        let layer_results = ["y", "dx", "dweight", "dbias"];
        match case.op.as_str() {
            "conv2d" => {
                let op = Conv::conv2d(
                    picture(case, "in_c")?,
                    case.size("out_c")?,
                    case.size("kernel")?,
                    case.size("stride")?,
                    case.size("padding")?,
                )?;
                Self::simple(case, op, &layer, &layer_results)
            }
            "conv_transpose2d" => {
                let op = Conv::conv_transpose2d(
                    picture(case, "in_c")?,
                    case.size("out_c")?,
                    case.size("kernel")?,
                    case.size("stride")?,
                    case.size("padding")?,
                )?;
                Self::simple(case, op, &layer, &layer_results)
            }
            "linear" => {
                let row =
                    |features| Ok::<_, anyhow::Error>(Shape::new(case.size("batch")?, case.size(features)?, 1, 1));
                Self::simple(case, Conv::linear(row("in_f")?, row("out_f")?)?, &layer, &layer_results)
            }
            "batch_norm_train" | "batch_norm_eval" => Self::batch_norm(case),
            "position_norm" => {
                let config = PositionNormConfig { eps: case.number("eps")?, relu: false };
                let op = PositionNorm::new(picture(case, "channels")?, config)?;
                Self::simple(case, op, &layer, &layer_results)
            }
            "relu" => {
                let mut sizes = [1; 4];
                for (size, n) in sizes.iter_mut().zip(case.numbers("shape")?) {
                    *size = n as usize;
                }
                let [n, c, h, w] = sizes;
                Self::simple(case, Relu::new(Shape::new(n, c, h, w))?, &["x", "dy"], &["y", "dx"])
            }
            "upsample_nearest2x" => {
                Self::simple(case, Upsample::new(picture(case, "channels")?)?, &["x", "dy"], &["y", "dx"])
            }
            "global_avg_pool" => {
                Self::simple(case, GlobalAvgPool::new(picture(case, "channels")?)?, &["x", "dy"], &["y", "dx"])
            }
            "reparameterize" => {
                let (n, latent) = (case.size("batch")?, case.size("latent")?);
                let op = Reparameterize::new(Shape::new(n, 2 * latent, 1, 1), Shape::new(n, latent, 1, 1))?;
                let mut plan = Self::simple(case, op, &["eps", "dz"], &["z"])?;
                plan.latent_operand(case, latent, Some("dh"))?;
                Ok(plan)
            }
            "vae_loss" => {
                let (x, latent) = (picture(case, "channels")?, case.size("latent")?);
                let optimal = case.attr("likelihood").is_ok_and(|kind| kind == "optimal");
                let likelihood = if optimal { Likelihood::Optimal } else { Likelihood::Unit };
                let variance = case.number("variance").ok();
                let config = ElboConfig { likelihood, training: variance.is_none() };
                let op = Elbo::new(x, x, Shape::new(x.n, 2 * latent, 1, 1), config)?;
                let mut plan = Self::simple(case, op, &["x"], &[])?;
                plan.latent_operand(case, latent, config.training.then_some("dh"))?;
                let round = &mut plan.rounds[0];
                if optimal {
                    round.set("variance", [variance.unwrap_or(1.0) as f32]);
                }
                round.set("mean", case.tensor("mu_x")?.data.iter().copied());
                let [beta, free] =
                    [("beta", 1.0), ("free_bits", 0.0)].map(|(name, usual)| case.number(name).unwrap_or(usual));
                round.set("objective", [beta as f32, free as f32]);
                for (i, name) in ["total", "recon", "kl"].into_iter().enumerate() {
                    round.expect_map(name, "terms", move |terms| vec![terms[i]]);
                }
                if config.training {
                    round.expect("dmu_x", "dmean");
                }
                Ok(plan)
            }
            "adamw" => Self::adamw(case),
            other => bail!("no operation `{other}`"),
        }
    }

    fn batch_norm(case: &OracleCase) -> Result<Self> {
        let (x, eps, training) = (picture(case, "channels")?, case.number("eps")?, case.op == "batch_norm_train");
        let momentum = if training { case.number("momentum")? } else { 0.1 };
        let op = BatchNorm::new(x, BatchNormConfig { eps, momentum, training, relu: false })?;
        let operands = ["x", "weight", "bias", "running_mean", "running_var", "dy"];
        let mut plan = Self::simple(case, op, &operands, &["y", "dx", "dweight", "dbias"])?;
        if training {
            let round = &mut plan.rounds[0];
            round.expect("running_mean_after", "running_mean");
            round.expect("running_var_after", "running_var");
            // Rows of `stats`: shift, mean - shift, 1 / sqrt(var + eps).
            let row = move |stats: &[f64], i: usize| stats[i * x.c..(i + 1) * x.c].to_vec();
            round.expect_map("batch_mean", "stats", move |stats| {
                row(stats, 0).iter().zip(row(stats, 1)).map(|(shift, rest)| shift + rest).collect()
            });
            round.scale(case.tensor("x")?.data.iter().fold(0.0, |max, x| x.abs().max(max)));
            round.expect_map("batch_var", "stats", move |stats| {
                row(stats, 2).iter().map(|rstd| 1.0 / (rstd * rstd) - eps).collect()
            });
            round.scale((case.tensor("batch_var")?.fact("max_abs") + eps) as f32);
        }
        Ok(plan)
    }

    fn adamw(case: &OracleCase) -> Result<Self> {
        let (n, betas) = (case.size("n")?, case.numbers("betas")?);
        let config = AdamConfig { beta1: betas[0], beta2: betas[1], eps: case.number("eps")? };
        let grads = &case.tensor("grads")?.data;
        let mut rounds = Vec::new();
        for (i, (lr, grads)) in case.numbers("lr")?.into_iter().zip(grads.chunks_exact(n)).enumerate() {
            let mut round = Round::default();
            if i == 0 {
                round.set("params", case.tensor("param")?.data.iter().copied());
                round.set("m", vec![0.0; n]);
                round.set("v", vec![0.0; n]);
            }
            round.set("grads", grads.iter().copied());
            round.set("norm", [1.0, 1.0, 0.0, 0.0]);
            // In double precision, for the double-precision reference.
            let corrections = [config.beta1, config.beta2].map(|beta| 1.0 - beta.powi(i as i32 + 1));
            let hyperparams = vec![lr, corrections[0], corrections[1], case.number("weight_decay")?, 0.0];
            round.set.insert("hyperparams".to_owned(), hyperparams);
            for (tensor, operand) in [("param", "params"), ("exp_avg", "m"), ("exp_avg_sq", "v")] {
                round.expect(format!("{tensor}_after{}", i + 1), operand);
            }
            rounds.push(round);
        }
        Ok(Self { op: Box::new(Adam::new(n, config)?), rounds })
    }

    /// `h` is PyTorch's mu and log_std side by side, and so is its gradient, if there is one.
    fn latent_operand(&mut self, case: &OracleCase, latent: usize, gradient: Option<&'static str>) -> Result<()> {
        let (mu, log_std) = (&case.tensor("mu")?.data, &case.tensor("log_std")?.data);
        let rows = mu.chunks_exact(latent).zip(log_std.chunks_exact(latent));
        let round = &mut self.rounds[0];
        round.set("h", rows.flat_map(|(mu, log_std)| [mu, log_std].concat()));
        let Some(gradient) = gradient else { return Ok(()) };
        for (name, half) in [("dmu", 0), ("dlog_std", 1)] {
            let columns = half * latent..(half + 1) * latent;
            round.expect_map(name, gradient, move |dh| {
                dh.chunks_exact(2 * latent).flat_map(|row| row[columns.clone()].to_vec()).collect()
            });
        }
        Ok(())
    }

    /// Runs and compares all rounds; returns the share of its limit that each tensor used.
    fn run(&self, case: &OracleCase, engine: Engine<'_>) -> Result<String> {
        let mut report = Vec::new();
        let mut values = Values::new();
        let passes = self.op.passes();
        for round in &self.rounds {
            values.extend(round.set.clone());
            let mut met = 0;
            for pass in passes.iter() {
                let mut first = None;
                let variants = engine.variants(&*self.op, pass.name);
                for &variant in &variants {
                    let mut after = values.clone();
                    engine.run(&*self.op, pass, variant, &mut after)?;
                    let aliases = passes.aliases.iter().filter(|(_, of)| pass.writes.contains(of));
                    for (gradient, of) in aliases.clone() {
                        after.insert(gradient.to_string(), after[&of.to_string()].clone());
                    }
                    let written = |operand| {
                        touches(pass, operand) || aliases.clone().any(|(gradient, _)| gradient.to_string() == operand)
                    };
                    for expect in round.expect.iter().filter(|e| written(e.operand)) {
                        let result = (expect.map)(&after[expect.operand]);
                        let share = compare(&result, case.tensor(&expect.tensor)?, expect.scale, engine)
                            .with_context(|| format!("{} of {}.{variant}", expect.tensor, pass.name))?;
                        let by = if variants.len() > 1 { format!("[{variant}]") } else { String::new() };
                        report.push(format!("{}{by} {:.0} %", expect.tensor, 100.0 * share));
                        met += usize::from(first.is_none());
                    }
                    first.get_or_insert(after);
                }
                values = first.context("a pass without variants")?;
            }
            if met != round.expect.len() {
                bail!("{met} of {} tensors were produced", round.expect.len());
            }
        }
        Ok(report.join(", "))
    }
}

fn touches(pass: &Pass, operand: &str) -> bool {
    pass.writes.iter().chain(&pass.updates).any(|arg| arg.to_string() == operand)
}

fn picture(case: &OracleCase, channels: &str) -> Result<Shape> {
    Ok(Shape::new(case.size("batch")?, case.size(channels)?, case.size("height")?, case.size("width")?))
}

/// The largest share of its limit that an element uses; an error if it exceeds 1.
fn compare(found: &[f64], expected: &OracleTensor, scale: f64, engine: Engine<'_>) -> Result<f64> {
    if found.is_empty() || found.len() != expected.data.len() {
        bail!("{} numbers instead of {}", found.len(), expected.data.len());
    }
    let mut worst = 0.0;
    for (i, (&found, &expected_at)) in found.iter().zip(&expected.data).enumerate() {
        let want = f64::from(expected_at);
        let limit = match engine {
            // Half a unit in the last place of float32, plus rounding in double precision.
            Engine::F64 => want.abs() / 16_777_216.0 + 1e-9 * expected.fact("max_abs") + f64::MIN_POSITIVE,
            Engine::F32 | Engine::Gpu(_) => expected.tolerance().max(4e-7 * scale) + f64::MIN_POSITIVE,
        };
        let share = (found - want).abs() / limit;
        // Not `share > 1.0`, which NaN would pass.
        if !(share <= 1.0) {
            bail!("[{i}]: {found:e} instead of {want:e}, {:.0} % of the limit {limit:e}", 100.0 * share);
        }
        worst = share.max(worst);
    }
    Ok(worst)
}

fn run(case: &OracleCase, engine: Engine<'_>, gpu: Option<&Arc<Gpu>>) -> Result<String> {
    match (case.kind.as_str(), case.op.as_str()) {
        ("model", _) => graphs::model(case, engine, gpu),
        (_, "block") => graphs::block(case, engine, gpu),
        _ => Plan::of(case)?.run(case, engine),
    }
}

/// Prints the share of its limit that each tensor used.
fn report(name: &str, case: &OracleCase, result: Result<String>) -> Result<(), Failed> {
    match result {
        Ok(report) => {
            println!("{name}: {report}");
            Ok(())
        }
        Err(error) => Err(format!("{} {}: {error:#}", case.op, case.manifest["attrs"]).into()),
    }
}

pub(crate) fn register(tests: &mut Suite) -> Result<()> {
    let folder = fixtures::folder();
    let cases = fixtures::load(&folder)?;
    eprintln!("fixtures: {}", folder.display());
    for case in cases {
        let case = Arc::new(case);
        let family = if case.kind == "model" { "model" } else { &case.op };
        let name = |engine: &str| format!("{family}/{} {engine}", case.name);
        if case.kind == "model" && graphs::evaluated(&case).is_some() {
            let inner = Arc::clone(&case);
            let seed = name("seed_names");
            tests.add(name("seed_names"), move || report(&seed, &inner, graphs::seed_names(&inner)));
        }
        let inner = Arc::clone(&case);
        let name_f64 = name("f64");
        tests.add(name("f64"), move || report(&name_f64, &inner, run(&inner, Engine::F64, None)));
        let inner = Arc::clone(&case);
        let name_f32 = name("f32");
        tests.add(name("f32"), move || report(&name_f32, &inner, run(&inner, Engine::F32, None)));
        let inner = Arc::clone(&case);
        let name_gpu = name("gpu");
        tests.on(Setup::Full, name("gpu"), move |gpu| {
            report(&name_gpu, &inner, run(&inner, Engine::Gpu(gpu), Some(gpu)))
        });
    }
    Ok(())
}
