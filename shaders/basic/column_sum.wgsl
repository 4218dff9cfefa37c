// Sums of the columns of a matrix in a fixed order: one stage of a bias gradient, or of any sum that is split into partial sums.
//
//   out[s][j] = sum of x[i][j] over i = s, s + splits, s + 2 splits, ...        (+ out[s][j] where ACC is set)
//
// x: [rows][columns] vec4, `end` vec4s in all. out: [splits][columns] vec4, `len` in all. A long sum takes two dispatches: the first
// with about sqrt(rows) splits, the second with one.
// One invocation: one vec4 of out, with four running sums over every fourth term, which are added at the end. The last terms, fewer than
// four, are added to the first sum.

#import elementwise

struct Params {
    len: u32, // splits * columns
    end: u32, // rows * columns
}

override ACC: bool;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(2) var<uniform> p: Params;

fn element(index: u32) {
    let stride = p.len;
    var sum0 = vec4<f32>();
    var sum1 = vec4<f32>();
    var sum2 = vec4<f32>();
    var sum3 = vec4<f32>();
    var i = index;
    // The index arithmetic cannot wrap: a tensor has at most 2^30 elements, and a stride is at most as long as the tensor.
    while i + 3u * stride < p.end {
        sum0 += x[i];
        sum1 += x[i + stride];
        sum2 += x[i + 2u * stride];
        sum3 += x[i + 3u * stride];
        i += 4u * stride;
    }
#for j in 0..3
    if i + ${j}u * stride < p.end {
        sum0 += x[i + ${j}u * stride];
    }
#endfor
    var sum = (sum0 + sum1) + (sum2 + sum3);
    if ACC {
        sum += out[index];
    }
    out[index] = sum;
}
