// Reparameterization: a sample of the posterior from standard normal noise.
//
//   forward    z = mu + exp(log_std) * eps
//   backward   dmu = dz,  dlog_std = dz * (exp(log_std) * eps)            (+ dmu, dlog_std where ACC is set)
//
// h, dh: [n][wide] f32: mu in columns 0..latent, log_std in latent..2 * latent, then padding.
// eps, z, dz: [n][narrow] f32, of which `latent` columns are used. mu may end inside a vec4, so tensors are indexed by element.
// One invocation: one element of the tensor that is written, padding included; `len` in all.

#import elementwise

struct Params {
    len: u32,
    latent: u32,
    wide: u32,
    narrow: u32,
}

@group(0) @binding(0) var<storage, read> h: array<f32>;
@group(0) @binding(1) var<storage, read> eps: array<f32>;

#if BACKWARD
override ACC: bool;

@group(0) @binding(2) var<storage, read> dz: array<f32>;
@group(0) @binding(3) var<storage, read_write> dh: array<f32>;
@group(0) @binding(4) var<uniform> p: Params;

fn element(i: u32) {
    let column = i % p.wide;
    let row = (i / p.wide) * p.narrow;
    var d = 0.0;
    if column < p.latent {
        d = dz[row + column];
    } else if column < 2u * p.latent {
        let at = row + column - p.latent;
        d = dz[at] * (exp(h[i]) * eps[at]);
    }
    if ACC {
        d += dh[i];
    }
    dh[i] = d;
}
#else
@group(0) @binding(2) var<storage, read_write> z: array<f32>;
@group(0) @binding(3) var<uniform> p: Params;

fn element(i: u32) {
    let column = i % p.narrow;
    var v = 0.0;
    if column < p.latent {
        let mu = (i / p.narrow) * p.wide + column;
        v = h[mu] + exp(h[mu + p.latent]) * eps[i];
    }
    z[i] = v;
}
#endif
