// Running statistics of a step that was refused: back to what they were.
//
//   accepted = states     where the finite flag, norm[1], is 1
//   states = accepted     where it is not
//
// states, accepted: flat, `len` vec4s. norm: (global norm, finite flag, 0, 0).
// One invocation: one vec4. One workgroup: 64.

#import grid

struct Params {
    len: u32,
}

@group(0) @binding(0) var<storage, read> norm: array<f32>;
@group(0) @binding(1) var<storage, read_write> states: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> accepted: array<vec4<f32>>;
@group(0) @binding(3) var<uniform> p: Params;

@compute @workgroup_size(64)
fn forward(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_workgroup(wid, wgs) * 64u + lane;
    if i >= p.len {
        return;
    }
    if norm[1] == 1.0 {
        accepted[i] = states[i];
    } else {
        states[i] = accepted[i];
    }
}
