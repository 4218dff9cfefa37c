// Layer normalization over the channels of each pixel.
//
//   forward    xhat = ((x - shift) - offset) * rstd,   y = xhat * weight + bias,   with RELU: y = 0 where y <= 0
//              shift = the pixel's first x,  offset = mean - shift,  rstd = 1 / sqrt(variance + EPS)
//   backward   g = dy (0 where RELU and y <= 0),   dbias = sum of g,   dweight = sum of g * xhat, over all pixels
//              dx = rstd * (g * weight - mean of g * weight - xhat * (mean of g * weight * xhat))
//                                                                           (+ what is there, where ACC_* is set)
//
// x, y, dx, dy: [pixels][groups] vec4. weight, bias, dweight, dbias: [groups] vec4. stats: a vec4 a pixel: shift, offset, rstd, 0.
// forward and gradient: one invocation has one pixel and walks its channel groups, twice; one workgroup has 64 pixels.
// sums and merge: columns (see lib/columns.wgsl); partials: sum of g and sum of g * xhat, two rows of [groups] a chunk.
// One kernel a text: STAGE chooses.

#import grid
#import columns

#let FORWARD = 0
#let GRADIENT = 1
#let SUMS = 2
#let MERGE = 3

override RELU: bool;

fn normalized(v: vec4<f32>, s: vec4<f32>) -> vec4<f32> {
    return ((v - s.x) - s.y) * s.z;
}

// `v` with its padding set to zero.
fn unpadded(v: vec4<f32>, group: u32) -> vec4<f32> {
    let channel = 4u * group + vec4<u32>(0u, 1u, 2u, 3u);
    return select(vec4<f32>(), v, channel < vec4<u32>(p.channels));
}

fn total(v: vec4<f32>) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}

#if STAGE == FORWARD
override EPS: f32;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> stats: array<vec4<f32>>;
@group(0) @binding(5) var<uniform> p: Params;

@compute @workgroup_size(64)
fn forward(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let pixel = flat_workgroup(wid, wgs) * 64u + lane;
    if pixel >= p.pixels {
        return;
    }
    let first = pixel * p.groups;
    let shift = x[first].x;
    // Mean and squared deviations of each four channels, merged into those of the channels before (Chan, Golub, LeVeque).
    var count = 0.0;
    var mean = 0.0;
    var squares = 0.0;
    for (var g = 0u; g < p.groups; g++) {
        let four = min(f32(p.channels) - count, 4.0);
        let v = unpadded(x[first + g] - shift, g);
        let m = total(v) / four;
        let e = unpadded(v - m, g);
        let d = m - mean;
        let share = four / (count + four);
        mean += d * share;
        squares += total(e * e) + d * d * (count * share);
        count += four;
    }
    let s = vec4<f32>(shift, mean, inverseSqrt(squares / f32(p.channels) + EPS), 0.0);
    stats[pixel] = s;
    for (var g = 0u; g < p.groups; g++) {
        let v = normalized(x[first + g], s) * weight[g] + bias[g];
        y[first + g] = select(v, vec4<f32>(), vec4<bool>(RELU) & (v <= vec4<f32>()));
    }
}
#endif

#if STAGE == GRADIENT || STAGE == SUMS
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> stats: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> dy: array<vec4<f32>>;

// dy as it arrives before the ReLU. NaN passes.
fn masked(d: vec4<f32>, xhat: vec4<f32>, w: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return select(d, vec4<f32>(), vec4<bool>(RELU) & (xhat * w + b <= vec4<f32>()));
}
#endif

#if STAGE == GRADIENT
override ACC_DX: bool;

@group(0) @binding(5) var<storage, read_write> dx: array<vec4<f32>>;
@group(0) @binding(6) var<uniform> p: Params;

@compute @workgroup_size(64)
fn gradient(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let pixel = flat_workgroup(wid, wgs) * 64u + lane;
    if pixel >= p.pixels {
        return;
    }
    let first = pixel * p.groups;
    let s = stats[pixel];
    var sum_g = vec4<f32>();
    var sum_gx = vec4<f32>();
    for (var g = 0u; g < p.groups; g++) {
        let xhat = normalized(x[first + g], s);
        let w = weight[g];
        let d = masked(dy[first + g], xhat, w, bias[g]) * w;
        sum_g += d;
        sum_gx += d * xhat;
    }
    let mean_g = total(sum_g) / f32(p.channels);
    let mean_gx = total(sum_gx) / f32(p.channels);
    for (var g = 0u; g < p.groups; g++) {
        let at = first + g;
        let xhat = normalized(x[at], s);
        let w = weight[g];
        let d = masked(dy[at], xhat, w, bias[g]) * w;
        var v = unpadded(((d - mean_g) - xhat * mean_gx) * s.z, g);
        if ACC_DX {
            v += dx[at];
        }
        dx[at] = v;
    }
}
#endif

#if STAGE == SUMS
@group(0) @binding(5) var<storage, read_write> partials: array<vec4<f32>>;
@group(0) @binding(6) var<uniform> p: Params;

@compute @workgroup_size(64)
fn sums(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let workgroup = flat_workgroup(wid, wgs);
    if workgroup >= p.tiles * p.chunks {
        return;
    }
    let here = place(workgroup, lane, p);
    let w = weight[here.group];
    let b = bias[here.group];
    var mine = Sums();
    for (var pixel = here.first; pixel < here.end; pixel += p.step) {
        let at = pixel * p.groups + here.group;
        let xhat = normalized(x[at], stats[pixel]);
        let d = masked(dy[at], xhat, w, b);
        mine.a += d;
        mine.b += d * xhat;
    }
    let all = sum_rows(lane, mine);
    if here.stores {
        let row = 2u * here.chunk * p.groups + here.group;
        partials[row] = all.a;
        partials[row + p.groups] = all.b;
    }
}
#endif

#if STAGE == MERGE
override ACC_DWEIGHT: bool;
override ACC_DBIAS: bool;

@group(0) @binding(0) var<storage, read> partials: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> dweight: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> dbias: array<vec4<f32>>;
@group(0) @binding(3) var<uniform> p: Params;

// One workgroup has one tile and merges all its chunks.
@compute @workgroup_size(64)
fn merge(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tile = flat_workgroup(wid, wgs);
    if tile >= p.tiles {
        return;
    }
    let here = place(tile, lane, p);
    let g = here.group;
    var mine = Sums();
    for (var chunk = here.row; chunk < p.chunks; chunk += rows()) {
        let row = 2u * chunk * p.groups + g;
        mine.a += partials[row];
        mine.b += partials[row + p.groups];
    }
    let all = sum_rows(lane, mine);
    if here.stores {
        var dw = all.b;
        var db = all.a;
        if ACC_DWEIGHT {
            dw += dweight[g];
        }
        if ACC_DBIAS {
            db += dbias[g];
        }
        dweight[g] = dw;
        dbias[g] = db;
    }
}
#endif
