// Batch normalization with given moments: the second half of a batch norm whose images are in several processes.
//
//   forward    xhat = ((x - pivot) - offset) * rstd,   y = xhat * weight + bias,   with RELU: y = 0 where y <= 0
//              rstd = 1 / sqrt(squares / count + EPS)
//              running = (1 - MOMENTUM) * running + MOMENTUM * (pivot + offset, squares / (count - 1))
//   sums       g = dy (0 where RELU and y <= 0),   dbias = sum of g,   dweight = sum of g * xhat
//              with scale = weight * rstd: dmoments: rows pivot and offset: dmean = -scale * dbias,
//              squares: -scale * rstd * dweight / (2 * count),   count: - the row before * squares / count
//                                                         (+ dmoments, dweight, dbias where ACC_* is set)
//   direct     dx = scale * g                                               (+ dx where ACC_DX is set)
//
// x, y, dx, dy: [positions][groups] vec4. moments, dmoments: rows pivot, offset = mean - pivot, squares, count of [groups], of these
// positions and of those in other processes. weight, bias, running_*, dweight, dbias: [groups] vec4. The work is cut into chunks and tiles
// (see lib/channel_reduce.wgsl).
//   SUMS          partials: sum of g and sum of g * xhat, two rows of [groups] for each chunk
//   MERGE_SUMS    the sums, with one workgroup for each tile
// Order of summation: each row along its positions, then the rows of the chunk, then the chunks.

#import channel_reduce
#import kept
#import norm

#let NORMALIZE = 0
#let SUMS = 1
#let MERGE_SUMS = 2
#let DIRECT = 3

#if STAGE == MERGE_SUMS
@group(0) @binding(0) var<storage, read> partials: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> moments: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;
#else
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> moments: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
#endif

// The number of values; 1 in the padding of the last group, where it is 0.
fn count_of(g: u32) -> vec4<f32> {
    return max(moments[g + 3u * p.groups], vec4<f32>(1.0));
}

fn norm_of(g: u32) -> Norm {
    let variance = moments[g + 2u * p.groups] / count_of(g);
    return Norm(moments[g], moments[g + p.groups], inverse_std(variance, g));
}

#if STAGE == NORMALIZE
override MOMENTUM: f32;

@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> running_mean: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> running_var: array<vec4<f32>>;
@group(0) @binding(7) var<uniform> p: Params;

fn run(here: Place) {
    let g = here.group;
    let n = norm_of(g);
    let w = weight[g];
    let b = bias[g];
    for (var position = here.first; position < here.end; position += p.step) {
        let at = position * p.groups + g;
        y[at] = output(normalized(x[at], n), w, b);
    }
    if here.stores && here.chunk == 0u {
        let unbiased = moments[g + 2u * p.groups] / max(count_of(g) - 1.0, vec4<f32>(1.0));
        running_mean[g] = (1.0 - MOMENTUM) * running_mean[g] + MOMENTUM * (n.pivot + n.offset);
        running_var[g] = (1.0 - MOMENTUM) * running_var[g] + MOMENTUM * unbiased;
    }
}
#endif

#if STAGE == SUMS
#import norm_partials

@group(0) @binding(4) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> partials: array<vec4<f32>>;
@group(0) @binding(6) var<uniform> p: Params;

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
    store_partials(here, 0u, all.a, all.b);
}
#endif

#if STAGE == MERGE_SUMS
#import norm_grads

override ACC_DMOMENTS: bool;

@group(0) @binding(3) var<storage, read_write> dmoments: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> dweight: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> dbias: array<vec4<f32>>;
@group(0) @binding(6) var<uniform> p: Params;

fn store_dmoments(at: u32, value: vec4<f32>) {
    var d = value;
    if ACC_DMOMENTS {
        d += dmoments[at];
    }
    dmoments[at] = d;
}

fn run(here: Place) {
    let g = here.group;
    let all = merge_partials(here, 0u);
    if here.stores {
        let rstd = norm_of(g).rstd;
        let scale = weight[g] * rstd;
        let count = count_of(g);
        let dmean = -scale * all.a;
        let dsquares = -0.5 * scale * rstd * all.b / count;
        store_dmoments(g, dmean);
        store_dmoments(g + p.groups, dmean);
        store_dmoments(g + 2u * p.groups, dsquares);
        store_dmoments(g + 3u * p.groups, -dsquares * (moments[g + 2u * p.groups] / count));
        store_grads(g, all);
    }
}
#endif

#if STAGE == DIRECT
override ACC_DX: bool;

@group(0) @binding(4) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> dx: array<vec4<f32>>;
@group(0) @binding(6) var<uniform> p: Params;

fn run(here: Place) {
    let g = here.group;
    let n = norm_of(g);
    let w = weight[g];
    let b = bias[g];
    let scale = w * n.rstd;
    for (var position = here.first; position < here.end; position += p.step) {
        let at = position * p.groups + g;
        var d = masked(dy[at], normalized(x[at], n), w, b) * scale;
        if ACC_DX {
            d += dx[at];
        }
        dx[at] = d;
    }
}
#endif
