// Batch normalization over n, h and w for each channel.
//
//   forward    xhat = ((x - shift) - offset) * rstd,   y = xhat * weight + bias,   with RELU: y = 0 where y <= 0
//              shift = the channel's first x,  offset = mean - shift,  rstd = 1 / sqrt(variance + EPS)
//              running = (1 - MOMENTUM) * running + MOMENTUM * (mean, variance * M / (M - 1)),   M = n * h * w
//   backward   g = dy (0 where RELU and y <= 0),   dbias = sum of g,   dweight = sum of g * xhat
//              dx = weight * rstd * (g - dbias / M - xhat * dweight / M)                 (+ what is there, where ACC_* is set)
//   In evaluation mean and variance are the running ones, constants of the gradient: dx = weight * rstd * g.
//
// Nothing is computed from x itself: near a mean far above the standard deviation x - shift is exact, x * x would be lost.
//
// x, y, dx, dy: [pixels][groups] vec4. weight, bias, running_*: [groups] vec4. stats: rows shift, offset, rstd of [groups].
// Work is cut into columns (see lib/columns.wgsl). Each pass takes two dispatches:
//   statistics -> normalize    partials: mean and squared deviations of x - shift, two rows of [groups] a chunk
//   sums -> gradient           scratch: rows shift, offset, rstd, weight, bias, then sum of g and sum of g * xhat a chunk
// evaluate is the forward pass of evaluation. One kernel a text: STAGE chooses.

#import grid
#import columns
#import moments

#let STATISTICS = 0
#let NORMALIZE = 1
#let EVALUATE = 2
#let SUMS = 3
#let SUMS_EVALUATION = 4
#let GRADIENT = 5

override EPS: f32;
override MOMENTUM: f32;
override RELU: bool;

// The affine map of one channel group.
struct Channels {
    shift: vec4<f32>,
    offset: vec4<f32>,
    rstd: vec4<f32>,
    weight: vec4<f32>,
    bias: vec4<f32>,
}

fn normalized(v: vec4<f32>, c: Channels) -> vec4<f32> {
    return ((v - c.shift) - c.offset) * c.rstd;
}

// Where the ReLU passes no gradient. NaN passes.
fn cut(xhat: vec4<f32>, c: Channels) -> vec4<bool> {
    return vec4<bool>(RELU) & (xhat * c.weight + c.bias <= vec4<f32>());
}

fn output(v: vec4<f32>, c: Channels) -> vec4<f32> {
    let y = normalized(v, c) * c.weight + c.bias;
    return select(y, vec4<f32>(), vec4<bool>(RELU) & (y <= vec4<f32>()));
}

// 1 / sqrt(variance + EPS); 0 in the padding, which has variance 0.
fn inverse_std(variance: vec4<f32>, group: u32) -> vec4<f32> {
    let channel = 4u * group + vec4<u32>(0u, 1u, 2u, 3u);
    return select(vec4<f32>(), inverseSqrt(variance + EPS), channel < vec4<u32>(p.channels));
}

#if STAGE == STATISTICS
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> partials: array<vec4<f32>>;
@group(0) @binding(2) var<uniform> p: Params;

// Welford's recurrence along each row.
@compute @workgroup_size(64)
fn statistics(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let workgroup = flat_workgroup(wid, wgs);
    if workgroup >= p.tiles * p.chunks {
        return;
    }
    let here = place(workgroup, lane, p);
    let shift = x[here.group];
    var mine = Moments();
    for (var pixel = here.first; pixel < here.end; pixel += p.step) {
        let v = x[pixel * p.groups + here.group] - shift;
        let d = v - mine.mean;
        mine.count += 1.0;
        mine.mean += d * (1.0 / mine.count);
        mine.squares += d * (v - mine.mean);
    }
    let all = merge_rows(lane, mine);
    if here.stores {
        let row = 2u * here.chunk * p.groups + here.group;
        partials[row] = all.mean;
        partials[row + p.groups] = all.squares;
    }
}
#endif

#if STAGE == NORMALIZE
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> partials: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> stats: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> running_mean: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> running_var: array<vec4<f32>>;
@group(0) @binding(8) var<uniform> p: Params;

@compute @workgroup_size(64)
fn normalize_batch(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let workgroup = flat_workgroup(wid, wgs);
    if workgroup >= p.tiles * p.chunks {
        return;
    }
    let here = place(workgroup, lane, p);
    let g = here.group;
    var mine = Moments();
    for (var chunk = here.row; chunk < p.chunks; chunk += rows()) {
        let count = min(p.span, p.pixels - chunk * p.span);
        let row = 2u * chunk * p.groups + g;
        mine = merge(mine, Moments(f32(count), partials[row], partials[row + p.groups]));
    }
    let all = merge_rows(lane, mine);
    let variance = all.squares / f32(p.pixels);
    let c = Channels(x[g], all.mean, inverse_std(variance, g), weight[g], bias[g]);

    for (var pixel = here.first; pixel < here.end; pixel += p.step) {
        let at = pixel * p.groups + g;
        y[at] = output(x[at], c);
    }
    if here.stores && here.chunk == 0u {
        stats[g] = c.shift;
        stats[g + p.groups] = c.offset;
        stats[g + 2u * p.groups] = c.rstd;
        let unbiased = all.squares / f32(p.pixels - 1u);
        running_mean[g] = (1.0 - MOMENTUM) * running_mean[g] + MOMENTUM * (c.shift + c.offset);
        running_var[g] = (1.0 - MOMENTUM) * running_var[g] + MOMENTUM * unbiased;
    }
}
#endif

#if STAGE == EVALUATE
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> running_mean: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> running_var: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(6) var<uniform> p: Params;

@compute @workgroup_size(64)
fn evaluate(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let workgroup = flat_workgroup(wid, wgs);
    if workgroup >= p.tiles * p.chunks {
        return;
    }
    let here = place(workgroup, lane, p);
    let g = here.group;
    let c = Channels(running_mean[g], vec4<f32>(), inverse_std(running_var[g], g), weight[g], bias[g]);
    for (var pixel = here.first; pixel < here.end; pixel += p.step) {
        let at = pixel * p.groups + g;
        y[at] = output(x[at], c);
    }
}
#endif

#if STAGE == SUMS || STAGE == SUMS_EVALUATION
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> scratch: array<vec4<f32>>;
#if STAGE == SUMS
@group(0) @binding(5) var<storage, read> stats: array<vec4<f32>>;
@group(0) @binding(6) var<uniform> p: Params;

fn channels(g: u32) -> Channels {
    return Channels(stats[g], stats[g + p.groups], stats[g + 2u * p.groups], weight[g], bias[g]);
}
#else
@group(0) @binding(5) var<storage, read> running_mean: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> running_var: array<vec4<f32>>;
@group(0) @binding(7) var<uniform> p: Params;

fn channels(g: u32) -> Channels {
    return Channels(running_mean[g], vec4<f32>(), inverse_std(running_var[g], g), weight[g], bias[g]);
}
#endif

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
    let g = here.group;
    let c = channels(g);
    var mine = Sums();
    for (var pixel = here.first; pixel < here.end; pixel += p.step) {
        let at = pixel * p.groups + g;
        let xhat = normalized(x[at], c);
        let d = select(dy[at], vec4<f32>(), cut(xhat, c));
        mine.a += d;
        mine.b += d * xhat;
    }
    let all = sum_rows(lane, mine);
    if here.stores {
        let row = (5u + 2u * here.chunk) * p.groups + g;
        scratch[row] = all.a;
        scratch[row + p.groups] = all.b;
        if here.chunk == 0u {
            scratch[g] = c.shift;
            scratch[g + p.groups] = c.offset;
            scratch[g + 2u * p.groups] = c.rstd;
            scratch[g + 3u * p.groups] = c.weight;
            scratch[g + 4u * p.groups] = c.bias;
        }
    }
}
#endif

#if STAGE == GRADIENT
override TRAINING: bool;
override ACC_DX: bool;
override ACC_DWEIGHT: bool;
override ACC_DBIAS: bool;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> scratch: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> dx: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> dweight: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> dbias: array<vec4<f32>>;
@group(0) @binding(6) var<uniform> p: Params;

@compute @workgroup_size(64)
fn gradient(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let workgroup = flat_workgroup(wid, wgs);
    if workgroup >= p.tiles * p.chunks {
        return;
    }
    let here = place(workgroup, lane, p);
    let g = here.group;
    var mine = Sums();
    for (var chunk = here.row; chunk < p.chunks; chunk += rows()) {
        let row = (5u + 2u * chunk) * p.groups + g;
        mine.a += scratch[row];
        mine.b += scratch[row + p.groups];
    }
    let all = sum_rows(lane, mine);
    let c = Channels(
        scratch[g],
        scratch[g + p.groups],
        scratch[g + 2u * p.groups],
        scratch[g + 3u * p.groups],
        scratch[g + 4u * p.groups],
    );
    let scale = c.weight * c.rstd;
    var mean = Sums();
    if TRAINING {
        mean = Sums(all.a / f32(p.pixels), all.b / f32(p.pixels));
    }
    for (var pixel = here.first; pixel < here.end; pixel += p.step) {
        let at = pixel * p.groups + g;
        let xhat = normalized(x[at], c);
        var d = select(dy[at], vec4<f32>(), cut(xhat, c));
        if TRAINING {
            d = (d - mean.a) - xhat * mean.b;
        }
        d *= scale;
        if ACC_DX {
            d += dx[at];
        }
        dx[at] = d;
    }
    if here.stores && here.chunk == 0u {
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
