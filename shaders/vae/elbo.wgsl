// Negative evidence lower bound of the VAE per dimension, and its gradients, from which the backward pass starts.
//
//   mse   = sum (x - mean)^2 / (N * D)                                             D = c * h * w
//   s2    = 1 for the unit likelihood, max(mse, MIN_VARIANCE) for the optimal one; in evaluation the running variance
//   recon = 0.5 * (ln(2 pi s2) + mse / s2)
//   kl_j  = 0.5 * sum_n (mu_nj^2 + exp(2 log_std_nj) - 1 - 2 log_std_nj) / N       for each latent dimension j
//   kl    = sum_j kl_j / D
//   total = recon + beta * sum_j max(kl_j, free) / D
//
//   seed_mean    = (mean - x) / (N * D * s2)
//   seed_mu      = beta * mu / (N * D)                                             0 where kl_j < free
//   seed_log_std = beta * (exp(2 log_std) - 1) / (N * D)                           0 where kl_j < free
//   variance     = (1 - MOMENTUM) * variance + MOMENTUM * s2                       in training, for the optimal likelihood
//
// x, mean, seed_mean: [n][h][w][c/4] vec4, `len` vec4s in all. h, seed_h: [n][stride] with stride = pad4(2 * latent): mu, then
// log_std, then zeros; `elements` = n * stride. objective: (beta, free, 0, 0), where `free` is in nats. kl_dims: [latent], in nats.
// terms: (total, recon, kl, mse). variance: one value.
//
// Three dispatches, four in training with the optimal likelihood. `squares`: one workgroup has SPAN vec4s, of which each invocation
// has every SUM_WIDTH-th. The squares are summed along the invocation, then over the workgroup in a tree, into one partial sum.
// `divergence`: one workgroup sums one latent dimension over the images in the same way. `finish`: one workgroup sums the partial sums
// and the dimensions in the same way. `gradient`, for the optimal likelihood: one invocation computes one vec4 of seed_mean.
// SEEDS is 1 where the gradients are computed, OPTIMAL is 1 for the optimal likelihood.

#import grid
#import tree_sum
#let SPAN = SUM_WIDTH * ITEMS

struct Params {
    len: u32,
    partials: u32,
    elements: u32,
    images: u32,
    stride: u32,
    latent: u32,
    scale: f32,     // 1 / (N * D)
    per_image: f32, // 1 / N
    per_dim: f32,   // 1 / D
}

// Keeps the optimal likelihood finite where all images are reconstructed exactly: a standard deviation of an eighth of a level.
const MIN_VARIANCE: f32 = 1e-6;

// max(mse, MIN_VARIANCE), but NaN passes: see lib/rectify.wgsl. The bits of floats that are not negative are in the same order.
fn optimal_variance(mse: f32) -> f32 {
    return select(mse, MIN_VARIANCE, bitcast<u32>(mse) < bitcast<u32>(MIN_VARIANCE));
}

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> mean: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> sums: array<f32>;
#if SEEDS
@group(0) @binding(3) var<storage, read_write> seed_mean: array<vec4<f32>>;
#endif
@group(0) @binding(${3 + SEEDS}) var<uniform> p: Params;

@compute @workgroup_size(${SUM_WIDTH})
fn squares(
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

#if SEEDS
@group(0) @binding(2) var<storage, read> losses: array<vec4<f32>>;

@compute @workgroup_size(${SUM_WIDTH})
fn gradient(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_workgroup(wid, wgs) * ${SUM_WIDTH}u + lane;
    if i < p.len {
        seed_mean[i] = (mean[i] - x[i]) * (p.scale / optimal_variance(losses[0].w));
    }
}
#endif

@group(0) @binding(0) var<storage, read> posterior: array<f32>;
@group(0) @binding(1) var<storage, read_write> divergences: array<f32>;
@group(0) @binding(2) var<uniform> r: Params;

@compute @workgroup_size(${SUM_WIDTH})
fn divergence(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let dim = flat_workgroup(wid, wgs);
    if dim >= (r.latent + 3u) / 4u * 4u {
        return;
    }
    var sum = 0.0;
    // Zero in the padding.
    for (var n = lane; dim < r.latent && n < r.images; n += ${SUM_WIDTH}u) {
        let mu = posterior[n * r.stride + dim];
        let log_std = posterior[n * r.stride + r.latent + dim];
        sum += mu * mu + (exp(2.0 * log_std) - 1.0 - 2.0 * log_std);
    }
    let total = tree_sum(lane, vec4<f32>(sum, 0.0, 0.0, 0.0));
    if lane == 0u {
        divergences[dim] = 0.5 * total.x * r.per_image;
    }
}

const LN_2PI = 1.8378770664093453;

@group(0) @binding(0) var<storage, read> partials: array<f32>;
@group(0) @binding(1) var<storage, read> kl_dims: array<f32>;
@group(0) @binding(2) var<storage, read> objective: array<f32>;
@group(0) @binding(3) var<storage, read_write> terms: array<vec4<f32>>;
#if SEEDS
@group(0) @binding(4) var<storage, read> h: array<f32>;
@group(0) @binding(5) var<storage, read_write> seed_h: array<f32>;
#endif
#if OPTIMAL && SEEDS
@group(0) @binding(6) var<storage, read_write> variance: array<f32>;
#endif
#if OPTIMAL && !SEEDS
@group(0) @binding(4) var<storage, read> variance: array<f32>;
#endif
@group(0) @binding(${4 + 2 * SEEDS + OPTIMAL}) var<uniform> q: Params;

#if OPTIMAL && SEEDS
override MOMENTUM: f32;
#endif

@compute @workgroup_size(${SUM_WIDTH})
fn finish(@builtin(local_invocation_index) lane: u32) {
    let beta = objective[0];
    let free = objective[1];
    var sum = vec4<f32>(); // squares, KL, KL that is missing to `free`
    for (var i = lane; i < q.partials; i += ${SUM_WIDTH}u) {
        sum.x += partials[i];
    }
    for (var dim = lane; dim < q.latent; dim += ${SUM_WIDTH}u) {
        let kl = kl_dims[dim];
        sum.y += kl;
        sum.z += max(free - kl, 0.0);
    }
#if SEEDS
    for (var i = lane; i < q.elements; i += ${SUM_WIDTH}u) {
        let column = i % q.stride;
        var seed = 0.0;
        if column < q.latent {
            seed = select(h[i], 0.0, kl_dims[column] < free);
        } else if column < 2u * q.latent {
            seed = select(exp(2.0 * h[i]) - 1.0, 0.0, kl_dims[column - q.latent] < free);
        }
        seed_h[i] = beta * seed * q.scale;
    }
#endif
    let total = tree_sum(lane, sum);
    if lane == 0u {
        let mse = total.x * q.scale;
        let kl = total.y * q.per_dim;
#if OPTIMAL && SEEDS
        let s2 = optimal_variance(mse);
        variance[0] = (1.0 - MOMENTUM) * variance[0] + MOMENTUM * s2;
#endif
#if OPTIMAL && !SEEDS
        let s2 = variance[0];
#endif
#if OPTIMAL
        let recon = 0.5 * (log(s2) + mse / s2 + LN_2PI);
#else
        let recon = 0.5 * mse + 0.5 * LN_2PI;
#endif
        terms[0] = vec4<f32>(recon + beta * (kl + total.z * q.per_dim), recon, kl, mse);
    }
}
