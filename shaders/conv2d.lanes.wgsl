// Convolution for devices on which the number of loads decides: software adapters. Variants `lanes` and `lanes_plain`.
//
// C = A B with the operands of lib/conv_product.wgsl.
//
// One invocation: 4 rows of C by 4 * COLUMNS columns, in registers. One workgroup: WIDTH invocations below each other, all with
// the same columns. No workgroup memory.
// A step of the loop adds 4 k: each lane loads the four vec4s of its block of A. The COLUMNS blocks of B are the same for all
// lanes; with SHUFFLE, eight lanes load one vec4 each of two blocks, and hand them round. That is right for subgroups of 8
// and more, full or not, as lanes 0 to 7 exist and never leave before the others; no data of the rows is exchanged.
// The columns are the outer loop, so that the 4 accumulators of a column stay in registers for its 64 multiply-adds.
//
// Order of summation: k upwards, one by one.

#import grid
#import conv_product

@compute @workgroup_size($WIDTH)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
#if SHUFFLE
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
#endif
) {
    let tile = tile_of(flat_workgroup(wid, wgs), ${COLUMNS}u);
    if tile.rows * ${4 * WIDTH}u >= p.rows {
        return;
    }
    let group = tile.rows * ${WIDTH}u + lane;
    let last_column = columns() - 1u;
    let column = tile.columns * ${COLUMNS}u;
#if BACKWARD_WEIGHT
    let tap = tap_at(group, tile.part);
#else
#for r in 0..4
    let pixel$r = pixel_at(group * 4u + ${r}u, tile.part);
#endfor
#endif
#for v in 0..COLUMNS
#for r in 0..4
    var acc${r}_$v = vec4<f32>();
#endfor
#endfor

    let range = k_range(tile.part);
    for (var k = range.x; k < range.y; k++) {
#if BACKWARD_WEIGHT
#for i in 0..4
        let a$i = load_a(pixel_at(k * 4u + ${i}u, tile.part), tap);
#endfor
        let rows = transpose(mat4x4<f32>(a0, a1, a2, a3));
#else
        let tap = tap_at(k, tile.part);
#for r in 0..4
        let a$r = load_a(pixel$r, tap);
#endfor
        let rows = mat4x4<f32>(a0, a1, a2, a3);
#endif
#if SHUFFLE
#for v in 0..(COLUMNS + 1) / 2
        let pair$v =
            load_b(k, min(column + ${2 * v}u + subgroup_lane % 8u / 4u, last_column), subgroup_lane % 4u, tile.part);
#endfor
#endif
#for v in 0..COLUMNS
        {
#for i in 0..4
#if SHUFFLE
            let b$i = subgroupShuffle(pair${v / 2}, ${v % 2 * 4 + i}u);
#else
            let b$i = load_b(k, min(column + ${v}u, last_column), ${i}u, tile.part);
#endif
#endfor
            let block = block_b(b0, b1, b2, b3);
#for r in 0..4
#for i in 0..4
            acc${r}_$v += rows[$r][$i] * block[$i];
#endfor
#endfor
        }
#endfor
    }

#for r in 0..4
    let row$r = row_of(group * 4u + ${r}u, tile.part);
#for v in 0..COLUMNS
    store(row$r, column + ${v}u, acc${r}_$v);
#endfor
#endfor
}
