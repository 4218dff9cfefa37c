// The ReLU by bits. Compilers may assume that comparisons never see NaN, and make max(y, 0), which drops it, of
// select(y, 0, y <= 0). They may not assume it of integers. The values <= 0 are +0 and, as signed integers, the bits from -0 (0x80000000)
// to -infinity (0xff800000). NaN is outside.

const MINUS_INFINITY: i32 = -8388608;

// 0 where y <= 0, else y. NaN passes.
fn rectified(y: vec4<f32>) -> vec4<f32> {
    return select(y, vec4<f32>(), bitcast<vec4<i32>>(y) <= vec4<i32>(MINUS_INFINITY));
}

// Whether y <= 0; false for NaN.
fn cut_off(y: vec4<f32>) -> vec4<bool> {
    let bits = bitcast<vec4<i32>>(y);
    return (bits <= vec4<i32>(MINUS_INFINITY)) | (bits == vec4<i32>());
}
