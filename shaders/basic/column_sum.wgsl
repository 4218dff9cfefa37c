// Sums of columns, in a fixed order: one stage of a bias gradient, or of a sum split into partial sums.
//
//   out[s][j] = sum over i = s, s + splits, s + 2 splits ... < rows of rows_of[i][j]        (+ what is there, where ACC is set)
//
// x: [rows][columns] vec4, out: [splits][columns] vec4. A large sum takes two dispatches: the first with as many splits as
// each of them then has rows, the second with one split.
// One invocation: one vec4 of out, four rows at a time (each of the four has its own sum). One workgroup: 64, columns fastest.

#import grid

struct Params {
    rows: u32,
    columns: u32,
    splits: u32,
}

override ACC: bool;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(2) var<uniform> p: Params;

@compute @workgroup_size(64)
fn column_sum(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = flat_workgroup(wid, wgs) * 64u + lane;
    let stride = p.splits * p.columns;
    let end = p.rows * p.columns;
    if index >= stride {
        return;
    }
    var sum0 = vec4<f32>();
    var sum1 = vec4<f32>();
    var sum2 = vec4<f32>();
    var sum3 = vec4<f32>();
    var i = index;
    // Index arithmetic cannot wrap: a tensor has at most 2^30 numbers, and a stride is at most as long as the tensor.
    while i + 3u * stride < end {
        sum0 += x[i];
        sum1 += x[i + stride];
        sum2 += x[i + 2u * stride];
        sum3 += x[i + 3u * stride];
        i += 4u * stride;
    }
    while i < end {
        sum0 += x[i];
        i += stride;
    }
    var sum = (sum0 + sum1) + (sum2 + sum3);
    if ACC {
        sum += out[index];
    }
    out[index] = sum;
}
