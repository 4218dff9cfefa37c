// Constants, sizes and bindings of the convolution kernels: C = A B, see lib/implicit_gemm.wgsl.
//
// The window (KH, KW, STRIDE, PAD) is fixed when the pipeline is created. So are the sizes, unless SIZES is set: then they are Params,
// and one pipeline serves all sizes, because software drivers compile slowly and keep every pipeline's code in memory.
//
// a, b, c: the operands and the result, arrays of vec4s over channels. stats, aux, bias: see lib/conv_fused.wgsl. partials, with SUMS: see
// lib/conv_partials.wgsl. With TEXTURES the tensors that are read most are textures: see lib/texture.wgsl.

override KH: u32;
override KW: u32;
override STRIDE: u32;
override PAD: u32;

struct Params {
    rows: u32,      // rows of C in a part
    phases: u32,    // of backward_input, else 1
    splits: u32,    // of backward_weight and with SPLIT, else 1
    positions: u32, // of y, in the whole batch
    chunk: u32,     // k groups in a split
    x_h: u32,
    x_w: u32,
    x_c4: u32,
    y_h: u32,
    y_w: u32,
    y_c4: u32,
}

#if SIZES
var<private> X_H: u32;
var<private> X_W: u32;
var<private> X_C4: u32;
var<private> Y_H: u32;
var<private> Y_W: u32;
var<private> Y_C4: u32;

// Must be called first.
fn read_sizes() {
    X_H = p.x_h;
    X_W = p.x_w;
    X_C4 = p.x_c4;
    Y_H = p.y_h;
    Y_W = p.y_w;
    Y_C4 = p.y_c4;
}
#else
override X_H: u32;
override X_W: u32;
override X_C4: u32;
override Y_H: u32;
override Y_W: u32;
override Y_C4: u32;
#endif

#if TEXTURES
#import texture

@group(0) @binding(0) var a: texture_storage_2d<rgba32float, read>;
@group(0) @binding(1) var b: texture_storage_2d<rgba32float, read>;
@group(0) @binding(2) var stats: texture_storage_2d<rgba32float, read>;

fn ld_a(i: u32) -> vec4<f32> {
    return textureLoad(a, texel(i));
}

fn ld_b(i: u32) -> vec4<f32> {
    return textureLoad(b, texel(i));
}

fn ld_stats(i: u32) -> vec4<f32> {
    return textureLoad(stats, texel(i));
}

#else

@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> stats: array<vec4<f32>>;

fn ld_a(i: u32) -> vec4<f32> {
    return a[i];
}

fn ld_b(i: u32) -> vec4<f32> {
    return b[i];
}

fn ld_stats(i: u32) -> vec4<f32> {
    return stats[i];
}

#endif
#if BACKWARD_WEIGHT

@group(0) @binding(3) var<storage, read_write> c: array<vec4<f32>>;
@group(0) @binding(4) var<uniform> p: Params;

#else

#if TEXTURES
@group(0) @binding(3) var aux: texture_storage_2d<rgba32float, read>;

fn ld_aux(i: u32) -> vec4<f32> {
    return textureLoad(aux, texel(i));
}
#else
@group(0) @binding(3) var<storage, read> aux: array<vec4<f32>>;

fn ld_aux(i: u32) -> vec4<f32> {
    return aux[i];
}
#endif

@group(0) @binding(4) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> c: array<vec4<f32>>;
#if SUMS
@group(0) @binding(6) var<storage, read_write> partials: array<vec4<f32>>;
@group(0) @binding(7) var<uniform> p: Params;
#else
@group(0) @binding(6) var<uniform> p: Params;
#endif

#endif
