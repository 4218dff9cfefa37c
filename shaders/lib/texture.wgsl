// Tensors as textures: vec4 i of a tensor is texel (i % 512, i / 512). On the host: TEXTURE_WIDTH in src/runtime/kernel/mod.rs, and the
// copies in src/runtime/plan/texture_cache.rs.

fn texel(i: u32) -> vec2<u32> {
    return vec2<u32>(i & 511u, i >> 9u);
}
