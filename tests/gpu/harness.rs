//! Registers the tests of this program and lends each one a device.
//!
//! A software driver compiles the kernels of a device on one thread, so concurrent tests need devices of their own: a test borrows one
//! that no other test uses at the time, and the next test finds its pipelines compiled. Without an adapter, tests that need one are
//! reported as ignored; `VAE_WGPU_REQUIRE_GPU=1` turns that into a failure.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use vae_wgpu::app::check::CheckOutcome;
use vae_wgpu::runtime::gpu::testing::TestHooks;
use vae_wgpu::runtime::gpu::{AdapterInfo, Gpu, Options};
use vae_wgpu::runtime::kernel::{DeviceKind, Profile};

/// How a borrowed device is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Setup {
    /// The adapter with all that it offers.
    Full,
    /// The adapter with grids that fold beyond seven workgroups.
    Folded,
    /// WebGPU's default limits, no optional feature, and grids that fold beyond seven workgroups.
    FoldedDefaults,
    /// The adapter as if it were a GPU.
    AsGpu,
    /// Subgroups that are taken to have this size.
    Subgroups(u32),
}

impl Setup {
    fn options(self) -> Options {
        let (webgpu_defaults, hooks) = match self {
            Self::Full => (false, TestHooks::default()),
            Self::Folded => (false, TestHooks { max_workgroups: Some(7), ..TestHooks::default() }),
            Self::FoldedDefaults => (true, TestHooks { max_workgroups: Some(7), ..TestHooks::default() }),
            Self::AsGpu => (false, TestHooks { kind: Some(DeviceKind::Gpu), ..TestHooks::default() }),
            Self::Subgroups(size) => (false, TestHooks { subgroup: Some((size, size)), ..TestHooks::default() }),
        };
        Options { webgpu_defaults, hooks, ..Options::default() }
    }
}

/// Whether to run what an ordinary run leaves out, because a software driver takes long to compile it.
pub(crate) fn everything() -> bool {
    std::env::var("VAE_WGPU_ALL").is_ok_and(|all| all == "1")
}

/// Pipelines after which a device is closed: a driver keeps some megabytes for each.
const MAX_PIPELINES: usize = 100;

/// The devices that no test is using.
#[derive(Default)]
struct Pool {
    idle: Mutex<BTreeMap<Setup, Vec<Arc<Gpu>>>>,
    opening: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    fn borrow(self: &Arc<Self>, setup: Setup) -> vae_wgpu::Result<Lease> {
        let idle = lock(&self.idle).get_mut(&setup).and_then(Vec::pop);
        let gpu = match idle {
            Some(gpu) => gpu,
            None => {
                let _one_at_a_time = lock(&self.opening);
                Arc::new(Gpu::open(&setup.options())?)
            }
        };
        Ok(Lease { gpu, setup, pool: Arc::clone(self) })
    }
}

/// A device until the test ends. It goes back to the pool unless the test panicked, kept it, or filled it with pipelines.
pub(crate) struct Lease {
    gpu: Arc<Gpu>,
    setup: Setup,
    pool: Arc<Pool>,
}

impl Deref for Lease {
    type Target = Arc<Gpu>;
    fn deref(&self) -> &Arc<Gpu> {
        &self.gpu
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let full = self.gpu.live_objects().compute_pipelines > MAX_PIPELINES;
        if !std::thread::panicking() && Arc::strong_count(&self.gpu) == 1 && !full {
            lock(&self.pool.idle).entry(self.setup).or_default().push(Arc::clone(&self.gpu));
        }
    }
}

/// Module, name and time of each test that ran.
type Times = Arc<Mutex<Vec<(&'static str, String, Duration)>>>;

/// Tests that take longer are listed at the end.
const SLOW: Duration = Duration::from_secs(5);

/// All tests of this program.
pub(crate) struct Suite {
    adapter: Option<AdapterInfo>,
    pool: Arc<Pool>,
    trials: Vec<Trial>,
    module: &'static str,
    times: Times,
}

/// Registers functions that take a device, under their own names.
macro_rules! tests {
    ($suite:expr, $($name:ident),+ $(,)?) => {
        $($suite.on(crate::harness::Setup::Full, stringify!($name), |gpu| {
            $name(gpu);
            Ok(())
        });)+
    };
}
pub(crate) use tests;

impl Suite {
    /// Names the adapter on stderr.
    pub(crate) fn new() -> Self {
        let pool = Arc::<Pool>::default();
        let mut suite = Self { adapter: None, pool, trials: Vec::new(), module: "harness", times: Arc::default() };
        let found = suite.pool.borrow(Setup::Full).map(|gpu| gpu.adapter_info().clone());
        match found {
            Ok(info) => {
                eprintln!("adapter: {info}");
                suite.adapter = Some(info);
            }
            Err(error) => {
                eprintln!("{error}");
                if required() {
                    let message = error.to_string();
                    suite.add("an_adapter_is_there", || Err(Failed::from(message)));
                }
            }
        }
        suite
    }

    /// The module of the tests that are added from now on, the first part of their names.
    pub(crate) fn module(&mut self, name: &'static str) -> &mut Self {
        self.module = name;
        self
    }

    pub(crate) fn adapter(&self) -> Option<&AdapterInfo> {
        self.adapter.as_ref()
    }

    /// What kernels may depend on, on a device that is opened so; `None` without an adapter.
    pub(crate) fn profile(&self, setup: Setup) -> vae_wgpu::Result<Option<Profile>> {
        match &self.adapter {
            None => Ok(None),
            Some(_) => Ok(Some(*self.pool.borrow(setup)?.profile())),
        }
    }

    /// Adds a test that needs no adapter.
    pub(crate) fn add(&mut self, name: impl AsRef<str>, run: impl FnOnce() -> Result<(), Failed> + Send + 'static) {
        let (module, times, name) = (self.module, Arc::clone(&self.times), self.name(name));
        self.trials.push(Trial::test(name.clone(), move || {
            let begun = Instant::now();
            let result = run();
            lock(&times).push((module, name, begun.elapsed()));
            result
        }));
    }

    /// Adds a test that borrows a device; without an adapter it is ignored or fails.
    pub(crate) fn on(
        &mut self,
        setup: Setup,
        name: impl AsRef<str>,
        run: impl FnOnce(&Arc<Gpu>) -> Result<(), Failed> + Send + 'static,
    ) {
        if self.adapter.is_none() {
            let trial = Trial::test(self.name(name), || Err(Failed::from("no adapter"))).with_kind("no adapter");
            self.trials.push(trial.with_ignored_flag(!required()));
            return;
        }
        let pool = Arc::clone(&self.pool);
        self.add(name, move || run(&*pool.borrow(setup)?));
    }

    /// Adds a test that this adapter cannot run, which is reported as ignored.
    pub(crate) fn not_applicable(&mut self, name: impl AsRef<str>, kind: &str) {
        let trial = Trial::test(self.name(name), || Err(Failed::from("not applicable"))).with_kind(kind);
        self.trials.push(trial.with_ignored_flag(true));
    }

    fn name(&self, name: impl AsRef<str>) -> String {
        format!("{}::{}", self.module, name.as_ref())
    }

    /// Runs the tests that the command line asks for, then prints the time of each module and of the slowest tests.
    pub(crate) fn run(self) -> ExitCode {
        let conclusion = libtest_mimic::run(&Arguments::from_args(), self.trials);
        let mut times = std::mem::take(&mut *lock(&self.times));
        let mut modules: BTreeMap<&str, (usize, Duration)> = BTreeMap::new();
        for (module, _, time) in &times {
            let (count, sum) = modules.entry(module).or_default();
            (*count, *sum) = (*count + 1, *sum + *time);
        }
        for (module, (count, time)) in modules {
            println!("part: gpu::{module}: {:.1} s in {count} tests", time.as_secs_f64());
        }
        times.sort_by_key(|(.., time)| std::cmp::Reverse(*time));
        for (_, name, time) in times.iter().take_while(|(.., time)| *time > SLOW) {
            println!("slow: {:.1} s {name}", time.as_secs_f64());
        }
        conclusion.exit_code()
    }
}

/// Whether tests that need an adapter fail where there is none.
fn required() -> bool {
    std::env::var_os("VAE_WGPU_REQUIRE_GPU").is_some_and(|v| v != "0")
}

/// Fails unless every tensor of a check is within its limit.
pub(crate) fn verdict(outcome: CheckOutcome) -> Result<(), Failed> {
    match outcome {
        CheckOutcome::Ran(lines) if !lines.is_empty() && lines.iter().all(|line| line.passed()) => Ok(()),
        CheckOutcome::Ran(lines) => Err(Failed::from(lines.iter().map(|line| format!("{line}\n")).collect::<String>())),
        CheckOutcome::NotApplicable(why) => Err(Failed::from(format!("not applicable: {why}"))),
    }
}
