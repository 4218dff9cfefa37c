// The formulas that the norms share, for one vec4 of channels.
//
// Values are normalized as xhat = ((x - pivot) - offset) * rstd, where pivot is one of the values that are normalized, and
// offset = mean - pivot. If the mean is far above the standard deviation, x - pivot is exact, whereas sums of x * x cancel.

#import kept
#import rectify

override EPS: f32;
override RELU: bool;

struct Norm {
    pivot: vec4<f32>,
    offset: vec4<f32>,
    rstd: vec4<f32>,
}

fn normalized(x: vec4<f32>, n: Norm) -> vec4<f32> {
    return (kept(x - n.pivot, p.channels) - n.offset) * n.rstd;
}

// y = xhat * weight + bias, then the ReLU if there is one.
fn output(xhat: vec4<f32>, weight: vec4<f32>, bias: vec4<f32>) -> vec4<f32> {
    let y = xhat * weight + bias;
    return select(y, rectified(y), vec4<bool>(RELU));
}

// The gradient before the ReLU: dy, or 0 where the ReLU cuts it off. NaN passes.
fn masked(dy: vec4<f32>, xhat: vec4<f32>, weight: vec4<f32>, bias: vec4<f32>) -> vec4<f32> {
    return select(dy, vec4<f32>(), vec4<bool>(RELU) & cut_off(xhat * weight + bias));
}

// `v` with the padding of the last channel group set to zero.
fn unpadded(v: vec4<f32>, group: u32) -> vec4<f32> {
    let channel = 4u * group + vec4<u32>(0u, 1u, 2u, 3u);
    return select(vec4<f32>(), v, channel < vec4<u32>(p.channels));
}

// 1 / sqrt(variance + EPS).
fn inverse_std(variance: vec4<f32>, group: u32) -> vec4<f32> {
    return unpadded(inverseSqrt(variance + EPS), group);
}
