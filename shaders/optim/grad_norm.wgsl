// Global norm of all gradients, and the finite flag of the step.
//
//   norm = (sqrt(sum grads^2), 1 if every gradient, every loss term and the sum are finite else 0, 0, 0)
//
// Finiteness is read from the exponent bits, because compilers may assume that comparisons never see NaN; therefore both buffers are
// loaded as integers. The flag covers every value, because a driver may lose a NaN in the sum. It also covers the sum: finite
// gradients whose squares overflow would make Adam's second moments infinite.
//
// grads: flat, `len` vec4s, zero after the last gradient. terms: (total, recon, kl, mse).
//
// Two dispatches. `partial`: one workgroup has SPAN vec4s, of which each invocation has every SUM_WIDTH-th. The squares are summed
// along the invocation, then over the workgroup in a tree. `finish`: one workgroup sums the partial results in the same way.
// A partial result is (sum of squares, number of invocations that found a value that is not finite).

#import grid
#import tree_sum
#let SPAN = SUM_WIDTH * ITEMS

struct Params {
    len: u32,
    partials: u32,
}

// 1 in each component that is infinite or NaN.
fn not_finite(bits: vec4<u32>) -> vec4<u32> {
    return select(vec4<u32>(), vec4<u32>(1u), (bits & vec4<u32>(0x7f800000u)) == vec4<u32>(0x7f800000u));
}

fn any_component(flags: vec4<u32>) -> f32 {
    return f32((flags.x | flags.y) | (flags.z | flags.w));
}

@group(0) @binding(0) var<storage, read> grads: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> sums: array<vec2<f32>>;
@group(0) @binding(2) var<uniform> p: Params;

@compute @workgroup_size(${SUM_WIDTH})
fn partial(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = flat_workgroup(wid, wgs);
    if group >= p.partials {
        return;
    }
    var squares = vec4<f32>();
    var bad = vec4<u32>();
    let first = group * ${SPAN}u + lane;
    let end = min(first + ${SPAN}u, p.len);
    for (var i = first; i < end; i += ${SUM_WIDTH}u) {
        let bits = grads[i];
        let g = bitcast<vec4<f32>>(bits);
        squares += g * g;
        bad |= not_finite(bits);
    }
    let lane_sum = (squares.x + squares.y) + (squares.z + squares.w);
    let sum = tree_sum(lane, vec4<f32>(lane_sum, any_component(bad), 0.0, 0.0));
    if lane == 0u {
        sums[group] = sum.xy;
    }
}

@group(0) @binding(0) var<storage, read> partials: array<vec2<f32>>;
@group(0) @binding(1) var<storage, read> terms: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> norm: array<vec4<f32>>;
@group(0) @binding(3) var<uniform> q: Params;

@compute @workgroup_size(${SUM_WIDTH})
fn finish(@builtin(local_invocation_index) lane: u32) {
    var sum = vec2<f32>();
    for (var i = lane; i < q.partials; i += ${SUM_WIDTH}u) {
        sum += partials[i];
    }
    let total = tree_sum(lane, vec4<f32>(sum, 0.0, 0.0));
    if lane == 0u {
        let square = bitcast<vec4<u32>>(vec4<f32>(total.x, 0.0, 0.0, 0.0));
        let bad = total.y + any_component(not_finite(terms[0]) | not_finite(square));
        norm[0] = vec4<f32>(sqrt(total.x), select(0.0, 1.0, bad == 0.0), 0.0, 0.0);
    }
}
