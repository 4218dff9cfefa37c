// Adds the gradient of a micro-batch to those before it, at one level of a binary tree.
//
//   sum = partial + sum     where the carry of the level is ADD
//   partial = sum           where it is STORE
//
// Nothing is written where it is neither.
//
// sum, partial: flat, `len` vec4s. micro_batch: (share, carry of each level). One invocation: one vec4. Padding stays zero.
// Order of summation: one addition for each level, in ascending order of the dispatches.

#import elementwise

struct Params {
    len: u32,
    level: u32,
}

// The codes of `Carry` in src/runtime/op/optim/micro_batch.rs.
const ADD = 1.0;
const STORE = 2.0;

@group(0) @binding(0) var<storage, read> micro_batch: array<f32>;
@group(0) @binding(1) var<storage, read_write> sum: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> partial: array<vec4<f32>>;
@group(0) @binding(3) var<uniform> p: Params;

fn element(i: u32) {
    let carry = micro_batch[1u + p.level];
    if carry == ADD {
        sum[i] = partial[i] + sum[i];
    } else if carry == STORE {
        partial[i] = sum[i];
    }
}
