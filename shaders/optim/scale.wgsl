// Weights the gradient of a micro-batch with its share of the images of the step.
//
//   sum = share * sum
//
// sum: flat, `len` vec4s. micro_batch: (share, carry of each level). One invocation: one vec4. Padding stays zero.

#import elementwise

struct Params {
    len: u32,
}

@group(0) @binding(0) var<storage, read> micro_batch: array<f32>;
@group(0) @binding(1) var<storage, read_write> sum: array<vec4<f32>>;
@group(0) @binding(2) var<uniform> p: Params;

fn element(i: u32) {
    sum[i] = micro_batch[0] * sum[i];
}
