// Position normalization: layer normalization over the channels at each position.
//
//   forward    xhat = ((x - pivot) - offset) * rstd,   y = xhat * weight + bias,   with RELU: y = 0 where y <= 0
//              pivot = the position's first x,  offset = mean - pivot,  rstd = 1 / sqrt(variance + EPS)
//   backward   g = dy (0 where RELU and y <= 0),   dbias = sum of g,   dweight = sum of g * xhat, over all positions
//              dx = rstd * (g * weight - mean of g * weight - xhat * (mean of g * weight * xhat))    (+ dx where ACC_DX is set)
//
// x, y, dx, dy: [positions][groups] vec4. weight, bias, dweight, dbias: [groups] vec4. stats: [positions] vec4: pivot, offset, rstd, 0.
// FORWARD and GRADIENT: one invocation has one position and visits its channel groups in order, twice; one workgroup has 64 positions.
// SUMS and MERGE reduce over the positions of each channel (see lib/channel_reduce.wgsl). partials: sum of g and sum of g * xhat, two
// rows of [groups] for each chunk. In MERGE one workgroup has one tile and all its chunks.

#let FORWARD = 0
#let GRADIENT = 1
#let SUMS = 2
#let MERGE = 3

#if STAGE == FORWARD || STAGE == GRADIENT
#import elementwise

struct Params {
    len: u32, // positions
    channels: u32,
    groups: u32,
}

fn total(v: vec4<f32>) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}
#else
#import channel_reduce
#endif

#if STAGE != MERGE
#import norm

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> bias: array<vec4<f32>>;

fn norm_of(s: vec4<f32>) -> Norm {
    return Norm(vec4<f32>(s.x), vec4<f32>(s.y), vec4<f32>(s.z));
}
#endif

#if STAGE == FORWARD
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> stats: array<vec4<f32>>;
@group(0) @binding(5) var<uniform> p: Params;

fn element(position: u32) {
    let first = position * p.groups;
    let pivot = x[first].x;
    // Mean and squared deviations of four channels at a time, merged with those of the channels before (Chan, Golub, LeVeque).
    var count = 0.0;
    var mean = 0.0;
    var squares = 0.0;
    for (var g = 0u; g < p.groups; g++) {
        let four = min(f32(p.channels) - count, 4.0);
        let v = unpadded(x[first + g] - pivot, g);
        let m = total(v) / four;
        let e = unpadded(v - m, g);
        let d = m - mean;
        let share = four / (count + four);
        mean += d * share;
        squares += total(e * e) + d * d * (count * share);
        count += four;
    }
    let s = vec4<f32>(pivot, mean, inverseSqrt(squares / f32(p.channels) + EPS), 0.0);
    stats[position] = s;
    for (var g = 0u; g < p.groups; g++) {
        y[first + g] = output(normalized(x[first + g], norm_of(s)), weight[g], bias[g]);
    }
}
#endif

#if STAGE == GRADIENT || STAGE == SUMS
@group(0) @binding(3) var<storage, read> stats: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> dy: array<vec4<f32>>;
#endif

#if STAGE == GRADIENT
override ACC_DX: bool;

@group(0) @binding(5) var<storage, read_write> dx: array<vec4<f32>>;
@group(0) @binding(6) var<uniform> p: Params;

fn element(position: u32) {
    let first = position * p.groups;
    let n = norm_of(stats[position]);
    var sum_g = vec4<f32>();
    var sum_gx = vec4<f32>();
    for (var g = 0u; g < p.groups; g++) {
        let xhat = normalized(x[first + g], n);
        let w = weight[g];
        let d = masked(dy[first + g], xhat, w, bias[g]) * w;
        sum_g += d;
        sum_gx += d * xhat;
    }
    let mean_g = total(sum_g) / f32(p.channels);
    let mean_gx = total(sum_gx) / f32(p.channels);
    for (var g = 0u; g < p.groups; g++) {
        let at = first + g;
        let xhat = normalized(x[at], n);
        let w = weight[g];
        let d = masked(dy[at], xhat, w, bias[g]) * w;
        var v = unpadded(((d - mean_g) - xhat * mean_gx) * n.rstd, g);
        if ACC_DX {
            v += dx[at];
        }
        dx[at] = v;
    }
}
#endif

#if STAGE == SUMS
#import norm_partials

@group(0) @binding(5) var<storage, read_write> partials: array<vec4<f32>>;
@group(0) @binding(6) var<uniform> p: Params;

fn run(here: Place) {
    let w = weight[here.group];
    let b = bias[here.group];
    var mine = Sums();
    for (var position = here.first; position < here.end; position += p.step) {
        let at = position * p.groups + here.group;
        let xhat = normalized(x[at], norm_of(stats[position]));
        let d = masked(dy[at], xhat, w, b);
        mine.a += d;
        mine.b += d * xhat;
    }
    let all = sum_rows(here, mine);
    store_partials(here, 0u, all.a, all.b);
}
#endif

#if STAGE == MERGE
#import norm_grads

@group(0) @binding(0) var<storage, read> partials: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> dweight: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> dbias: array<vec4<f32>>;
@group(0) @binding(3) var<uniform> p: Params;

fn run(here: Place) {
    let all = merge_partials(here, 0u);
    if here.stores {
        store_grads(here.group, all);
    }
}
#endif
