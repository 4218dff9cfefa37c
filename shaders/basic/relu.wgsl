// Rectified linear unit.
//
//   forward    y  = 0 where x <= 0, else x
//   backward   dx = 0 where x <= 0, else dy        (+ what is there, where ACC is set)
//
// NaN passes, which max() does not promise: a poisoned activation must not hide behind a ReLU.
//
// x, y, dx, dy: [n][h][w][c/4] vec4, any shape; `len` vec4s in all.
// One invocation: one vec4. One workgroup: 64.

#import grid

struct Params {
    len: u32,
}

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(2) var<uniform> p: Params;

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
    let v = x[i];
    y[i] = select(v, vec4<f32>(), v <= vec4<f32>());
}

override ACC: bool;

@group(0) @binding(1) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> dx: array<vec4<f32>>;
@group(0) @binding(3) var<uniform> pb: Params;

@compute @workgroup_size(64)
fn backward(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_workgroup(wid, wgs) * 64u + lane;
    if i >= pb.len {
        return;
    }
    var d = select(dy[i], vec4<f32>(), x[i] <= vec4<f32>());
    if ACC {
        d += dx[i];
    }
    dx[i] = d;
}
