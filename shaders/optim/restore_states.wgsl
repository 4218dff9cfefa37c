// Restores the running statistics after a rejected step.
//
//   accepted = states     where the finite flag, norm[1], is 1
//   states = accepted     where it is not
//
// states, accepted: flat, `len` vec4s. norm: (global norm, finite flag, 0, 0). One invocation: one vec4.

#import elementwise

struct Params {
    len: u32,
}

@group(0) @binding(0) var<storage, read> norm: array<f32>;
@group(0) @binding(1) var<storage, read_write> states: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> accepted: array<vec4<f32>>;
@group(0) @binding(3) var<uniform> p: Params;

fn element(i: u32) {
    if norm[1] == 1.0 {
        accepted[i] = states[i];
    } else {
        states[i] = accepted[i];
    }
}
