// Batch normalization of each channel over n, h and w.
//
//   forward    xhat = ((x - pivot) - offset) * rstd,   y = xhat * weight + bias,   with RELU: y = 0 where y <= 0
//              pivot = the channel's first x,  offset = mean - pivot,  rstd = 1 / sqrt(variance + EPS)
//              In training the running statistics are updated as in lib/norm_running.wgsl.
//   backward   g = dy (0 where RELU and y <= 0),   dbias = sum of g,   dweight = sum of g * xhat
//              dx = weight * rstd * (g - dbias / M - xhat * dweight / M),   M = n * h * w            (+ dx where ACC_DX is set)
//   In evaluation mean and variance are the running ones, which the gradient treats as constants: dx = weight * rstd * g.
//
// x, y, dx, dy: [positions][groups] vec4. weight, bias, running_*, dweight, dbias: [groups] vec4. stats: rows pivot, offset, rstd of
// [groups]. The work is cut into chunks and tiles (see lib/channel_reduce.wgsl). Each pass takes two dispatches:
//   STATISTICS, NORMALIZE   partials: mean and sum of squared deviations of x - pivot, two rows of [groups] for each chunk
//   SUMS, GRADIENT          partials: HEADER rows pivot, offset, rstd, weight, bias, then sum of g and sum of g * xhat for each chunk
// EVALUATE is the forward pass of evaluation in one dispatch.
// Order of summation: each row along its positions, then the rows of the chunk, then the chunks.

#import channel_reduce
#import kept
#import norm

#let STATISTICS = 0
#let NORMALIZE = 1
#let EVALUATE = 2
#let SUMS = 3
#let SUMS_EVALUATION = 4
#let GRADIENT = 5
#let HEADER = 5

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;

#if STAGE != STATISTICS && STAGE != GRADIENT
@group(0) @binding(1) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> bias: array<vec4<f32>>;
#endif

#if STAGE == EVALUATE || STAGE == SUMS_EVALUATION
@group(0) @binding(3) var<storage, read> running_mean: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> running_var: array<vec4<f32>>;

fn norm_of(g: u32) -> Norm {
    return Norm(running_mean[g], vec4<f32>(), inverse_std(running_var[g], g));
}
#endif

#if STAGE == NORMALIZE || STAGE == EVALUATE
fn normalize(here: Place, n: Norm, w: vec4<f32>, b: vec4<f32>) {
    for (var position = here.first; position < here.end; position += p.step) {
        let at = position * p.groups + here.group;
        y[at] = output(normalized(x[at], n), w, b);
    }
}
#endif

#if STAGE == STATISTICS
#import moments
#import norm_partials

@group(0) @binding(1) var<storage, read_write> partials: array<vec4<f32>>;
@group(0) @binding(2) var<uniform> p: Params;

// Welford's recurrence along each row.
fn run(here: Place) {
    let pivot = x[here.group];
    var mine = Moments();
    for (var position = here.first; position < here.end; position += p.step) {
        let v = kept(x[position * p.groups + here.group] - pivot, p.positions);
        let d = v - mine.mean;
        mine.count += 1.0;
        mine.mean += d * (1.0 / mine.count);
        mine.squares += d * (v - mine.mean);
    }
    let all = merge_rows(here, mine);
    store_partials(here, 0u, all.mean, all.squares);
}
#endif

#if STAGE == NORMALIZE
#import moments
#import norm_running

@group(0) @binding(3) var<storage, read> partials: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> stats: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> running_mean: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> running_var: array<vec4<f32>>;
@group(0) @binding(8) var<uniform> p: Params;

fn run(here: Place) {
    let g = here.group;
    var mine = Moments();
    for (var chunk = here.row; chunk < p.chunks; chunk += rows()) {
        let row = 2u * chunk * p.groups + g;
        mine = merge(mine, Moments(f32(chunk_len(chunk)), partials[row], partials[row + p.groups]));
    }
    let all = merge_rows(here, mine);
    let n = Norm(x[g], all.mean, inverse_std(all.squares / f32(p.positions), g));
    normalize(here, n, weight[g], bias[g]);
    if here.stores && here.chunk == 0u {
        stats[g] = n.pivot;
        stats[g + p.groups] = n.offset;
        stats[g + 2u * p.groups] = n.rstd;
        update_running(g, n.pivot + n.offset, all.squares);
    }
}
#endif

#if STAGE == EVALUATE
@group(0) @binding(5) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(6) var<uniform> p: Params;

fn run(here: Place) {
    normalize(here, norm_of(here.group), weight[here.group], bias[here.group]);
}
#endif

#if STAGE == SUMS
@group(0) @binding(3) var<storage, read> stats: array<vec4<f32>>;

fn norm_of(g: u32) -> Norm {
    return Norm(stats[g], stats[g + p.groups], stats[g + 2u * p.groups]);
}
#endif

#if STAGE == SUMS || STAGE == SUMS_EVALUATION
#import norm_partials
#let NEXT = 4 + (STAGE == SUMS_EVALUATION)

@group(0) @binding($NEXT) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(${NEXT + 1}) var<storage, read_write> partials: array<vec4<f32>>;
@group(0) @binding(${NEXT + 2}) var<uniform> p: Params;

fn run(here: Place) {
    let g = here.group;
    let n = norm_of(g);
    let w = weight[g];
    let b = bias[g];
    var mine = Sums();
    for (var position = here.first; position < here.end; position += p.step) {
        let at = position * p.groups + g;
        let xhat = normalized(x[at], n);
        let d = masked(dy[at], xhat, w, b);
        mine.a += d;
        mine.b += d * xhat;
    }
    let all = sum_rows(here, mine);
    store_partials(here, ${HEADER}u, all.a, all.b);
    if here.stores && here.chunk == 0u {
        partials[g] = n.pivot;
        partials[g + p.groups] = n.offset;
        partials[g + 2u * p.groups] = n.rstd;
        partials[g + 3u * p.groups] = w;
        partials[g + 4u * p.groups] = b;
    }
}
#endif

#if STAGE == GRADIENT
#import norm_grads

override TRAINING: bool;
override ACC_DX: bool;

@group(0) @binding(1) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> partials: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> dx: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> dweight: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> dbias: array<vec4<f32>>;
@group(0) @binding(6) var<uniform> p: Params;

fn run(here: Place) {
    let g = here.group;
    let all = merge_partials(here, ${HEADER}u);
    let n = Norm(partials[g], partials[g + p.groups], partials[g + 2u * p.groups]);
    let w = partials[g + 3u * p.groups];
    let b = partials[g + 4u * p.groups];
    let scale = w * n.rstd;
    var mean = Sums();
    if TRAINING {
        mean = Sums(all.a / f32(p.positions), all.b / f32(p.positions));
    }
    for (var position = here.first; position < here.end; position += p.step) {
        let at = position * p.groups + g;
        let xhat = normalized(x[at], n);
        var d = masked(dy[at], xhat, w, b);
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
        store_grads(g, all);
    }
}
#endif
