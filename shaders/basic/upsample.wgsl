// Nearest-neighbour upsampling by two.
//
//   forward    y[2i + a, 2j + b] = x[i, j]                                          a, b in 0..2
//   backward   dx[i, j] = (dy[2i, 2j] + dy[2i, 2j + 1]) + (dy[2i + 1, 2j] + dy[2i + 1, 2j + 1])
//                                                                                   (+ what is there, where ACC is set)
//
// x, dx: [n][h][w][c/4] vec4, `len` vec4s in all, `groups` = c/4, `width` = w.
// y, dy: [n][2h][2w][c/4] vec4.
// One invocation: one vec4 of x and the square of four in y. One workgroup: 64.

#import grid

struct Params {
    len: u32,
    groups: u32,
    width: u32,
}

// Index in y of the upper left of the four vec4s that belong to vec4 `i` of x: row r of x starts 4 rows' worth of x into y
// for each row before it.
fn upper_left(i: u32, q: Params) -> u32 {
    let pixel = i / q.groups;
    let row = pixel / q.width;
    return (2u * pixel + 2u * row * q.width) * q.groups + i % q.groups;
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
    let upper = upper_left(i, p);
    let lower = upper + 2u * p.width * p.groups;
    let v = x[i];
    y[upper] = v;
    y[upper + p.groups] = v;
    y[lower] = v;
    y[lower + p.groups] = v;
}

override ACC: bool;

@group(0) @binding(0) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> dx: array<vec4<f32>>;

@compute @workgroup_size(64)
fn backward(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_workgroup(wid, wgs) * 64u + lane;
    if i >= p.len {
        return;
    }
    let upper = upper_left(i, p);
    let lower = upper + 2u * p.width * p.groups;
    var d = (dy[upper] + dy[upper + p.groups]) + (dy[lower] + dy[lower + p.groups]);
    if ACC {
        d += dx[i];
    }
    dx[i] = d;
}
