// Global average pooling.
//
//   forward    y[n, c] = (sum of x[n, c, i, j] over i, j) / area          summed in row-major order
//   backward   dx[n, c, i, j] = dy[n, c] / area                           (+ dx where ACC is set)
//
// x, dx: [n][area][c/4] vec4, area = h * w. y, dy: [n][c/4] vec4, `len` in all. `groups` = c/4.
// One invocation: one vec4 of y (or dy) and its `area` vec4s of x (or dx); neighbours have neighbouring channels.

#import elementwise

struct Params {
    len: u32,
    groups: u32,
    area: u32,
}

@group(0) @binding(2) var<uniform> p: Params;

// Index in x of the first position of vec4 `i` of y.
fn first_position(i: u32) -> u32 {
    return (i / p.groups) * p.area * p.groups + i % p.groups;
}

#if BACKWARD
override ACC: bool;

@group(0) @binding(0) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> dx: array<vec4<f32>>;

fn element(i: u32) {
    let first = first_position(i);
    let d = dy[i] / f32(p.area);
    for (var k = 0u; k < p.area; k++) {
        let at = first + k * p.groups;
        if ACC {
            dx[at] += d;
        } else {
            dx[at] = d;
        }
    }
}
#else
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;

fn element(i: u32) {
    let first = first_position(i);
    var sum = vec4<f32>();
    for (var k = 0u; k < p.area; k++) {
        sum += x[first + k * p.groups];
    }
    y[i] = sum / f32(p.area);
}
#endif
