// Keeps a difference from being merged with what is subtracted next. (x - a) - b is exact where x - (a + b) is not, and compilers may make
// one of the other.

// `v` as it is. A compiler cannot see that: `size`, any size among the parameters, is below 2^31, so no bit is set.
fn kept(v: vec4<f32>, size: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(v) | vec4<u32>(size >> 31u));
}
