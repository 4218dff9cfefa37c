// Global average pooling.
//
//   forward    y[n, c] = (sum of x[n, c, i, j] over i, j) / area          pixels in row-major order
//   backward   dx[n, c, i, j] = dy[n, c] / area                           (+ what is there, where ACC is set)
//
// x, dx: [n][area][c/4] vec4, area = h * w; y, dy: [n][c/4] vec4. `len` = n * c/4, `groups` = c/4.
// One invocation: one vec4 of y and its `area` vec4s of x; neighbours have neighbouring channels. One workgroup: 64.

#import grid

struct Params {
    len: u32,
    groups: u32,
    area: u32,
}

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(2) var<uniform> p: Params;

// Index in x of the first pixel of vec4 `i` of y.
fn first_pixel(i: u32) -> u32 {
    return (i / p.groups) * p.area * p.groups + i % p.groups;
}

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
    let first = first_pixel(i);
    var sum = vec4<f32>();
    for (var k = 0u; k < p.area; k++) {
        sum += x[first + k * p.groups];
    }
    y[i] = sum / f32(p.area);
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
    let first = first_pixel(i);
    let d = dy[i] / f32(p.area);
    for (var k = 0u; k < p.area; k++) {
        let at = first + k * p.groups;
        if ACC {
            dx[at] += d;
        } else {
            dx[at] = d;
        }
    }
}
