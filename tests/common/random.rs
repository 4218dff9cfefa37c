//! Random graphs.

use vae_wgpu::runtime::graph::{Builder, Graph, Root};
use vae_wgpu::runtime::op::{Add, BatchNorm, BatchNormConfig, Conv, Relu};
use vae_wgpu::runtime::tensor::{Shape, Spec};

/// Shape of all values of a random graph, its inputs `x` and `dy` among them.
pub(crate) const SHAPE: Shape = Shape { n: 2, c: 5, h: 4, w: 3 };

/// A random graph of convolutions, norms, ReLUs and adds over values of one shape, with all gradients.
pub(crate) fn graph(choices: &[(u8, usize, usize)], fuse: bool) -> Graph {
    let mut b = Builder::new();
    let dy = b.input("dy", Spec::nhwc(SHAPE)).unwrap();
    let x = b.input("x", Spec::nhwc(SHAPE)).unwrap();
    // The final sum includes every value, so every parameter gets a gradient.
    let mut values = vec![b.apply("first", &[x], |s| Conv::conv2d(s[0], 5, 1, 1, 0)).unwrap()];
    for (i, &(kind, a, c)) in choices.iter().enumerate() {
        let (a, c) = (values[a % values.len()], values[c % values.len()]);
        let name = format!("n{i}");
        let relu = BatchNormConfig { eps: 1e-5, momentum: 0.1, training: true, relu: kind % 8 < 4 };
        values.push(match kind % 4 {
            0 => b.apply(&name, &[a], |s| Conv::conv2d(s[0], 5, 3, 1, 1)).unwrap(),
            1 => b.apply(&name, &[a], |s| BatchNorm::new(s[0], relu)).unwrap(),
            2 => b.apply(&name, &[a], |s| Relu::new(s[0])).unwrap(),
            _ => b.apply(&name, &[a, c], |s| Add::new(s[0], s[1])).unwrap(),
        });
    }
    let mut sum = values[0];
    for (i, value) in values.iter().enumerate().skip(1) {
        sum = b.apply(&format!("sum{i}"), &[sum, *value], |s| Add::new(s[0], s[1])).unwrap();
    }
    let graph = b.output("y", sum).build();
    let graph = if fuse { graph.fused().unwrap() } else { graph };
    graph.with_gradients(&[Root::Seeded(sum, dy)], &["x"]).unwrap()
}
