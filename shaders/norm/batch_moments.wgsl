// Moments of each channel over n, h and w, and their gradient: the first half of a batch norm whose images are in several processes.
//
//   forward    moments: rows pivot (the channel's first x), offset = mean - pivot, squares = sum of (x - mean)^2, count = n * h * w
//   backward   dx = dmean / count + 2 * dsquares * (x - mean)                            (+ dx where ACC_DX is set)
//              dmean is the row `offset` of dmoments; mean and count are those of `moments`, of all processes by then.
//
// x, dx: [positions][groups] vec4. moments, dmoments: four rows of [groups]. The work is cut into chunks and tiles (see
// lib/channel_reduce.wgsl).
//   STATISTICS    partials: mean and sum of squared deviations of x - pivot, two rows of [groups] for each chunk
//   MERGE         moments, with one workgroup for each tile
//   GRADIENT      dx
// Order of summation: each row along its positions, then the rows of the chunk, then the chunks.

#import channel_reduce
#import kept
#import norm

#let STATISTICS = 0
#let MERGE = 1
#let GRADIENT = 2

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;

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

#if STAGE == MERGE
#import moments

@group(0) @binding(1) var<storage, read> partials: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> moments: array<vec4<f32>>;
@group(0) @binding(3) var<uniform> p: Params;

fn run(here: Place) {
    let g = here.group;
    var mine = Moments();
    for (var chunk = here.row; chunk < p.chunks; chunk += rows()) {
        let row = 2u * chunk * p.groups + g;
        mine = merge(mine, Moments(f32(chunk_len(chunk)), partials[row], partials[row + p.groups]));
    }
    let all = merge_rows(here, mine);
    if here.stores {
        moments[g] = x[g];
        moments[g + p.groups] = all.mean;
        moments[g + 2u * p.groups] = all.squares;
        moments[g + 3u * p.groups] = unpadded(vec4<f32>(f32(p.positions)), g);
    }
}
#endif

#if STAGE == GRADIENT
override ACC_DX: bool;

@group(0) @binding(1) var<storage, read> moments: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> dmoments: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> dx: array<vec4<f32>>;
@group(0) @binding(4) var<uniform> p: Params;

fn run(here: Place) {
    let g = here.group;
    let pivot = moments[g];
    let offset = moments[g + p.groups];
    // The padding of the last group has a count of zero.
    let from_mean = dmoments[g + p.groups] / max(moments[g + 3u * p.groups], vec4<f32>(1.0));
    let from_squares = 2.0 * dmoments[g + 2u * p.groups];
    for (var position = here.first; position < here.end; position += p.step) {
        let at = position * p.groups + g;
        var d = from_mean + from_squares * (kept(x[at] - pivot, p.positions) - offset);
        if ACC_DX {
            d += dx[at];
        }
        dx[at] = d;
    }
}
#endif
