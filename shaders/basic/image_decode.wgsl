// Pixels from bytes.
//
//   y = byte / 127.5 - 1,   division and subtraction rounded as IEEE 754 has it
//
// WGSL's own division may be 2.5 units in the last place off, so this is done with whole numbers. In units of 2^-24,
// byte / 127.5 = byte * 2^25 / 255 = byte * 131586 + 2 * byte / 255, as 2^25 = 255 * 131586 + 2. The last term is rounded to
// 0, 1 or 2; from byte 128 on, where the quotient is above 1 and its unit is 2^-23, the sum must be even. Both is
// min(byte / 64, 2). A test in src/op/pixels.rs compares all 256 values.
//
// bytes: [n][channels][area], four to a u32; y: [n][area][groups] vec4, groups = ceil(channels / 4).
// One invocation: one vec4 of y from four planes, `len` in all. One workgroup: 64.

#import grid

struct Params {
    len: u32,
    channels: u32,
    area: u32,
}

@group(0) @binding(0) var<storage, read> bytes: array<u32>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(2) var<uniform> p: Params;

fn pixel(at: u32) -> f32 {
    let byte = (bytes[at / 4u] >> (8u * (at % 4u))) & 255u;
    return f32(i32(byte * 131586u + min(byte >> 6u, 2u)) - 16777216) * 0x1p-24f;
}

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
    let groups = (p.channels + 3u) / 4u;
    let first = i % groups * 4u;
    let image = i / (groups * p.area);
    let at = (image * p.channels + first) * p.area + (i / groups) % p.area;
    let last = p.channels - first;
    var v = vec4<f32>();
#for k in 0..4
    if ${k}u < last {
        v[$k] = pixel(at + ${k}u * p.area);
    }
#endfor
    y[i] = v;
}
