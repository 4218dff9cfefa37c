// A convolution's three kernels as one matrix product C = A B, less the product itself.
//
//                      A    B        C         rows of C                 K, the length of its sums
//   forward            x    weight   y         pixels of y               taps and channels of x
//   backward_input     dy   weight   dx        pixels of dx, by phases   taps of the phase and channels of dy
//   backward_weight    x    dy       dweight   taps and channels of x    pixels of y, by splits
//
// x: [n][X_H][X_W][X_C4], y: [n][Y_H][Y_W][Y_C4] and weight: [KH * KW][4 * X_C4][Y_C4] are vec4s over channels, and so are
// their gradients. A transposed convolution exchanges the first two kernels, a linear layer is a 1x1 convolution of pictures of
// one pixel.
//
// All indices count quadruples, as the product is done in blocks of 4 x 4: row groups, k groups and columns.
//
// An element of A is found by a pixel and a tap: the pixel says where its window begins, the tap where in the window to
// look. The first two kernels have pixels as rows and taps as k, the third has taps as rows and pixels as k. Hence a block of A
// is four vec4s over k in the first two, four vec4s over rows in the third.
//
// A phase of backward_input is the pixels of dx that are equal modulo the stride: they see the same taps, so a phase is a dense
// convolution of stride 1. A split of backward_weight is a range of pixels; C is then one partial sum for each split.
// Phases and splits are called parts.
//
// With TEXTURES the operands that are read often are staged in textures (see lib/texture.wgsl). What happens to operands and sums
// beside the product is in lib/conv_fused.wgsl.

override KH: u32;
override KW: u32;
override STRIDE: u32;
override PAD: u32;
override X_H: u32;
override X_W: u32;
override X_C4: u32;
override Y_H: u32;
override Y_W: u32;
override Y_C4: u32;

struct Params {
    rows: u32,   // rows of C in one part
    parts: u32,  // phases or splits
    pixels: u32, // pixels of y in the batch
    chunk: u32,  // k groups in a split
}

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

#import conv_fused

// Where the window of a pixel begins: the first row of its image, then row and column within the image.
struct Pixel {
    image: u32,
    y: i32,
    x: i32,
}

// Where in a window to look.
struct Tap {
    y: i32,
    x: i32,
}

// Where in A to read, and whether there is anything but zero.
struct Site {
    first: u32,
    inside: bool,
}

// A row outside every image.
const NOWHERE: i32 = -0x40000000;

// A row of C: whether there is one, and its first vec4.
struct Row {
    exists: bool,
    first: u32,
}

#if BACKWARD_INPUT

fn columns() -> u32 {
    return X_C4;
}

// A phase: the first pixel, the first tap and the number of taps that its pixels see.
struct Phase {
    y: u32,
    x: u32,
    ky: u32,
    kx: u32,
    taps_y: u32,
    taps_x: u32,
}

fn phase_of(part: u32) -> Phase {
    let across = min(STRIDE, X_W);
    let y = part / across;
    let x = part % across;
    let ky = (y + PAD) % STRIDE;
    let kx = (x + PAD) % STRIDE;
    return Phase(y, x, ky, kx, (KH + STRIDE - 1u - ky) / STRIDE, (KW + STRIDE - 1u - kx) / STRIDE);
}

fn k_range(part: u32) -> vec2<u32> {
    let phase = phase_of(part);
    return vec2<u32>(0u, phase.taps_y * phase.taps_x * Y_C4);
}

// Tap number j of the phase is ky + j STRIDE, and meets dx at q STRIDE + y in dy at q + (y + PAD) / STRIDE - j.
fn pixel_at(row: u32, part: u32) -> Pixel {
    let height = (X_H + STRIDE - 1u) / STRIDE;
    let width = (X_W + STRIDE - 1u) / STRIDE;
    let phase = phase_of(part);
    let y = i32(row / width % height + (phase.y + PAD) / STRIDE);
    let x = i32(row % width + (phase.x + PAD) / STRIDE);
    return Pixel(row / (width * height) * Y_H, select(NOWHERE, y, row < p.rows), x);
}

fn tap_at(tap: u32, part: u32) -> Tap {
    let across = max(phase_of(part).taps_x, 1u);
    return Tap(-i32(tap / across), -i32(tap % across));
}

// Channel groups of A.
fn depth() -> u32 {
    return Y_C4;
}

fn taps(part: u32) -> u32 {
    let phase = phase_of(part);
    return phase.taps_y * phase.taps_x;
}

// First channel group of A at a tap of a pixel's window.
fn site_of(pixel: Pixel, tap: Tap) -> Site {
    let y = u32(pixel.y + tap.y);
    let x = u32(pixel.x + tap.x);
    let inside = y < Y_H && x < Y_W;
    return Site(select(0u, ((pixel.image + y) * Y_W + x) * Y_C4, inside), inside);
}

// First vec4 of the weights of a tap.
fn weights_at(tap: u32, part: u32) -> u32 {
    let phase = phase_of(part);
    let across = max(phase.taps_x, 1u);
    let ky = phase.ky + tap / across * STRIDE;
    let kx = phase.kx + tap % across * STRIDE;
    return (ky * KW + kx) * X_C4 * 4u * Y_C4;
}

// Vec4 number i of the block of B at channel group `channel` of A lies along k and belongs to column i of the block.
fn load_b(weights: u32, channel: u32, column: u32, i: u32) -> vec4<f32> {
    return ld_b(weights + (column * 4u + i) * Y_C4 + channel);
}

fn row_of(row: u32, part: u32) -> Row {
    let height = (X_H + STRIDE - 1u) / STRIDE;
    let width = (X_W + STRIDE - 1u) / STRIDE;
    let phase = phase_of(part);
    let y = row / width % height * STRIDE + phase.y;
    let x = row % width * STRIDE + phase.x;
    let first = ((row / (width * height) * X_H + y) * X_W + x) * X_C4;
    return Row(row < p.rows && y < X_H && x < X_W, first);
}

#else

fn columns() -> u32 {
    return Y_C4;
}

// Channel groups of A.
fn depth() -> u32 {
    return X_C4;
}

fn taps(part: u32) -> u32 {
    return KH * KW;
}

// First channel group of A at a tap of a pixel's window.
fn site_of(pixel: Pixel, tap: Tap) -> Site {
    let y = u32(pixel.y + tap.y);
    let x = u32(pixel.x + tap.x);
    let inside = y < X_H && x < X_W;
    return Site(select(0u, ((pixel.image + y) * X_W + x) * X_C4, inside), inside);
}

fn pixel_at(pixel: u32, part: u32) -> Pixel {
    let y = i32(pixel / Y_W % Y_H * STRIDE) - i32(PAD);
    let x = i32(pixel % Y_W * STRIDE) - i32(PAD);
    return Pixel(pixel / (Y_W * Y_H) * X_H, select(NOWHERE, y, pixel < p.pixels), x);
}

fn tap_at(tap: u32, part: u32) -> Tap {
    return Tap(i32(tap / KW), i32(tap % KW));
}

#if BACKWARD_WEIGHT

fn k_range(part: u32) -> vec2<u32> {
    return vec2<u32>(part * p.chunk, min((part + 1u) * p.chunk, (p.pixels + 3u) / 4u));
}

// Vec4 number i of a block of B is its row i: a pixel. Behind the last pixel, where A is zero, anything will do. A norm stands
// before B in the weight gradient of a transposed convolution.
fn load_b(k: u32, column: u32, i: u32, n: Affine) -> vec4<f32> {
    let v = ld_b(min(k * 4u + i, p.pixels - 1u) * Y_C4 + column);
#if NORM_B
    return activated(v, n);
#else
    return v;
#endif
}

fn row_of(row: u32, part: u32) -> Row {
    return Row(row < p.rows, (part * p.rows + row) * Y_C4);
}

#else

fn k_range(part: u32) -> vec2<u32> {
    return vec2<u32>(0u, KH * KW * X_C4);
}

// First vec4 of the weights of a tap.
fn weights_at(tap: u32, part: u32) -> u32 {
    return tap * X_C4 * 4u * Y_C4;
}

// Vec4 number i of the block of B at channel group `channel` of A is its row i: a channel of x.
fn load_b(weights: u32, channel: u32, column: u32, i: u32) -> vec4<f32> {
    return ld_b(weights + (channel * 4u + i) * Y_C4 + column);
}

fn row_of(row: u32, part: u32) -> Row {
    return Row(row < p.rows, row * Y_C4);
}

#endif
#endif

// What the product multiplies: A at a site, activated where a norm stands before it.
fn load_a(site: Site, channel: u32, n: Affine) -> vec4<f32> {
    let v = ld_a(site.first + channel);
#if NORM
    return select(vec4<f32>(), activated(v, n), site.inside);
#else
    return select(vec4<f32>(), v, site.inside);
#endif
}

// The norm before A in channel group `channel`; anything where there is none.
fn affine_a(channel: u32) -> Affine {
#if NORM
    return affine(channel, depth());
#else
    return Affine();
#endif
}

// A block of B by its rows, from the vec4s that load_b gives.
fn block_b(b0: vec4<f32>, b1: vec4<f32>, b2: vec4<f32>, b3: vec4<f32>) -> mat4x4<f32> {
#if BACKWARD_INPUT
    return transpose(mat4x4<f32>(b0, b1, b2, b3));
#else
    return mat4x4<f32>(b0, b1, b2, b3);
#endif
}

#if BACKWARD_WEIGHT
fn affine_b(column: u32) -> Affine {
#if NORM_B
    return affine(column, columns());
#else
    return Affine();
#endif
}

fn store(row: Row, column: u32, product: vec4<f32>) {
    if !row.exists || column >= columns() {
        return;
    }
    let i = row.first + column;
#if ACC
    c[i] += product;
#else
    c[i] = product;
#endif
}
#endif

// What a workgroup computes: a tile of C, in one part.
struct Tile {
    rows: u32,
    part: u32,
    columns: u32,
}

// Neighbours share rows of A.
fn tile_of(workgroup: u32, tile_columns: u32) -> Tile {
    let across = (columns() + tile_columns - 1u) / tile_columns;
    let row_part = workgroup / across;
    return Tile(row_part / p.parts, row_part % p.parts, workgroup % across);
}
