// Rectified linear unit.
//
//   forward    y  = 0 where x <= 0, else x
//   backward   dx = 0 where x <= 0, else dy        (+ dx where ACC is set)
//
// NaN passes (see lib/rectify.wgsl): a ReLU must not hide an invalid activation.
//
// x, y, dx, dy: [n][h][w][c/4] vec4, any shape; `len` vec4s in all. One invocation: one vec4.

#import elementwise
#import rectify

struct Params {
    len: u32,
}

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;

#if BACKWARD
override ACC: bool;

@group(0) @binding(1) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> dx: array<vec4<f32>>;
@group(0) @binding(3) var<uniform> p: Params;

fn element(i: u32) {
    var d = select(dy[i], vec4<f32>(), cut_off(x[i]));
    if ACC {
        d += dx[i];
    }
    dx[i] = d;
}
#else
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(2) var<uniform> p: Params;

fn element(i: u32) {
    y[i] = rectified(x[i]);
}
#endif
