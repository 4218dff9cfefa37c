// Convolution for GPUs. Variant `tiled`: C = A B with the operands of lib/implicit_gemm.wgsl, tiled in workgroup memory.
//
// One workgroup computes a tile of C of 4 * ROWS rows by 4 * COLUMNS columns. One invocation computes 2 row groups by BLOCK columns of it
// (8 x 8 values, or 8 x 4) in registers. For every 16 k the workgroup loads a tile of A and a tile of B into workgroup memory:
// 16 * (ROWS + COLUMNS + 2) vec4s, at most 15 KiB together with the positions of the rows. Each value that is loaded from there takes part
// in 16 multiply-adds, or 8. Loads are arranged so that neighbouring invocations read neighbouring vec4s, and the odd pitch avoids bank
// conflicts when they store to workgroup memory.
//
// Small tiles, of weight gradients, have too few blocks for the invocations of a subgroup. Then SLICES invocations share a block: each
// multiplies every SLICES-th k group of the 16 k, and at the end the first one adds the sums of the others in order.
//
// Order of summation: k rising, one by one, those of a slice first. With SPLIT a workgroup has one of p.splits ranges of k, and C is one
// matrix of partial sums for each of them.
//
// PARTIALS (see lib/conv_partials.wgsl): each invocation sums its 8 rows. Then one invocation per column sums these sums, in the order of the
// rows, in the workgroup memory of A.

#import grid
#import implicit_gemm
#import conv_partials

#let ACROSS = COLUMNS / BLOCK
#let DOWN = ROWS / 2
// Invocations of a slice, and of the workgroup.
#let SLICE = ACROSS * DOWN
#let LANES = SLICES * SLICE
#let LOADS_A = 16 * ROWS / LANES
#let LOADS_B = (16 * COLUMNS + LANES - 1) / LANES
#let PITCH_A = ROWS + 1
#let PITCH_B = COLUMNS + 1

// Vec4 i of the block at k group g and row group (or column) r is at (i * 4 + g) * PITCH + r.
var<workgroup> tile_a: array<vec4<f32>, ${16 * PITCH_A}>;
var<workgroup> tile_b: array<vec4<f32>, ${16 * PITCH_B}>;
#if !BACKWARD_WEIGHT
// The positions of the tile's rows, kept here to save registers.
var<workgroup> pixels: array<Pixel, ${4 * ROWS}>;
#endif

@compute @workgroup_size($LANES)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tile = tile_of(flat_workgroup(wid, wgs), ${COLUMNS}u);
    if tile.rows * ${4 * ROWS}u >= p.rows {
        return;
    }
    let first_group = tile.rows * ${ROWS}u;
    let first_column = tile.columns * ${COLUMNS}u;
    let last_column = columns() - 1u;

#if BACKWARD_WEIGHT
    let row_group = first_group + lane % ${ROWS}u;
    let tap = tap_at(row_group / X_C4, tile.part);
    let channel = row_group % X_C4;
#else
#for j in 0..16 / COLUMNS
    pixels[lane + ${LANES * j}u] = pixel_at(
        position(first_group * 4u + lane + ${LANES * j}u, height(), width()), tile.part);
#endfor
    workgroupBarrier();
#endif
    // The invocation's place in the tile of C, and the k groups that it multiplies.
    let down = lane % ${SLICE}u / ${ACROSS}u;
    let across = lane % ${ACROSS}u;
    let slice = lane / ${SLICE}u;
#for v in 0..BLOCK
#for r in 0..8
    var acc${r}_$v = vec4<f32>();
#endfor
#endfor

#if SPLIT
    let range = split_range(tile);
#else
    let range = k_range(tile.part);
#endif
    for (var k = range.x; k < range.y; k += 4u) {
#if BACKWARD_WEIGHT
        // Loaded in each round: keeping it would take twelve registers.
        let norm_a = affine_a(channel);
#for j in 0..LOADS_A
        {
            let step = lane / ${ROWS}u + ${LANES / ROWS * j}u;
            tile_a[(step % 4u * 4u + step / 4u) * ${PITCH_A}u + lane % ${ROWS}u] =
                load_a(site_of(pixel_at(position(k * 4u + step, height(), width()), tile.part), tap), channel, norm_a);
        }
#endfor
#else
        var tap = tap_at((k + lane % 4u) / depth(), tile.part);
        if k + lane % 4u >= range.y {
            tap.y = NOWHERE;
        }
        let channel = (k + lane % 4u) % depth();
        let norm_a = affine_a(channel);
#for j in 0..LOADS_A
        {
            let row = lane / 4u + ${LANES / 4 * j}u;
            tile_a[(row % 4u * 4u + lane % 4u) * ${PITCH_A}u + row / 4u] =
                load_a(site_of(pixels[row], tap), channel, norm_a);
        }
#endfor
#endif
#for j in 0..LOADS_B
        {
            let n = lane + ${LANES * j}u;
#if 16 * COLUMNS < LANES
            if n < ${16 * COLUMNS}u {
#endif
#if BACKWARD_INPUT
            let group = n % 4u;
            let i = n / 4u % 4u;
            let column = n / 16u;
#else
            let group = n / ${4 * COLUMNS}u;
            let i = n / ${COLUMNS}u % 4u;
            let column = n % ${COLUMNS}u;
#endif
            let source = min(first_column + column, last_column);
            let at = min(k + group, range.y - 1u);
#if BACKWARD_WEIGHT
            tile_b[(i * 4u + group) * ${PITCH_B}u + column] = load_b(at, source, i, affine_b(source));
#else
            tile_b[(i * 4u + group) * ${PITCH_B}u + column] =
                ld_b(weights_at(at / depth(), tile.part) + at % depth() * step_b() + base_b(source, i));
#endif
#if 16 * COLUMNS < LANES
            }
#endif
        }
#endfor
        workgroupBarrier();

        for (var group = slice; group < 4u; group += ${SLICES}u) {
#for v in 0..BLOCK
#for i in 0..4
            let b${v}_$i = tile_b[(${4 * i}u + group) * ${PITCH_B}u + across + ${ACROSS * v}u];
#endfor
            let block$v = block_b(b${v}_0, b${v}_1, b${v}_2, b${v}_3);
#endfor
#for h in 0..2
            {
#for i in 0..4
                let a$i = tile_a[(${4 * i}u + group) * ${PITCH_A}u + down + ${DOWN * h}u];
#endfor
#if BACKWARD_WEIGHT
                let rows = transpose(mat4x4<f32>(a0, a1, a2, a3));
#else
                let rows = mat4x4<f32>(a0, a1, a2, a3);
#endif
#for r in 0..4
#for v in 0..BLOCK
#for i in 0..4
                acc${4 * h + r}_$v += rows[$r][$i] * block$v[$i];
#endfor
#endfor
#endfor
            }
#endfor
        }
        workgroupBarrier();
    }

#for r in 0..8
#if BACKWARD_WEIGHT
    let row$r = row_of((first_group + down + ${DOWN * (r / 4)}u) * 4u + ${r % 4}u, tile.part);
#else
    let row$r = row_of(position((first_group + down + ${DOWN * (r / 4)}u) * 4u + ${r % 4}u, height(), width()), tile.part);
#endif
#endfor
#if BACKWARD_WEIGHT
#if SLICES > 1
#for r in 0..8
#for v in 0..BLOCK
    tile_a[lane * ${BLOCK}u + ${v}u] = acc${r}_$v;
#endfor
    workgroupBarrier();
    if slice == 0u {
#for s in 1..SLICES
#for v in 0..BLOCK
        acc${r}_$v += tile_a[(lane + ${s * SLICE}u) * ${BLOCK}u + ${v}u];
#endfor
#endfor
    }
    workgroupBarrier();
#endfor
    if slice > 0u {
        return;
    }
#endif
#for r in 0..8
#for v in 0..BLOCK
    store(row$r, first_column + across + ${ACROSS * v}u, acc${r}_$v);
#endfor
#endfor
}
#else
#for v in 0..BLOCK
    let column$v = first_column + across + ${ACROSS * v}u;
    let finish$v = column_at(min(column$v, last_column), columns());
#if PARTIALS == GRADIENT
    let normalized$v = normalized_c(min(column$v, last_column), columns());
#endif
#if PARTIALS
    var sum$v = Sum();
#endif
#for r in 0..8
    if row$r.exists && column$v <= last_column {
#if SPLIT
        let i = tile.split * p.rows * columns() + row$r.first + column$v;
#else
        let i = row$r.first + column$v;
#endif
        let x = aux_at(i);
        acc${r}_$v = finished(acc${r}_$v, i, x, finish$v);
        c[i] = acc${r}_$v;
#if PARTIALS == GRADIENT
        sum$v = plus_gradient(sum$v, acc${r}_$v, x, normalized$v);
#endif
    }
#endfor
#endfor
#if PARTIALS == STATISTICS
    if down == 0u {
#for v in 0..BLOCK
        tile_b[across + ${ACROSS * v}u] = acc0_$v;
#endfor
    }
    workgroupBarrier();
#for v in 0..BLOCK
    let pivot$v = tile_b[across + ${ACROSS * v}u];
#for r in 0..8
    if row$r.exists {
        sum$v = plus_statistics(sum$v, acc${r}_$v - pivot$v);
    }
#endfor
#endfor
#endif
#if PARTIALS
#for v in 0..BLOCK
    tile_a[(down * ${COLUMNS}u + across + ${ACROSS * v}u) * 2u] = sum$v.a;
    tile_a[(down * ${COLUMNS}u + across + ${ACROSS * v}u) * 2u + 1u] = sum$v.b;
#endfor
    workgroupBarrier();
    if lane < ${COLUMNS}u && first_column + lane <= last_column {
        var all = Sum();
        for (var d = 0u; d < ${DOWN}u; d++) {
            all.a += tile_a[(d * ${COLUMNS}u + lane) * 2u];
            all.b += tile_a[(d * ${COLUMNS}u + lane) * 2u + 1u];
        }
#if PARTIALS == STATISTICS
        let rows = f32(min(p.rows - tile.rows * ${4 * ROWS}u, ${4 * ROWS}u));
        let found = moments(all, rows);
        store_statistics(tile, first_column + lane, tile_b[lane], found.a, found.b);
#else
        store_gradient(tile, first_column + lane, all);
#endif
    }
#endif
}
#endif
