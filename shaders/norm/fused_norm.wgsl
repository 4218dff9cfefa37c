// The dispatches of a batch norm whose normalization, ReLU and gradient sums are fused into the convolutions before and after it (see
// lib/conv_fused.wgsl and src/runtime/op/norm/fused.rs). A chunk is `span` positions: 128, or fewer in the last one.
//
//   STATISTICS    of x where no convolution computed them: for each chunk its first value (pivot), mean - pivot, and the sum of
//                 squared deviations
//   MERGE         stats and running statistics (see lib/norm_running.wgsl) from the statistics of the chunks
//   RUNNING       stats from the running statistics, in evaluation
//   SUMS          of g where no convolution computed them: for each chunk the sums of g and of g * xhat
//   MERGE_SUMS    totals, dbias and dweight (see lib/norm_grads.wgsl) from the sums of the chunks
//   GRADIENT      dx = scale * (g - dbias / M - xhat * dweight / M), M = positions; in evaluation dx = scale * g
//                                                                                              (+ dx where ACC_DX is set)
//                 with MERGING it takes the place of MERGE_SUMS, too: each workgroup merges the sums of all chunks, the first of each
//                 tile stores dbias and dweight
//
// x, g, dx: [positions][groups] vec4. partials: three (STATISTICS) or two (SUMS) rows of [groups] for each chunk. stats: rows pivot,
// offset = mean - pivot, rstd, scale = rstd * weight, addend = bias - offset * scale, of [groups]; xhat = ((x - pivot) - offset) * rstd.
// g is the gradient before the ReLU that follows the norm. totals: rows sum of g, sum of g * xhat, of [groups].
// The work is cut into chunks and tiles (see lib/channel_reduce.wgsl). STATISTICS, SUMS and GRADIENT have one workgroup for each tile
// and chunk; on a GPU the chunks of GRADIENT are smaller, as many as keep it busy, because nothing merges them. MERGE, RUNNING and
// MERGE_SUMS have one for each tile; they read the chunks row by row. On a GPU, MERGE and MERGE_SUMS have 256 invocations each.

#import channel_reduce
#import kept
#import norm
#import rectify

#let STATISTICS = 0
#let MERGE = 1
#let RUNNING = 2
#let SUMS = 3
#let MERGE_SUMS = 4
#let GRADIENT = 5

#if STAGE == STATISTICS
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> partials: array<vec4<f32>>;
@group(0) @binding(2) var<uniform> p: Params;

fn run(here: Place) {
    let pivot = x[here.chunk * p.span * p.groups + here.group];
    var mine = Sums();
    for (var position = here.first; position < here.end; position += p.step) {
        let d = kept(x[position * p.groups + here.group] - pivot, p.positions);
        mine.a += d;
        mine.b += d * d;
    }
    let all = sum_rows(here, mine);
    if here.stores {
        let mean = all.a / f32(chunk_len(here.chunk));
        let row = 3u * here.chunk * p.groups + here.group;
        partials[row] = pivot;
        partials[row + p.groups] = mean;
        partials[row + 2u * p.groups] = rectified(all.b - all.a * mean);
    }
}
#endif

#if STAGE == MERGE || STAGE == RUNNING
fn store_stats(g: u32, pivot: vec4<f32>, offset: vec4<f32>, variance: vec4<f32>) {
    let rstd = inverse_std(variance, g);
    let scale = rstd * weight[g];
    stats[g] = pivot;
    stats[g + p.groups] = offset;
    stats[g + 2u * p.groups] = rstd;
    stats[g + 3u * p.groups] = scale;
    stats[g + 4u * p.groups] = bias[g] - offset * scale;
}
#endif

#if STAGE == MERGE
#import norm_running

@group(0) @binding(0) var<storage, read> partials: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> stats: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> running_mean: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> running_var: array<vec4<f32>>;
@group(0) @binding(6) var<uniform> p: Params;

// Mean of a chunk, minus the pivot.
fn mean_of(chunk: u32, g: u32, pivot: vec4<f32>) -> vec4<f32> {
    let row = 3u * chunk * p.groups + g;
    return kept(partials[row] - pivot, p.positions) + partials[row + p.groups];
}

fn run(here: Place) {
    let g = here.group;
    let pivot = partials[g];
    // Twice over the chunks: first the mean, then the squared deviations of the chunks and of their means from it.
    var mine = Sums();
    for (var first = here.row; first < p.chunks; first += ${UNROLLED}u * rows()) {
#for u in 0..UNROLLED
        let chunk$u = min(first + ${u}u * rows(), p.chunks - 1u);
        let mean$u = mean_of(chunk$u, g, pivot) * f32(chunk_len(chunk$u));
#endfor
        mine.a += mean0;
#for u in 1..UNROLLED
        mine.a += select(vec4<f32>(), mean$u, first + ${u}u * rows() < p.chunks);
#endfor
    }
    let offset = sum_rows(here, mine).a / f32(p.positions);
    workgroupBarrier();
    mine = Sums();
    for (var first = here.row; first < p.chunks; first += ${UNROLLED}u * rows()) {
#for u in 0..UNROLLED
        let chunk$u = min(first + ${u}u * rows(), p.chunks - 1u);
        let d$u = mean_of(chunk$u, g, pivot) - offset;
        let squares$u = partials[(3u * chunk$u + 2u) * p.groups + g] + d$u * d$u * f32(chunk_len(chunk$u));
#endfor
        mine.a += squares0;
#for u in 1..UNROLLED
        mine.a += select(vec4<f32>(), squares$u, first + ${u}u * rows() < p.chunks);
#endfor
    }
    let squares = sum_rows(here, mine).a;
    if here.stores {
        store_stats(g, pivot, offset, squares / f32(p.positions));
        update_running(g, pivot + offset, squares);
    }
}
#endif

#if STAGE == RUNNING
@group(0) @binding(0) var<storage, read> running_mean: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> running_var: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> stats: array<vec4<f32>>;
@group(0) @binding(5) var<uniform> p: Params;

fn run(here: Place) {
    if here.stores {
        store_stats(here.group, running_mean[here.group], vec4<f32>(), running_var[here.group]);
    }
}
#endif

#if STAGE == SUMS || STAGE == GRADIENT
@group(0) @binding(1) var<storage, read> g: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> stats: array<vec4<f32>>;

fn norm_of(group: u32) -> Norm {
    return Norm(stats[group], stats[group + p.groups], stats[group + 2u * p.groups]);
}
#endif

#if STAGE == SUMS
#import norm_partials

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> partials: array<vec4<f32>>;
@group(0) @binding(4) var<uniform> p: Params;

fn run(here: Place) {
    let n = norm_of(here.group);
    var mine = Sums();
    for (var position = here.first; position < here.end; position += p.step) {
        let at = position * p.groups + here.group;
        mine.a += g[at];
        mine.b += g[at] * normalized(x[at], n);
    }
    let all = sum_rows(here, mine);
    store_partials(here, 0u, all.a, all.b);
}
#endif

#if STAGE == MERGE_SUMS
#import norm_grads

@group(0) @binding(0) var<storage, read> partials: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> totals: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> dweight: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> dbias: array<vec4<f32>>;
@group(0) @binding(4) var<uniform> p: Params;

fn run(here: Place) {
    let all = merge_partials(here, 0u);
    if here.stores {
        totals[here.group] = all.a;
        totals[here.group + p.groups] = all.b;
        store_grads(here.group, all);
    }
}
#endif

#if STAGE == GRADIENT
override TRAINING: bool;
override ACC_DX: bool;

#if TEXTURES
#import texture

// The texture copy that the kernels of the convolution read, too.
@group(0) @binding(0) var x: texture_storage_2d<rgba32float, read>;

fn ld_x(i: u32) -> vec4<f32> {
    return textureLoad(x, texel(i));
}
#else
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;

fn ld_x(i: u32) -> vec4<f32> {
    return x[i];
}
#endif
#if MERGING
#import norm_grads

@group(0) @binding(3) var<storage, read> partials: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> dx: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> dweight: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> dbias: array<vec4<f32>>;
@group(0) @binding(7) var<uniform> p: Params;
#else
@group(0) @binding(3) var<storage, read> totals: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> dx: array<vec4<f32>>;
@group(0) @binding(5) var<uniform> p: Params;
#endif

fn run(here: Place) {
    let n = norm_of(here.group);
    let scale = stats[here.group + 3u * p.groups];
#if MERGING
    let all = merge_partials(here, 0u);
    if here.stores && here.chunk == 0u {
        store_grads(here.group, all);
    }
#else
    let all = Sums(totals[here.group], totals[here.group + p.groups]);
#endif
    let mean_g = all.a / f32(p.positions);
    let mean_gx = all.b / f32(p.positions);
    for (var position = here.first; position < here.end; position += p.step) {
        let at = position * p.groups + here.group;
        var d = g[at];
        if TRAINING {
            d = (d - mean_g) - normalized(ld_x(at), n) * mean_gx;
        }
        d *= scale;
        if ACC_DX {
            d += dx[at];
        }
        dx[at] = d;
    }
}
#endif
