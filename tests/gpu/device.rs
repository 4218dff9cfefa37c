//! Devices: programs, timing, readback, invalid use; and `vae-wgpu check` on the adapter.

use std::process::Command;
use std::sync::{Arc, Mutex};

use pollster::block_on;
use vae_wgpu::Error;
use vae_wgpu::runtime::exec::entry::{PassProgram, run_pass};
use vae_wgpu::runtime::exec::{CpuExecutor, Data, Executor, GpuExecutor};
use vae_wgpu::runtime::gpu::{Compiled, Gpu, Options, Ring, Timer, roofline};
use vae_wgpu::runtime::graph::{Arena, Builder, initial};
use vae_wgpu::runtime::op::{Add, Conv, Op, Relu, Target, operand};
use vae_wgpu::runtime::plan;
use vae_wgpu::runtime::tensor::{Shape, Spec};

use crate::harness::{self, Suite};

fn program_runs_with_timings_and_frees_its_objects(_: &Arc<Gpu>) {
    // A device of its own: concurrent tests create objects on theirs.
    let gpu = Gpu::open(&Options::default()).unwrap();
    let shape = Shape::new(1, 4, 8, 8);
    let op = Add::new(shape, shape).unwrap();
    let target = Target { profile: gpu.profile(), variant: None, accumulate: &[false] };
    let lowered = op.lower("forward", &target).unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let mut value = 0.0f32;
        let allocate = |_, bytes: usize| {
            value += 1.0;
            let buffer = gpu.buffer("test", bytes as u64)?;
            gpu.write(&buffer, 0, &value.to_le_bytes().repeat(bytes / 4))?;
            Ok(buffer)
        };
        let sum = PassProgram::new(&gpu, &op, &op.passes().forward, &lowered, None, allocate).unwrap();
        let mut timer = Timer::new(&gpu, 2).unwrap();
        let mut encoder = gpu.encoder("test");
        sum.program().encode(&mut encoder, timer.as_mut());
        if let Some(timer) = &timer {
            timer.resolve(&mut encoder);
        }
        gpu.submit(encoder).unwrap();
        let y = sum.buffer(operand("y").into()).unwrap();
        assert_eq!(gpu.read(y, 16, 8).unwrap(), bytemuck::cast_slice::<f32, u8>(&[3.0, 3.0]));
        if let Some(mut timer) = timer {
            let spans = timer.read(&gpu).unwrap();
            assert_eq!((spans.len(), spans[0].kernel, spans[0].label.as_str()), (1, "add.forward", "add.forward"));
            assert!(spans[0].ns.is_none_or(|ns| ns > 0.0 && ns < 1e9));
        }
        drop(sum);
        gpu.wait().unwrap();
        seen.push(gpu.live_objects());
    }
    assert_eq!(seen[1], seen[2]);
    assert!(seen[0].compute_pipelines > 0, "{:?}", seen[0]);
}

fn invalid_accesses_and_oversized_buffers_are_errors(gpu: &Arc<Gpu>) {
    assert!(matches!(gpu.buffer("huge", u64::MAX / 2), Err(Error::DoesNotFit { .. })));
    let buffer = gpu.buffer("small", 16).unwrap();
    assert!(matches!(gpu.write(&buffer, 8, &[0; 16]), Err(Error::Device { .. })));
    assert!(matches!(gpu.read(&buffer, 8, 16), Err(Error::Device { .. })));
    gpu.health().unwrap();
    assert_eq!(gpu.read(&buffer, 0, 16).unwrap(), [0; 16]);
}

fn readback_ring_returns_copies_in_order(gpu: &Arc<Gpu>) {
    let buffer = gpu.buffer("source", 8).unwrap();
    let mut ring = Ring::new(gpu, 8, 2).unwrap();
    let mut got = Vec::new();
    for i in 0..5u32 {
        if ring.is_full() {
            got.extend(block_on(ring.drain(gpu)).unwrap());
        }
        gpu.write(&buffer, 0, bytemuck::cast_slice(&[i, i + 1])).unwrap();
        let mut encoder = gpu.encoder("copy");
        let slot = ring.encode_copy(&mut encoder, &[(&buffer, 4, 4), (&buffer, 0, 4)]).unwrap();
        let submission = gpu.submit(encoder).unwrap();
        ring.map(slot, submission);
        if i == 3 {
            // Waiting for the oldest returns it, and may return more.
            let before = got.len();
            got.extend(block_on(ring.wait_for_oldest(gpu)).unwrap());
            assert!(got.len() > before);
        }
        got.extend(ring.poll(gpu).unwrap());
    }
    got.extend(block_on(ring.drain(gpu)).unwrap());
    assert!(block_on(ring.wait_for_oldest(gpu)).unwrap().is_empty());
    let want: Vec<_> = (0..5u32).map(|i| (u64::from(i), bytemuck::cast_slice(&[i + 1, i]).to_vec())).collect();
    assert_eq!(got, want);
}

fn pipeline_cache_data_is_reused_and_invalid_data_ignored(gpu: &Arc<Gpu>) {
    let add = |gpu: &Gpu| {
        let shape = Shape::new(1, 4, 4, 4);
        let op = Add::new(shape, shape).unwrap();
        let sums = run_pass(gpu, &op, &op.passes().forward, None, &[vec![1.5; 64], vec![0.25; 64]], &[]).unwrap();
        assert_eq!(sums, [vec![1.75; 64]]);
    };
    let with = |data: Option<&[u8]>| {
        let mut gpu = Gpu::open(&Options::default()).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let events = Arc::clone(&seen);
        gpu.on_compiled(move |_, compiled| events.lock().unwrap().push(compiled));
        gpu.use_pipeline_cache(data).unwrap();
        add(&gpu);
        // Pipelines that exist are not compiled again.
        add(&gpu);
        assert_eq!(*seen.lock().unwrap(), [Compiled { done: 1, total: 1 }]);
        gpu.health().unwrap();
        gpu.pipeline_cache_data()
    };
    assert!(gpu.pipeline_cache_data().is_none());
    let first = with(None);
    assert_eq!(first.is_some(), gpu.pipeline_cache_key().is_some());
    let Some(data) = first else { return };
    assert!(gpu.pipeline_cache_key().unwrap().chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
    assert!(with(Some(&data)).is_some());
    let mut foreign = data.clone();
    foreign[..16].iter_mut().for_each(|b| *b ^= 0x55);
    for odd in [&[][..], b"hello", &data[..data.len() / 2], &foreign] {
        assert!(with(Some(odd)).is_some());
    }
}

fn roofline_probes_measure_positive_rates(gpu: &Arc<Gpu>) {
    let roof = roofline(gpu).unwrap();
    assert!(roof.gflops > 0.1 && roof.copy_gb_s > 0.1, "{roof:?}");
}

/// Small programs first: the larger ones replace buffers that they use.
fn larger_programs_can_be_added_later(gpu: &Arc<Gpu>) {
    let graph = |n| {
        let mut b = Builder::new();
        let x = b.input("x", Spec::nhwc(Shape::new(n, 4, 8, 8))).unwrap();
        let h = b.apply("conv", &[x], |s| Conv::conv2d(s[0], 8, 3, 1, 1)).unwrap();
        let y = b.apply("relu", &[h], |s| Relu::new(s[0])).unwrap();
        b.output("y", y).build()
    };
    let run = |exec: &mut dyn Executor| {
        let small = exec.add(graph(1)).unwrap();
        exec.upload(Arena::Params, &initial(&graph(1), Arena::Params, 3).unwrap()).unwrap();
        let mut results = Vec::new();
        let mut check = |exec: &mut dyn Executor, program, n: usize| {
            let values: Vec<f32> = (0..n * 256).map(|i| (i as f32).sin()).collect();
            let (x, y) = (exec.input(program, "x").unwrap(), exec.output(program, "y").unwrap());
            exec.write(x, Data::F32(&values)).unwrap();
            exec.run(program, &[]).unwrap();
            results.extend(exec.read(y).unwrap());
        };
        check(exec, small, 1);
        let large = exec.add(graph(8)).unwrap();
        check(exec, small, 1);
        check(exec, large, 8);
        check(exec, small, 1);
        results
    };
    let found = run(&mut GpuExecutor::new(Arc::clone(gpu), &plan::Options::default()).unwrap());
    let expected = run(&mut CpuExecutor::<f32>::new());
    assert_eq!(found.len(), 11 * 512);
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!((found - expected).abs() <= 1e-5, "{i}: {found} instead of {expected}");
    }
}

fn check_command_passes_and_prints_json(_: &Arc<Gpu>) {
    let output = Command::new(env!("CARGO_BIN_EXE_vae-wgpu")).args(["check", "relu/odd", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(lines.len() >= 3, "{text}");
    for line in lines {
        assert_eq!(line["verdict"], "ok", "{line}");
        assert!(!line["tensors"].as_array().unwrap().is_empty(), "{line}");
    }
}

pub(crate) fn register(tests: &mut Suite) {
    harness::tests!(
        tests,
        pipeline_cache_data_is_reused_and_invalid_data_ignored,
        program_runs_with_timings_and_frees_its_objects,
        invalid_accesses_and_oversized_buffers_are_errors,
        readback_ring_returns_copies_in_order,
        roofline_probes_measure_positive_rates,
        larger_programs_can_be_added_later,
        check_command_passes_and_prints_json,
    );
}
