// Repeats the updates of the running statistics in a step whose micro-batches ran in several processes.
//
//   states = accepted
//   states = (1 - MOMENTUM) * states + MOMENTUM * statistics[m]     for m in 0..count, in order
//
// statistics: [micro-batch][len] vec4, those of each batch. count: one value. accepted, states: flat, `len` vec4s.
// One invocation: one vec4. Padding stays zero.

#import elementwise

struct Params {
    len: u32,
}

override MOMENTUM: f32;

@group(0) @binding(0) var<storage, read> statistics: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> count: array<f32>;
@group(0) @binding(2) var<storage, read> accepted: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> states: array<vec4<f32>>;
@group(0) @binding(4) var<uniform> p: Params;

fn element(i: u32) {
    var state = accepted[i];
    let end = u32(count[0]);
    for (var m = 0u; m < end; m++) {
        // As in lib/norm_running.wgsl.
        state = (1.0 - MOMENTUM) * state + MOMENTUM * statistics[m * p.len + i];
    }
    states[i] = state;
}
