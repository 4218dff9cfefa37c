// Residual add.
//
//   forward    y = a + b        (+ what is there, where ACC is set)
//
// a, b, y: [n][h][w][c/4] vec4, any shape; `len` vec4s in all.
// One invocation: one vec4. One workgroup: 64.

#import grid

struct Params {
    len: u32,
}

override ACC: bool;

@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;
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
    var sum = a[i] + b[i];
    if ACC {
        sum += y[i];
    }
    y[i] = sum;
}
