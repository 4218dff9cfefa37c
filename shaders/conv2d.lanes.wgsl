// Convolution for devices on which the number of loads decides: software adapters. Variants `lanes` (operands staged in
// textures), `lanes_buffers`, and `lanes_plain` (without subgroup operations).
//
// C = A B with the operands of lib/conv_product.wgsl.
//
// One invocation: ROWS rows of C by 4 * COLUMNS columns, in registers (4 by 32, or 8 by 16 or 4). One workgroup: WIDTH invocations below each other, all with
// the same columns. A step of the innermost loop adds 4 k: each lane loads the ROWS vec4s of its block of A. The COLUMNS blocks of B
// are the same for all lanes; with SHUFFLE, eight lanes load one vec4 each of two blocks, and hand them round. That is right for
// subgroups of 8 and more, full or not, as lanes 0 to 7 exist and never leave before the others; no data of the rows is exchanged.
// The columns are the outer loop within a step, so that the accumulators of a column stay in registers for its multiply-adds.
//
// Order of summation: k upwards, one by one.
//
// PARTIALS (see lib/conv_partials.wgsl) takes subgroups of exactly eight: lanes are summed upwards, then the subgroups in workgroup
// memory.

#import grid
#import conv_product

#import conv_partials

#if PARTIALS
struct Entry {
    shift: vec4<f32>,
    sum: Sum,
}

#let SUBGROUPS = WIDTH / 8

// Those of each column, for each subgroup; and how many rows a subgroup has.
var<workgroup> entries: array<Entry, ${SUBGROUPS * COLUMNS}>;
var<workgroup> counts: array<f32, $SUBGROUPS>;

// The sum over the eight lanes, in all of them. Constant lanes: a software driver shuffles those in registers.
fn sum8(v: vec4<f32>) -> vec4<f32> {
    return subgroupShuffle(v, 0u)
#for l in 1..8
        + subgroupShuffle(v, ${l}u)
#endfor
        ;
}

// Merges the subgroups and stores what belongs to a column.
fn store_partials(tile: Tile, index: u32) {
    let column = tile.columns * ${COLUMNS}u + index;
    if column >= columns() {
        return;
    }
    let first = entries[index];
#if PARTIALS == GRADIENT
    var sum = first.sum;
    for (var s = 1u; s < ${SUBGROUPS}u; s++) {
        sum.a += entries[s * ${COLUMNS}u + index].sum.a;
        sum.b += entries[s * ${COLUMNS}u + index].sum.b;
    }
    store_gradient(tile, column, sum);
#else
    // Chan, Golub and LeVeque's merge, of means relative to the first shift.
    var count = counts[0];
    var mean = first.sum.a;
    var squares = first.sum.b;
    for (var s = 1u; s < ${SUBGROUPS}u; s++) {
        let other = entries[s * ${COLUMNS}u + index];
        let total = count + counts[s];
        let share = counts[s] / max(total, 1.0);
        // Where there are no rows, the shift is no number of the tensor.
        let d = select(vec4<f32>(), (other.shift - first.shift) + other.sum.a - mean, vec4<bool>(counts[s] > 0.0));
        mean += d * share;
        squares += other.sum.b + d * d * (count * share);
        count = total;
    }
    store_statistics(tile, column, first.shift, mean, squares);
#endif
}
#endif

@compute @workgroup_size($WIDTH)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
#if SHUFFLE
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
#endif
) {
    read_sizes();
    let tile = tile_of(flat_workgroup(wid, wgs), ${COLUMNS}u);
    if tile.rows * ${ROWS * WIDTH}u >= p.rows {
        return;
    }
    let group = tile.rows * ${WIDTH}u + lane;
    let last_column = columns() - 1u;
    let column = tile.columns * ${COLUMNS}u;
#if SHUFFLE
    // What the lane loads of B: vec4 number `part_b` of every second block.
    let part_b = subgroup_lane % 4u;
#for v in 0..(COLUMNS + 1) / 2
    let column_b$v = min(column + ${2 * v}u + subgroup_lane % 8u / 4u, last_column);
#endfor
#endif
#for v in 0..COLUMNS
#for r in 0..ROWS
    var acc${r}_$v = vec4<f32>();
#endfor
#endfor

#if BACKWARD_WEIGHT
    let tap = tap_at(group / X_C4, tile.part);
    let channel = group % X_C4;
    let norm_a = affine_a(channel);
#if SHUFFLE
#for v in 0..(COLUMNS + 1) / 2
    let norm_b$v = affine_b(column_b$v);
#endfor
#endif
    let range = k_range(tile.part);
    var pixel = position(range.x * 4u, height(), width());
    for (var k = range.x; k < range.y; k++) {
#for i in 0..4
        let a$i = load_a(site_of(pixel_at(pixel, tile.part), tap), channel, norm_a);
        pixel = next(pixel, height(), width());
#endfor
        let rows = transpose(mat4x4<f32>(a0, a1, a2, a3));
#for r in 0..4
        let row_a$r = rows[$r];
#endfor
#if SHUFFLE
#for v in 0..(COLUMNS + 1) / 2
        let pair$v = load_b(k, column_b$v, part_b, norm_b$v);
#endfor
#endif
#else
    let at0 = position(group * ${ROWS}u, height(), width());
#for r in 1..ROWS
    let at$r = next(at${r - 1}, height(), width());
#endfor
#for r in 0..ROWS
    let pixel$r = pixel_at(at$r, tile.part);
#endfor
#if SHUFFLE
#for v in 0..(COLUMNS + 1) / 2
    let base$v = base_b(column_b$v, part_b);
#endfor
#else
#for v in 0..COLUMNS
#for i in 0..4
    let base${v}x$i = base_b(min(column + ${v}u, last_column), ${i}u);
#endfor
#endfor
#endif
    for (var t = 0u; t < taps(tile.part); t++) {
    let tap = tap_at(t, tile.part);
#for r in 0..ROWS
    let site$r = site_of(pixel$r, tap);
#endfor
    var weights = weights_at(t, tile.part);
    for (var channel = 0u; channel < depth(); channel++) {
        let norm_a = affine_a(channel);
#for r in 0..ROWS
        let row_a$r = load_a(site$r, channel, norm_a);
#endfor
#if SHUFFLE
#for v in 0..(COLUMNS + 1) / 2
        let pair$v = ld_b(weights + base$v);
#endfor
#endif
#endif
#for v in 0..COLUMNS
        {
#if !SHUFFLE && BACKWARD_WEIGHT
            let source = min(column + ${v}u, last_column);
#endif
#for i in 0..4
#if SHUFFLE
            let b$i = subgroupShuffle(pair${v / 2}, ${v % 2 * 4 + i}u);
#else
#if BACKWARD_WEIGHT
            let b$i = load_b(k, source, ${i}u, affine_b(source));
#else
            let b$i = ld_b(weights + base${v}x$i);
#endif
#endif
#endfor
            let block = block_b(b0, b1, b2, b3);
#for r in 0..ROWS
#for i in 0..4
            acc${r}_$v += row_a$r[$i] * block[$i];
#endfor
#endfor
        }
#endfor
#if !BACKWARD_WEIGHT
        weights += step_b();
    }
#endif
    }

#if BACKWARD_WEIGHT
#for r in 0..ROWS
    let row$r = row_of(group * ${ROWS}u + ${r}u, tile.part);
#endfor
#for r in 0..ROWS
#for v in 0..COLUMNS
    store(row$r, column + ${v}u, acc${r}_$v);
#endfor
#endfor
}
#else
#for r in 0..ROWS
    let row$r = row_of(at$r, tile.part);
#endfor
#if PARTIALS
    // Lane l of eight keeps what belongs to column l.
    var mine = Entry();
#endif
#for v in 0..COLUMNS
    {
        let at = column + ${v}u;
        let finish = column_at(min(at, last_column), columns());
#for r in 0..ROWS
        let live$r = row$r.exists && at <= last_column;
        let i$r = select(0u, row$r.first + at, live$r);
        let x$r = aux_at(i$r);
        let c$r = finished(acc${r}_$v, i$r, x$r, finish);
        if live$r {
            c[i$r] = c$r;
        }
#endfor
#if PARTIALS
#if PARTIALS == STATISTICS
        let shift = subgroupShuffle(c0, 0u);
        let so_far0 = Sum();
#for r in 0..ROWS
        let so_far${r + 1} = plus_statistics(so_far$r, select(vec4<f32>(), c$r - shift, vec4<bool>(row$r.exists)));
#endfor
#else
        let shift = vec4<f32>();
        let normalized = normalized_c(min(at, last_column), columns());
        let so_far0 = Sum();
#for r in 0..ROWS
        let so_far${r + 1} = plus_gradient(so_far$r, select(vec4<f32>(), c$r, vec4<bool>(live$r)), x$r, normalized);
#endfor
#endif
        let sum = Sum(sum8(so_far$ROWS.a), sum8(so_far$ROWS.b));
        if lane % 8u == ${v}u {
            mine = Entry(shift, sum);
        }
#endif
    }
#endfor
#if PARTIALS
    let count = sum8(vec4<f32>(0.0
#for r in 0..ROWS
        + f32(row$r.exists)
#endfor
    )).x;
#if PARTIALS == STATISTICS
    // From sums of differences from the shift to mean and squared deviations.
    mine.sum = moments(mine.sum, count);
#endif
    if lane % 8u < ${COLUMNS}u {
        entries[lane / 8u * ${COLUMNS}u + lane % 8u] = mine;
        counts[lane / 8u] = count;
    }
    workgroupBarrier();
    if lane < ${COLUMNS}u {
        store_partials(tile, lane);
    }
#endif
}
#endif
