// Two probes of a device's peak rates.
//
//   multiply_add   eight independent chains a = a * factor + addend in registers, four steps of each in a round
//   copy           copied = source
//
// sums: one vec4 for each invocation. source, copied: `len` vec4s. One workgroup: 64 invocations.
// The chains start from run-time values and their sum is stored, so that the compiler cannot remove any of the work.

#import grid

struct Params {
    len: u32,
    rounds: u32,
    factor: f32,
    addend: f32,
}

@group(0) @binding(0) var<storage, read_write> sums: array<vec4<f32>>;
@group(0) @binding(1) var<uniform> p: Params;

@compute @workgroup_size(64)
fn multiply_add(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_workgroup(wid, wgs) * 64u + lane;
    if i >= p.len {
        return;
    }
    let factor = vec4<f32>(p.factor);
    let addend = vec4<f32>(p.addend);
#for a in 0..8
    var a$a = vec4<f32>(f32(i), f32(lane), ${a + 1}.0, p.factor);
#endfor
    for (var round = 0u; round < p.rounds; round++) {
#for step in 0..4
#for a in 0..8
        a$a = a$a * factor + addend;
#endfor
#endfor
    }
    sums[i] = ((a0 + a1) + (a2 + a3)) + ((a4 + a5) + (a6 + a7));
}

@group(0) @binding(0) var<storage, read> source: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> copied: array<vec4<f32>>;
@group(0) @binding(2) var<uniform> pc: Params;

@compute @workgroup_size(64)
fn copy(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_workgroup(wid, wgs) * 64u + lane;
    if i < pc.len {
        copied[i] = source[i];
    }
}
