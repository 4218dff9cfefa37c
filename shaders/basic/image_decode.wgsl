// Decoding of 8-bit images.
//
//   forward    y = byte / 127.5 - 1,   division and subtraction rounded as in IEEE 754
//
// WGSL's own division may be off by 2.5 units in the last place, so this kernel computes with integers. In units of 2^-24,
// byte / 127.5 = byte * 2^25 / 255 = byte * 131586 + 2 * byte / 255, because 2^25 = 255 * 131586 + 2. The last term is rounded to
// 0, 1 or 2. From byte 128 on, where the quotient is above 1 and its unit is 2^-23, the sum must also be even. Both are
// min(byte / 64, 2). A test in src/runtime/op/basic/image_decode.rs compares all 256 values.
//
// bytes: [n][channels][area], four to a u32. y: [n][area][groups] vec4, groups = ceil(channels / 4), `len` in all.
// One invocation: one vec4 of y, from four planes of bytes.

#import elementwise

struct Params {
    len: u32,
    channels: u32,
    area: u32,
}

@group(0) @binding(0) var<storage, read> bytes: array<u32>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(2) var<uniform> p: Params;

fn decoded(at: u32) -> f32 {
    let byte = (bytes[at / 4u] >> (8u * (at % 4u))) & 255u;
    return f32(i32(byte * 131586u + min(byte >> 6u, 2u)) - 16777216) * 0x1p-24f;
}

fn element(i: u32) {
    let groups = (p.channels + 3u) / 4u;
    let first = i % groups * 4u;
    let image = i / (groups * p.area);
    let at = (image * p.channels + first) * p.area + (i / groups) % p.area;
    let last = p.channels - first;
    var v = vec4<f32>();
#for k in 0..4
    if ${k}u < last {
        v[$k] = decoded(at + ${k}u * p.area);
    }
#endfor
    y[i] = v;
}
