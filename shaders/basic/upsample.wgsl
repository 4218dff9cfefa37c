// Nearest-neighbour upsampling by two.
//
//   forward    y[2i + a, 2j + b] = x[i, j]                                          a, b in 0..2
//   backward   dx[i, j] = (dy[2i, 2j] + dy[2i, 2j + 1]) + (dy[2i + 1, 2j] + dy[2i + 1, 2j + 1])
//                                                                                   (+ dx[i, j] where ACC is set)
//
// x, dx: [n][h][w][c/4] vec4, `len` in all, `groups` = c/4, `width` = w. y, dy: [n][2h][2w][c/4] vec4.
// One invocation: one vec4 of x (or dx) and the four of y (or dy) that belong to it.

#import elementwise

struct Params {
    len: u32,
    groups: u32,
    width: u32,
}

@group(0) @binding(2) var<uniform> p: Params;

// Index in y of the upper left of the four vec4s that belong to vec4 `i` of x.
fn upper_left(i: u32) -> u32 {
    let position = i / p.groups;
    let row = position / p.width;
    return (2u * position + 2u * row * p.width) * p.groups + i % p.groups;
}

#if BACKWARD
override ACC: bool;

@group(0) @binding(0) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> dx: array<vec4<f32>>;

fn element(i: u32) {
    let upper = upper_left(i);
    let lower = upper + 2u * p.width * p.groups;
    var d = (dy[upper] + dy[upper + p.groups]) + (dy[lower] + dy[lower + p.groups]);
    if ACC {
        d += dx[i];
    }
    dx[i] = d;
}
#else
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;

fn element(i: u32) {
    let upper = upper_left(i);
    let lower = upper + 2u * p.width * p.groups;
    let v = x[i];
    y[upper] = v;
    y[upper + p.groups] = v;
    y[lower] = v;
    y[lower + p.groups] = v;
}
#endif
