// Convolution for software drivers, where the number of load instructions decides. This file has three variants, one of which uses no
// subgroup operations:
//
//   subgroup_tex      SHUFFLE = 1: subgroup operations, operands in textures
//   subgroup          SHUFFLE = 1: subgroup operations, operands in buffers
//   register_tiled    SHUFFLE = 0: no subgroup operations, operands in buffers
//
// C = A B with the operands of lib/implicit_gemm.wgsl, tiled in registers.
//
// One workgroup of WIDTH invocations computes a tile of C of GROUPS * WIDTH * ROWS rows by 4 * COLUMNS columns. One invocation computes
// ROWS rows at a time (4 by 32 columns, or 8 by 16, 8 or 4) in registers, GROUPS times. The values of a column (bias, norm, sums over
// rows) are loaded and stored once for all groups. Without SHUFFLE there is one group: more would gain little, and SwiftShader's
// compiler takes minutes and gigabytes for the loop over them.
//
// A step of the innermost loop adds 4 k: each invocation loads the ROWS vec4s of its block of A. The COLUMNS blocks of B are the same for
// all invocations. With SHUFFLE, eight invocations load one vec4 each of two blocks and broadcast them. This works for subgroups of 8
// and more, full or not, as invocations 0 to 7 always exist and never return before the others; rows are not exchanged. The values of
// the columns are likewise loaded by one invocation per column and broadcast: on a software driver, a buffer load by all invocations costs as
// much as six texture loads. Within a step the loop over columns is the outer one, so that the accumulators of a column stay in
// registers for its multiply-adds.
//
// Order of summation: k rising, one by one.
//
// PARTIALS (see lib/conv_partials.wgsl) needs subgroups of exactly eight: an invocation sums its rows, group by group, then the sums of
// invocations 0 to 7 are added in that order.

#import grid
#import implicit_gemm
#import conv_partials

#if PARTIALS
// The sum over the eight invocations, in all of them. The indices are constants, because software drivers shuffle those in registers.
fn sum8(v: vec4<f32>) -> vec4<f32> {
    return subgroupShuffle(v, 0u)
#for l in 1..8
        + subgroupShuffle(v, ${l}u)
#endfor
        ;
}
#endif

#if !BACKWARD_WEIGHT && SHUFFLE
// The values that invocation `lane` has loaded.
fn column_of(lane: u32, mine: Column) -> Column {
    return Column(subgroupShuffle(mine.bias, lane), affine_of(lane, mine.norm));
}

fn affine_of(lane: u32, mine: Affine) -> Affine {
    return Affine(
        subgroupShuffle(mine.pivot, lane),
        subgroupShuffle(mine.scale, lane),
        subgroupShuffle(mine.addend, lane),
    );
}
#endif

#if PARTIALS
fn normalized_of(lane: u32, mine: Normalized) -> Normalized {
    return Normalized(
        subgroupShuffle(mine.pivot, lane),
        subgroupShuffle(mine.offset, lane),
        subgroupShuffle(mine.rstd, lane),
    );
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
    if tile.rows * ${TILE_ROWS}u >= p.rows {
        return;
    }
    let last_column = columns() - 1u;
    let column = tile.columns * ${COLUMNS}u;
#if SHUFFLE
    // The invocation loads vec4 `part_b` of every second block of B.
    let part_b = subgroup_lane % 4u;
#for v in 0..(COLUMNS + 1) / 2
    let column_b$v = min(column + ${2 * v}u + subgroup_lane % 8u / 4u, last_column);
#endfor
#endif

#if !BACKWARD_WEIGHT
#if SHUFFLE
    // Invocation l of eight has the values of column l.
    let my_column = min(column + subgroup_lane % 8u, last_column);
    let mine = column_at(my_column, columns());
#if PARTIALS == GRADIENT
    let normalized = normalized_c(my_column, columns());
#endif
#endif
#if PARTIALS
#for v in 0..COLUMNS
    var sum$v = Sum();
#if PARTIALS == STATISTICS
    var pivot$v = vec4<f32>();
#endif
#endfor
#endif
#endif
#if GROUPS > 1
    for (var g = 0u; g < ${GROUPS}u; g++) {
    let group = (tile.rows * ${GROUPS}u + g) * ${WIDTH}u + lane;
#else
    let group = tile.rows * ${WIDTH}u + lane;
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
#for v in 0..COLUMNS
    {
        let at = column + ${v}u;
#if SHUFFLE
        let finish = column_of(${v}u, mine);
#else
        let finish = column_at(min(at, last_column), columns());
#endif
#for r in 0..ROWS
        let live$r = row$r.exists && at <= last_column;
        let i$r = select(0u, row$r.first + at, live$r);
        let x$r = aux_at(i$r);
        let c$r = finished(acc${r}_$v, i$r, x$r, finish);
        if live$r {
            c[i$r] = c$r;
        }
#endfor
#if PARTIALS == STATISTICS
        pivot$v = select(pivot$v, subgroupShuffle(c0, 0u), vec4<bool>(g == 0u));
#for r in 0..ROWS
        sum$v = plus_statistics(sum$v, select(vec4<f32>(), c$r - pivot$v, vec4<bool>(row$r.exists)));
#endfor
#endif
#if PARTIALS == GRADIENT
        let of_column = normalized_of(${v}u, normalized);
#for r in 0..ROWS
        sum$v = plus_gradient(sum$v, select(vec4<f32>(), c$r, vec4<bool>(live$r)), x$r, of_column);
#endfor
#endif
    }
#endfor
#if GROUPS > 1
    }
#endif

#if PARTIALS
    // Invocation l stores the sums of column l.
    var all = Sum();
    var pivot = vec4<f32>();
#for v in 0..COLUMNS
    {
        let sum = Sum(sum8(sum$v.a), sum8(sum$v.b));
        if lane == ${v}u {
            all = sum;
#if PARTIALS == STATISTICS
            pivot = pivot$v;
#endif
        }
    }
#endfor
    if lane < ${COLUMNS}u && column + lane <= last_column {
#if PARTIALS == STATISTICS
        let found = moments(all, f32(min(p.rows - tile.rows * ${TILE_ROWS}u, ${TILE_ROWS}u)));
        store_statistics(tile, column + lane, pivot, found.a, found.b);
#else
        store_gradient(tile, column + lane, all);
#endif
    }
#endif
}
#endif
