//! Builds a graph, derives its gradients and runs it on the CPU reference and on a GPU:
//! `cargo run --release --example custom_graph`.

use std::sync::Arc;

use vae_wgpu::prelude::*;

fn main() -> Result<()> {
    // y = linear(pool(relu(conv(x)))). The gradient of y is an input, that of x an output.
    let mut b = Builder::new();
    let x = b.input("x", Spec::nhwc(Shape::new(2, 3, 8, 8)))?;
    let h = b.apply("conv", &[x], |s| Conv::conv2d(s[0], 8, 3, 1, 1))?;
    let h = b.apply("relu", &[h], |s| Relu::new(s[0]))?;
    let h = b.apply("pool", &[h], |s| GlobalAvgPool::new(s[0]))?;
    let y = b.apply("linear", &[h], |s| Conv::linear(s[0], Shape::vector(4)))?;
    let dy = b.input("dy", Spec::nhwc(b.shape(y)))?;
    let graph = b.output("y", y).build().with_gradients(&[Root::Seeded(y, dy)], &["x"])?;
    print!("{graph}");

    let mut executors: Vec<Box<dyn Executor>> = vec![Box::new(CpuExecutor::<f64>::new())];
    match Gpu::open(&GpuOptions::default()) {
        Ok(gpu) => executors.push(Box::new(GpuExecutor::new(Arc::new(gpu), &PlanOptions::default())?)),
        Err(error) => eprintln!("{error}"),
    }
    let x: Vec<f32> = (0..2 * 3 * 8 * 8).map(|i| (i as f32 * 0.37).sin()).collect();
    for exec in &mut executors {
        let program = exec.add(graph.clone())?;
        exec.upload(Arena::Params, &initial(&graph, Arena::Params, 7)?)?;
        exec.write(exec.input(program, "x")?, Data::F32(&x))?;
        exec.write(exec.input(program, "dy")?, Data::F32(&[1.0, 0.0, -1.0, 0.5, 0.0, 2.0, 0.0, 1.0]))?;
        exec.run(program, &[])?;
        println!("{}\n  y  {:?}", exec.describe(), exec.read(exec.output(program, "y")?)?);
        println!("  dx {:?} ...", &exec.read(exec.output(program, "dx")?)?[..4]);
        println!("  gradient of {} {:?}", graph.params()[2].name, &exec.download(Arena::Grads)?[2][..4]);
    }
    Ok(())
}
