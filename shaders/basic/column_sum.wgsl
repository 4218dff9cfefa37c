// Sums of the columns of a matrix in a fixed order: one stage of a bias gradient, or of any sum that is split into partial sums.
//
//   out[s][j] = sum of x[i][j] over i = s, s + splits, s + 2 splits, ...        (+ out[s][j] where ACC is set)
//
// x: [rows][columns] vec4, `end` vec4s in all. out: [splits][columns] vec4, `len` in all. A long sum takes two dispatches: the first
// with about sqrt(rows) splits, the second with one.
// One invocation: one vec4 of out, in the order of lib/column.wgsl.

#import column
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
    var sum = column_total(index, p.len, p.end);
    if ACC {
        sum += out[index];
    }
    out[index] = sum;
}
