// The parts of a batch norm that are left when its normalization, its ReLU and the sums of its gradient have moved into the
// convolutions around it (see lib/conv_fused.wgsl and src/op/norm_parts.rs). A chunk is `span` pixels: 128, or the last ones.
//
//   statistics    of a tensor that no convolution has just stored: for each chunk its first value (shift), mean - shift, and
//                 the sum of squared deviations
//   merge         of the chunks' statistics: stats, and running = (1 - MOMENTUM) * running + MOMENTUM * (mean, unbiased variance)
//   running       stats from the running statistics: in evaluation
//   sums          of a gradient that no convolution has just stored: for each chunk the sums of g and of g * xhat
//   merge_sums    of the chunks: dbias = sum of g, dweight = sum of g * xhat (+ what is there, where ACC_* is set)
//   gradient      dx = scale * (g - dbias / M - xhat * dweight / M), M = pixels; in evaluation dx = scale * g (+ what is there, where
//                 ACC_DX is set)
//
// x, g, dx: [pixels][groups] vec4. partials: three (statistics) or two (sums) rows of [groups] a chunk. stats: rows shift, offset =
// mean - shift, rstd, scale = rstd * weight, addend = bias - offset * scale, of [groups]; xhat = ((x - shift) - offset) * rstd.
// g is zero where the ReLU behind the norm passes no gradient. totals: rows sum of g, sum of g * xhat.
// Work is cut into columns (see lib/columns.wgsl): statistics, sums and gradient have a workgroup for each tile and chunk (gradient's
// chunks are larger), the merges one for each tile; they read the chunks row by row. One kernel a text: STAGE chooses.

#import grid
#import columns

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
    let shift = x[here.chunk * p.span * p.groups + here.group];
    var mine = Sums();
    for (var pixel = here.first; pixel < here.end; pixel += p.step) {
        let d = x[pixel * p.groups + here.group] - shift;
        mine.a += d;
        mine.b += d * d;
    }
    let all = sum_rows(lane, mine);
    if here.stores {
        let mean = all.a / f32(min(p.span, p.pixels - here.chunk * p.span));
        let row = 3u * here.chunk * p.groups + here.group;
        partials[row] = shift;
        partials[row + p.groups] = mean;
        partials[row + 2u * p.groups] = max(all.b - all.a * mean, vec4<f32>());
    }
}
#endif

#if STAGE == MERGE || STAGE == RUNNING
override EPS: f32;

// 1 / sqrt(variance + EPS); 0 in the padding, which has variance 0.
fn inverse_std(variance: vec4<f32>, group: u32) -> vec4<f32> {
    let channel = 4u * group + vec4<u32>(0u, 1u, 2u, 3u);
    return select(vec4<f32>(), inverseSqrt(variance + EPS), channel < vec4<u32>(p.channels));
}

fn store_stats(g: u32, shift: vec4<f32>, offset: vec4<f32>, variance: vec4<f32>) {
    let rstd = inverse_std(variance, g);
    let scale = rstd * weight[g];
    stats[g] = shift;
    stats[g + p.groups] = offset;
    stats[g + 2u * p.groups] = rstd;
    stats[g + 3u * p.groups] = scale;
    stats[g + 4u * p.groups] = bias[g] - offset * scale;
}
#endif

#if STAGE == MERGE
override MOMENTUM: f32;

fn pixels_of(chunk: u32) -> f32 {
    return f32(min(p.span, p.pixels - chunk * p.span));
}

@group(0) @binding(0) var<storage, read> partials: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> stats: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> running_mean: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> running_var: array<vec4<f32>>;
@group(0) @binding(6) var<uniform> p: Params;

@compute @workgroup_size(64)
fn merge_statistics(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let workgroup = flat_workgroup(wid, wgs);
    if workgroup >= p.tiles {
        return;
    }
    let here = place(workgroup, lane, p);
    let g = here.group;
    let shift = partials[g];
    // Twice over the chunks: first the mean, then the squared deviations of chunks and of their means from it.
    var mine = Sums();
    for (var chunk = here.row; chunk < p.chunks; chunk += rows()) {
        let row = 3u * chunk * p.groups + g;
        mine.a += ((partials[row] - shift) + partials[row + p.groups]) * pixels_of(chunk);
    }
    let offset = sum_rows(lane, mine).a / f32(p.pixels);
    workgroupBarrier();
    mine = Sums();
    for (var chunk = here.row; chunk < p.chunks; chunk += rows()) {
        let row = 3u * chunk * p.groups + g;
        let d = ((partials[row] - shift) + partials[row + p.groups]) - offset;
        mine.a += partials[row + 2u * p.groups] + d * d * pixels_of(chunk);
    }
    let squares = sum_rows(lane, mine).a;
    if here.stores {
        store_stats(g, shift, offset, squares / f32(p.pixels));
        let unbiased = squares / f32(p.pixels - 1u);
        running_mean[g] = (1.0 - MOMENTUM) * running_mean[g] + MOMENTUM * (shift + offset);
        running_var[g] = (1.0 - MOMENTUM) * running_var[g] + MOMENTUM * unbiased;
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

@compute @workgroup_size(64)
fn running(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let workgroup = flat_workgroup(wid, wgs);
    if workgroup >= p.tiles {
        return;
    }
    let here = place(workgroup, lane, p);
    if here.stores {
        store_stats(here.group, running_mean[here.group], vec4<f32>(), running_var[here.group]);
    }
}
#endif

#if STAGE == SUMS
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> g: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> stats: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> partials: array<vec4<f32>>;
@group(0) @binding(4) var<uniform> p: Params;

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
    let shift = stats[here.group];
    let offset = stats[here.group + p.groups];
    let rstd = stats[here.group + 2u * p.groups];
    var mine = Sums();
    for (var pixel = here.first; pixel < here.end; pixel += p.step) {
        let at = pixel * p.groups + here.group;
        mine.a += g[at];
        mine.b += g[at] * (((x[at] - shift) - offset) * rstd);
    }
    let all = sum_rows(lane, mine);
    if here.stores {
        let row = 2u * here.chunk * p.groups + here.group;
        partials[row] = all.a;
        partials[row + p.groups] = all.b;
    }
}
#endif

#if STAGE == MERGE_SUMS
override ACC_DWEIGHT: bool;
override ACC_DBIAS: bool;

@group(0) @binding(0) var<storage, read> partials: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> totals: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> dweight: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> dbias: array<vec4<f32>>;
@group(0) @binding(4) var<uniform> p: Params;

@compute @workgroup_size(64)
fn merge_sums(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let workgroup = flat_workgroup(wid, wgs);
    if workgroup >= p.tiles {
        return;
    }
    let here = place(workgroup, lane, p);
    let group = here.group;
    var mine = Sums();
    for (var chunk = here.row; chunk < p.chunks; chunk += rows()) {
        let row = 2u * chunk * p.groups + group;
        mine.a += partials[row];
        mine.b += partials[row + p.groups];
    }
    let all = sum_rows(lane, mine);
    if here.stores {
        totals[group] = all.a;
        totals[group + p.groups] = all.b;
        var dw = all.b;
        var db = all.a;
        if ACC_DWEIGHT {
            dw += dweight[group];
        }
        if ACC_DBIAS {
            db += dbias[group];
        }
        dweight[group] = dw;
        dbias[group] = db;
    }
}
#endif

#if STAGE == GRADIENT
override TRAINING: bool;
override ACC_DX: bool;

#if TEXTURES
#import texture

// Staged for the convolution's kernels anyway.
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
@group(0) @binding(1) var<storage, read> g: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> stats: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> totals: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> dx: array<vec4<f32>>;
@group(0) @binding(5) var<uniform> p: Params;

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
    let shift = stats[here.group];
    let offset = stats[here.group + p.groups];
    let rstd = stats[here.group + 2u * p.groups];
    let scale = stats[here.group + 3u * p.groups];
    let mean_g = totals[here.group] / f32(p.pixels);
    let mean_gx = totals[here.group + p.groups] / f32(p.pixels);
    for (var pixel = here.first; pixel < here.end; pixel += p.step) {
        let at = pixel * p.groups + here.group;
        var d = g[at];
        if TRAINING {
            d = (d - mean_g) - (((ld_x(at) - shift) - offset) * rstd) * mean_gx;
        }
        d *= scale;
        if ACC_DX {
            d += dx[at];
        }
        dx[at] = d;
    }
}
#endif
