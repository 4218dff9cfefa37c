// AdamW as in PyTorch, with the gradients clipped to a global norm.
//
//   g      = grads * min(clip / (norm + 1e-6), 1)              where clip > 0
//   params = params * (1 - lr * weight_decay)
//   m      = beta1 * m + (1 - beta1) * g
//   v      = beta2 * v + (1 - beta2) * g^2
//   params = params - lr / bias_correction1 * m / (sqrt(v) / sqrt(bias_correction2) + eps)
//
// Nothing is written unless the finite flag, norm[1], is 1.
//
// grads, params, m, v: flat, `len` vec4s. norm: (global norm, finite flag, 0, 0). One invocation: one vec4.
// Padding stays zero, because its gradients are zero.

#import elementwise

// The fields of src/runtime/op/optim/step_scalars.rs, in the same order.
struct StepScalars {
    lr: f32,
    bias_correction1: f32,
    bias_correction2: f32,
    weight_decay: f32,
    clip: f32,
}

struct Params {
    len: u32,
    beta1: f32,
    beta2: f32,
    rest1: f32, // 1 - beta1, rounded once
    rest2: f32, // 1 - beta2, rounded once
    eps: f32,
}

@group(0) @binding(0) var<storage, read> grads: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> norm: array<f32>;
@group(0) @binding(2) var<storage, read> hyperparams: StepScalars;
@group(0) @binding(3) var<storage, read_write> params: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> m: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> v: array<vec4<f32>>;
@group(0) @binding(6) var<uniform> p: Params;

fn element(i: u32) {
    if norm[1] != 1.0 {
        return;
    }
    let clip = hyperparams.clip;
    var g = grads[i];
    if clip > 0.0 {
        g *= min(clip / (norm[0] + 1e-6), 1.0);
    }
    let first = p.beta1 * m[i] + p.rest1 * g;
    let second = p.beta2 * v[i] + p.rest2 * (g * g);
    let denominator = sqrt(second) / sqrt(hyperparams.bias_correction2) + p.eps;
    let decayed = params[i] * (1.0 - hyperparams.lr * hyperparams.weight_decay);
    params[i] = decayed - (hyperparams.lr / hyperparams.bias_correction1) * (first / denominator);
    m[i] = first;
    v[i] = second;
}
