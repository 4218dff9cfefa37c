//! The engine of the page, for its worker (`web/page/worker.js`): one object that holds device, data set and model.
//!
//! Requests come one at a time, so every method may borrow the whole engine until its promise resolves.

mod checks;
mod data;
mod explore;
mod fault;
mod message;
mod model;
mod settings;
mod training;

use std::sync::Arc;

use serde_json::json;
use vae_wgpu::prelude::{Device, Gpu, GpuOptions, Mode, PlanOptions};
use vae_wgpu::runtime::gpu::Compiled;
use vae_wgpu::runtime::tensor::rng::{self, Stream};
use vae_wgpu::vae::data::{self as images, Images};
use vae_wgpu::vae::inference::check_size;
use vae_wgpu::vae::runner::Labelled;
use vae_wgpu::vae::train::{Progress, Session};
use wasm_bindgen::prelude::*;
use web_time::Instant;

use crate::checks::Checks;
use crate::data::{DataSet, planes};
use crate::message::{decoded, json, object, pictures};
use crate::model::{FILE, InUse, Loaded};
use crate::training::Training;

pub use crate::fault::Fault;

/// Most pictures or latent vectors of a request.
const MOST: usize = 1024;
/// Seed of the samples that are drawn while a model trains: the same latent vectors each time.
const SAMPLE_SEED: u64 = 0;

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = console, js_name = error)]
    fn console_error(message: &str);

    /// That of the worker.
    #[wasm_bindgen(js_name = postMessage)]
    fn post_message(message: &JsValue);
}

/// Writes the place of a panic to the console; the worker sees only that the program has ended.
#[wasm_bindgen(start)]
fn start() {
    std::panic::set_hook(Box::new(|panic| console_error(&panic.to_string())));
}

/// Device, data set and model.
#[wasm_bindgen]
pub struct Engine {
    gpu: Arc<Gpu>,
    vendor: String,
    name: String,
    data: Option<DataSet>,
    model: Option<InUse>,
    /// Weights of the last download or file, for when the device is lost.
    kept: Option<Vec<u8>>,
    checks: Option<Checks>,
}

#[wasm_bindgen]
impl Engine {
    /// Opens the browser's GPU. `previous` is an engine whose device is lost: its data set and its weights are kept. `vendor` and `name`
    /// are those of the adapter.
    pub async fn open(previous: Option<Engine>, vendor: String, name: String) -> Result<Engine, Fault> {
        let (data, kept) = match previous {
            Some(mut engine) => {
                let kept = engine.kept_weights().await;
                (engine.data.take(), kept)
            }
            None => (None, None),
        };
        let mut gpu = Gpu::open_async(&GpuOptions::default()).await?;
        gpu.on_compiled(|_, Compiled { done, total }| {
            let [done, total] = [done, total].map(|count| (count as f64).into());
            post_message(&object([("event", "compiling".into()), ("done", done), ("total", total)]));
        });
        Ok(Self { gpu: Arc::new(gpu), vendor, name, data, model: None, kept, checks: None })
    }

    /// Describes the adapter.
    pub fn adapter(&self) -> Result<JsValue, Fault> {
        let info = self.gpu.adapter_info();
        let limit = |name| info.limits.get(name);
        let driver = [info.driver.as_str(), &info.driver_info].join(" ");
        let kind = if info.device_type == "cpu" { "software" } else { "gpu" };
        json(&json!({
            "adapter": {
                "name": self.name,
                "vendor": self.vendor,
                "driver": driver.trim(),
                "backend": info.backend,
                "kind": kind,
                "limits": {
                    "maxBufferSize": limit("max_buffer_size"),
                    "maxBindingSize": limit("max_storage_buffer_binding_size"),
                },
                "features": info.features,
            },
            "version": vae_wgpu::VERSION,
        }))
    }

    /// Returns why the device was lost, if it was.
    pub fn lost(&self) -> Option<String> {
        self.gpu.lost()
    }

    /// Uses the first `count` built-in shapes of a seed.
    pub fn use_shapes(&mut self, count: usize, seed: f64) -> Result<JsValue, Fault> {
        self.use_data(DataSet::shapes(count, seed as u64)?)
    }

    /// Uses pictures, whose description is JSON.
    pub fn use_pictures(&mut self, about: &str, rgba: &[u8]) -> Result<JsValue, Fault> {
        let about =
            serde_json::from_str(about).map_err(|error| Fault::invalid(format!("invalid pictures: {error}")))?;
        self.use_data(DataSet::pictures(about, rgba)?)
    }

    /// Uses CIFAR-10 or CIFAR-100 from the bytes of a file.
    pub fn use_cifar(&mut self, name: &str, bytes: &[u8]) -> Result<JsValue, Fault> {
        self.use_data(DataSet::cifar(name, bytes)?)
    }

    fn use_data(&mut self, data: DataSet) -> Result<JsValue, Fault> {
        let about = data.describe()?;
        self.data = Some(data);
        Ok(about)
    }

    /// Plans a run and returns what a step takes.
    pub fn forecast(&self, settings: &str) -> Result<JsValue, Fault> {
        let data = self.data()?;
        let settings = settings::parse(settings, data)?;
        let batch = settings.batch_size.min(data.train.len());
        let options = PlanOptions::default();
        let (graph, plan) = settings.model.plan(batch, Mode::Train, self.gpu.profile(), &options)?;
        json(&json!({
            "parameters": graph.parameter_count(),
            "memoryBytes": plan.memory.total(),
            "dispatches": plan.dispatches.len(),
            "stepFlops": graph.cost()?.flop,
            "stepsPerEpoch": data.train.len().div_ceil(settings.batch_size),
            "fits": true,
        }))
    }

    /// Puts a new model on the device, in place of the one before, and compiles all kernels of the run.
    pub async fn start(&mut self, settings: &str) -> Result<JsValue, Fault> {
        let settings = settings::parse(settings, self.data()?)?;
        self.reset();
        let data = self.data()?;
        let halves = [Arc::clone(&data.train), Arc::clone(&data.held_out)];
        let device = Device::Gpu(Arc::clone(&self.gpu));
        let options = PlanOptions::default();
        let mut session = Session::open(settings, halves, &explore::PROGRAMS, &device, &options).await?;
        let result = json(&json!({
            "parameters": session.runner().graph()?.parameter_count(),
            "stepsPerEpoch": session.steps_per_epoch(),
            "steps": session.steps(),
        }))?;
        self.model = Some(InUse::Training(Box::new(Training::new(session, self.data()?))));
        Ok(result)
    }

    /// Makes the next step of the run, or validates a batch, and returns an array of events.
    pub async fn advance(&mut self) -> Result<JsValue, Fault> {
        json(&self.training()?.advance().await?)
    }

    /// Waits for the steps on the device, for a pause, and returns an array of events.
    pub async fn settle(&mut self) -> Result<JsValue, Fault> {
        json(&self.training()?.settle().await?)
    }

    /// Continues after a pause or other work, whose time does not count for the speed.
    pub fn resume(&mut self) -> Result<(), Fault> {
        self.training().map(Training::restart)
    }

    /// Returns the number of steps of the run so far.
    pub fn step(&mut self) -> Result<f64, Fault> {
        self.training().map(|training| training.session.step() as f64)
    }

    /// Drops the model and its weights. The data set stays.
    pub fn reset(&mut self) {
        (self.model, self.kept) = (None, None);
    }

    /// Reconstructs the first `count` held-out pictures.
    pub async fn reconstruct(&mut self, count: usize) -> Result<JsValue, Fault> {
        let indices: Vec<u32> = (0..self.held_out()?.len().min(count.min(MOST)) as u32).collect();
        let (pixels, labels) = self.pixels(&indices)?;
        let size = self.held_out()?.size();
        let runner = self.in_use()?.runner();
        let means = explore::reconstruct(runner, Labelled { values: &pixels, labels: &labels }).await?;
        Ok(object([("originals", pictures(size, &pixels)), ("reconstructions", decoded(size, &means))]))
    }

    /// Decodes latent vectors from the prior, of all classes in turn.
    pub async fn sample(&mut self, count: usize, temperature: f32, seed: f64) -> Result<JsValue, Fault> {
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(Fault::invalid(format!("temperature {temperature}: expected a number from 0")));
        }
        let samples = self.samples(count, temperature, seed as u64).await?;
        Ok(object([("pictures", samples)]))
    }

    async fn samples(&mut self, count: usize, temperature: f32, seed: u64) -> Result<JsValue, Fault> {
        let count = count.min(MOST);
        let runner = self.in_use()?.runner();
        let (latent, classes) = (runner.config().latent_dim, runner.config().classes);
        let mut z = rng::normals(&mut rng::stream(seed, Stream::Sample, 0), count * latent);
        z.iter_mut().for_each(|z| *z *= temperature);
        let labels: Vec<u8> = (0..count).map(|i| (i * classes / count) as u8).collect();
        let means = explore::decode(runner, Labelled { values: &z, labels: &labels }).await?;
        Ok(decoded(self.picture_size()?, &means))
    }

    /// Returns reconstructions of held-out pictures, and samples, for the progress of training.
    pub async fn progress(&mut self) -> Result<JsValue, Fault> {
        let step = self.step()?;
        let event = self.reconstruct(explore::BATCH).await?;
        let samples = self.samples(explore::BATCH, 1.0, SAMPLE_SEED).await?;
        for (name, value) in [("event", "pictures".into()), ("step", step.into()), ("samples", samples)] {
            let _ = js_sys::Reflect::set(&event, &name.into(), &value);
        }
        self.resume()?;
        Ok(event)
    }

    /// Encodes a held-out picture.
    pub async fn encode_held_out(&mut self, index: usize) -> Result<JsValue, Fault> {
        let count = self.held_out()?.len();
        if index >= count {
            return Err(Fault::invalid(format!("picture {index} of {count}")));
        }
        let (pixels, labels) = self.pixels(&[index as u32])?;
        self.encode(&pixels, &labels).await
    }

    /// Encodes a picture of the visitor.
    pub async fn encode_picture(&mut self, rgba: &[u8], width: usize, height: usize) -> Result<JsValue, Fault> {
        let (c, h, w) = self.picture_size()?;
        if (height, width) != (h, w) || rgba.len() != 4 * h * w {
            return Err(Fault::invalid(format!("a picture of {width}x{height} pixels: the model takes {w}x{h}")));
        }
        let mut rgba = rgba.to_vec();
        if c == 1 {
            rgba.chunks_exact_mut(4).for_each(grey);
        }
        self.encode(&planes(&rgba, (c, h, w))?, &[]).await
    }

    async fn encode(&mut self, pixels: &[u8], labels: &[u8]) -> Result<JsValue, Fault> {
        let size = self.picture_size()?;
        let runner = self.in_use()?.runner();
        let latent = runner.config().latent_dim;
        let mut mean = explore::encode(runner, Labelled { values: pixels, labels }).await?;
        let std: Vec<f32> = mean.split_off(latent).into_iter().map(f32::exp).collect();
        let means = explore::decode(runner, Labelled { values: &mean, labels }).await?;
        Ok(object([
            ("mean", js_sys::Float32Array::from(mean.as_slice()).into()),
            ("std", js_sys::Float32Array::from(std.as_slice()).into()),
            ("picture", pictures(size, pixels)),
            ("reconstruction", decoded(size, &means)),
        ]))
    }

    /// Decodes latent vectors.
    pub async fn decode(&mut self, z: &[f32]) -> Result<JsValue, Fault> {
        let size = self.picture_size()?;
        let runner = self.in_use()?.runner();
        if z.len() > MOST * runner.config().latent_dim || !z.iter().all(|z| z.is_finite()) {
            return Err(Fault::invalid(format!("expected at most {MOST} latent vectors of finite numbers")));
        }
        let means = explore::decode(runner, Labelled { values: z, labels: &[] }).await?;
        Ok(object([("pictures", decoded(size, &means))]))
    }

    /// Returns the KL divergence of each latent dimension: over held-out pictures, or else that in the file of the model.
    pub async fn latent(&mut self) -> Result<JsValue, Fault> {
        let held_out = self.held_out();
        let of_file = match &self.model {
            Some(InUse::Loaded(loaded)) => loaded.kl_dims.clone(),
            _ => None,
        };
        let kl = match (held_out, of_file) {
            (Ok(images), _) => explore::kl_dims(self.in_use()?.runner(), images.as_ref()).await?,
            (Err(_), Some(kl)) => kl,
            (Err(fault), None) => return Err(fault),
        };
        let mut order: Vec<usize> = (0..kl.len()).collect();
        order.sort_by(|a, b| kl[*b].total_cmp(&kl[*a]));
        json(&json!({ "kl": kl, "order": order }))
    }

    /// Returns the weights as a file, also of a model whose device was lost.
    pub async fn weights(&mut self) -> Result<JsValue, Fault> {
        let bytes = match self.model.as_mut() {
            Some(model) => match model.weights().await {
                Ok(bytes) => bytes,
                Err(fault) => self.kept.clone().ok_or(fault)?,
            },
            None => self.kept.clone().ok_or_else(no_model)?,
        };
        let array = js_sys::Uint8Array::from(bytes.as_slice());
        self.kept = Some(bytes);
        Ok(object([("name", FILE.into()), ("bytes", array.buffer().into())]))
    }

    async fn kept_weights(&mut self) -> Option<Vec<u8>> {
        match self.model.as_mut() {
            Some(model) => model.weights().await.ok().or_else(|| self.kept.take()),
            None => self.kept.take(),
        }
    }

    /// Loads a trained model, in place of the one before.
    pub async fn load(&mut self, name: &str, bytes: &[u8]) -> Result<JsValue, Fault> {
        let device = Device::Gpu(Arc::clone(&self.gpu));
        let (loaded, about) = Loaded::open(name, bytes, &device).await?;
        self.reset();
        self.model = Some(InUse::Loaded(Box::new(loaded)));
        self.kept = Some(bytes.to_vec());
        Ok(about)
    }

    /// Starts to check kernels.
    pub fn start_checks(&mut self, filter: &str, browser: &str, date: &str) -> Result<(), Fault> {
        self.checks = Some(Checks::new(&self.gpu, filter, [browser, &self.name, date])?);
        Ok(())
    }

    /// Runs the next check and returns its event, or nothing if all have run.
    pub async fn next_check(&mut self) -> Result<Option<JsValue>, Fault> {
        match &mut self.checks {
            Some(checks) => checks.next(&self.gpu).await,
            None => Ok(None),
        }
    }

    /// Ends the checks and returns their report.
    pub fn finish_checks(&mut self) -> Result<JsValue, Fault> {
        self.checks.take().ok_or_else(|| Fault::internal("no check was started"))?.finish()
    }

    /// Trains on the CPU reference and returns the reports of the first `steps` steps, for tests.
    pub async fn reference(&self, settings: &str, steps: usize) -> Result<JsValue, Fault> {
        let data = self.data()?;
        let halves = [Arc::clone(&data.train), Arc::clone(&data.held_out)];
        let settings = settings::parse(settings, data)?;
        let mut session = Session::open(settings, halves, &[], &Device::Cpu, &PlanOptions::default()).await?;
        let mut losses = Vec::new();
        while losses.len() < steps {
            let Progress::Steps(reports) = session.advance().await? else { continue };
            losses.extend(reports.iter().map(
                |r| json!({ "total": r.total, "recon": r.recon, "kl": r.kl, "mse": r.mse, "gradNorm": r.grad_norm }),
            ));
        }
        losses.truncate(steps);
        json(&losses)
    }

    /// Returns the milliseconds that it takes to encode and submit each of `steps` further training steps, for a measurement.
    pub async fn encoding_times(&mut self, steps: usize) -> Result<JsValue, Fault> {
        let session = &mut self.training()?.session;
        let (hyper, batch) = (session.settings().hyperparams(0, 1), session.settings().batch_size);
        let runner = session.runner();
        let pixels = vec![128; runner.config().images(batch).len()];
        let mut times = Vec::new();
        for _ in 0..steps {
            let begun = Instant::now();
            runner.train(&pixels, &hyper)?;
            times.push(begun.elapsed().as_secs_f64() * 1e3);
            runner.reports_async(true).await?;
        }
        json(&times)
    }
}

impl Engine {
    fn data(&self) -> Result<&DataSet, Fault> {
        self.data.as_ref().ok_or_else(|| Fault::invalid("there is no data set: choose one first"))
    }

    fn in_use(&mut self) -> Result<&mut InUse, Fault> {
        self.model.as_mut().ok_or_else(no_model)
    }

    fn training(&mut self) -> Result<&mut Training, Fault> {
        match &mut self.model {
            Some(InUse::Training(training)) => Ok(training),
            _ => Err(Fault::invalid("no model is in training: start one first")),
        }
    }

    /// Returns the size of the pictures of the model.
    fn picture_size(&mut self) -> Result<(usize, usize, usize), Fault> {
        let config = self.in_use()?.runner().config();
        Ok((config.image_channels, config.image_size, config.image_size))
    }

    /// Returns the held-out pictures of the training run or, for a loaded model, of the data set, if they are of the size of the model.
    fn held_out(&mut self) -> Result<Arc<dyn Images>, Fault> {
        if let Some(InUse::Training(training)) = &self.model {
            return Ok(Arc::clone(&training.held_out));
        }
        self.in_use()?;
        let images = Arc::clone(&self.data()?.held_out);
        check_size(self.in_use()?.runner().config(), images.as_ref())?;
        Ok(images)
    }

    /// Returns held-out pictures and their classes, as far as the model knows them.
    fn pixels(&mut self, indices: &[u32]) -> Result<(Vec<u8>, Vec<u8>), Fault> {
        let held_out = self.held_out()?;
        let mut pixels = Vec::new();
        images::batch(held_out.as_ref(), indices, &mut pixels)?;
        let classes = self.in_use()?.runner().config().classes;
        let labels = images::labels(held_out.as_ref(), indices);
        Ok((pixels, if held_out.classes().len() == classes { labels } else { Vec::new() }))
    }
}

fn no_model() -> Fault {
    Fault::invalid("there is no model: train or load one first")
}

/// Makes an RGBA pixel grey, with the weights of ITU-R BT.601, as the native program does.
fn grey(pixel: &mut [u8]) {
    if let [r, g, b, ..] = pixel {
        let luma = ((299 * u32::from(*r) + 587 * u32::from(*g) + 114 * u32::from(*b) + 500) / 1000) as u8;
        (*r, *g, *b) = (luma, luma, luma);
    }
}
