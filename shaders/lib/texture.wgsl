// Tensors staged in textures: vec4 number i of a tensor lies at (i % 512, i / 512). The host's side is TEXTURE_WIDTH in
// src/op/kernel.rs and the copies in src/gpu/program.rs.

fn texel(i: u32) -> vec2<u32> {
    return vec2<u32>(i & 511u, i >> 9u);
}
