// Reparameterization.
//
//   forward    z = mu + exp(log_std) * eps
//   backward   dmu = dz,  dlog_std = dz * (exp(log_std) * eps)            (+ what is there, where ACC is set)
//
// h, dh: rows of `wide` numbers: mu in 0..latent, log_std in latent..2 * latent, then padding.
// eps, z, dz: rows of `narrow` numbers, `latent` of them used. Where mu ends is no multiple of four: all is indexed by number.
// One invocation: one number of what is written, padding included, `len` in all. One workgroup: 64.

#import grid

struct Params {
    len: u32,
    latent: u32,
    wide: u32,
    narrow: u32,
}

@group(0) @binding(0) var<storage, read> h: array<f32>;
@group(0) @binding(1) var<storage, read> eps: array<f32>;
@group(0) @binding(2) var<storage, read_write> z: array<f32>;
@group(0) @binding(3) var<uniform> p: Params;

@compute @workgroup_size(64)
fn forward(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_workgroup(wid, wgs) * 64u + lane;
    if i >= p.len {
        return;
    }
    let column = i % p.narrow;
    var v = 0.0;
    if column < p.latent {
        let mu = (i / p.narrow) * p.wide + column;
        v = h[mu] + exp(h[mu + p.latent]) * eps[i];
    }
    z[i] = v;
}

override ACC: bool;

@group(0) @binding(2) var<storage, read> dz: array<f32>;
@group(0) @binding(3) var<storage, read_write> dh: array<f32>;
@group(0) @binding(4) var<uniform> pb: Params;

@compute @workgroup_size(64)
fn backward(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_workgroup(wid, wgs) * 64u + lane;
    if i >= pb.len {
        return;
    }
    let column = i % pb.wide;
    let row = (i / pb.wide) * pb.narrow;
    var d = 0.0;
    if column < pb.latent {
        d = dz[row + column];
    } else if column < 2u * pb.latent {
        let at = row + column - pb.latent;
        d = dz[at] * (exp(h[i]) * eps[at]);
    }
    if ACC {
        d += dh[i];
    }
    dh[i] = d;
}
