// Residual add.
//
//   forward    y = a + b        (+ y where ACC is set)
//
// a, b, y: [n][h][w][c/4] vec4, any shape; `len` vec4s in all. One invocation: one vec4.

#import elementwise

struct Params {
    len: u32,
}

override ACC: bool;

@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(3) var<uniform> p: Params;

fn element(i: u32) {
    var sum = a[i] + b[i];
    if ACC {
        sum += y[i];
    }
    y[i] = sum;
}
