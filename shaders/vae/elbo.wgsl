// Negative evidence lower bound of the VAE per dimension, and its gradients, from which the backward pass starts.
//
//   recon = (0.5 * sum |x - mean|^2 + 0.5 * ln(2 pi) * N * D) / (N * D)            D = c * h * w
//   kl    = 0.5 * sum (mu^2 + exp(2 log_std) - 1 - 2 log_std) / (N * D)
//   total = recon + beta * kl
//   seed_mean    = (mean - x) / (N * D)
//   seed_mu      = beta * mu / (N * D)
//   seed_log_std = beta * (exp(2 log_std) - 1) / (N * D)
//
// x, mean, seed_mean: [n][h][w][c/4] vec4, `len` vec4s in all. h, seed_h: [n][stride] with stride = pad4(2 * latent): mu, then
// log_std, then zeros; `elements` = n * stride. beta: one value. terms: (total, recon, kl, 0).
//
// Two dispatches. `recon`: one workgroup has SPAN vec4s, of which each invocation has every SUM_WIDTH-th. The squares are summed along
// the invocation, then over the workgroup in a tree, into one partial sum. `finish`: one workgroup sums the partial sums and the terms
// of the KL divergence in the same way. The gradients are computed if SEEDS is 1.

#import grid
#import tree_sum
#let SPAN = SUM_WIDTH * ITEMS

struct Params {
    len: u32,
    partials: u32,
    elements: u32,
    stride: u32,
    latent: u32,
    scale: f32, // 1 / (N * D)
}

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> mean: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> sums: array<f32>;
#if SEEDS
@group(0) @binding(3) var<storage, read_write> seed_mean: array<vec4<f32>>;
#endif
@group(0) @binding(${3 + SEEDS}) var<uniform> p: Params;

@compute @workgroup_size(${SUM_WIDTH})
fn recon(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = flat_workgroup(wid, wgs);
    if group >= p.partials {
        return;
    }
    var squares = vec4<f32>();
    let first = group * ${SPAN}u + lane;
    let end = min(first + ${SPAN}u, p.len);
    for (var i = first; i < end; i += ${SUM_WIDTH}u) {
        let d = mean[i] - x[i];
        squares += d * d;
#if SEEDS
        seed_mean[i] = d * p.scale;
#endif
    }
    let sum = tree_sum(lane, squares);
    if lane == 0u {
        sums[group] = (sum.x + sum.y) + (sum.z + sum.w);
    }
}

const HALF_LN_2PI = 0.9189385332046727;

@group(0) @binding(0) var<storage, read> partials: array<f32>;
@group(0) @binding(1) var<storage, read> h: array<f32>;
@group(0) @binding(2) var<storage, read> beta: array<f32>;
@group(0) @binding(3) var<storage, read_write> terms: array<vec4<f32>>;
#if SEEDS
@group(0) @binding(4) var<storage, read_write> seed_h: array<f32>;
#endif
@group(0) @binding(${4 + SEEDS}) var<uniform> q: Params;

@compute @workgroup_size(${SUM_WIDTH})
fn finish(@builtin(local_invocation_index) lane: u32) {
    let kl_weight = beta[0];
    var sum = vec2<f32>(); // squares, KL
    for (var i = lane; i < q.partials; i += ${SUM_WIDTH}u) {
        sum.x += partials[i];
    }
    for (var i = lane; i < q.elements; i += ${SUM_WIDTH}u) {
        let column = i % q.stride;
        var term = 0.0;
        var seed = 0.0;
        if column < q.latent {
            let mu = h[i];
            term = mu * mu;
            seed = mu;
        } else if column < 2u * q.latent {
            let log_std = h[i];
            seed = exp(2.0 * log_std) - 1.0;
            term = seed - 2.0 * log_std;
        }
        sum.y += term;
#if SEEDS
        seed_h[i] = kl_weight * seed * q.scale;
#endif
    }
    let total = tree_sum(lane, vec4<f32>(sum, 0.0, 0.0));
    if lane == 0u {
        let recon = 0.5 * total.x * q.scale + HALF_LN_2PI;
        let kl = 0.5 * total.y * q.scale;
        terms[0] = vec4<f32>(recon + kl_weight * kl, recon, kl, 0.0);
    }
}
