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

// The window is known when the pipeline is made. Sizes are too, where SIZES is 0; otherwise they come with Params, so that one pipeline
// serves all sizes: software drivers take long to compile and keep what they compiled.

override KH: u32;
override KW: u32;
override STRIDE: u32;
override PAD: u32;

struct Params {
    rows: u32,   // rows of C in one part
    parts: u32,  // phases or splits
    pixels: u32, // pixels of y in the batch
    chunk: u32,  // k groups in a split
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

// To be called first.
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

#import conv_fused

// Where the window of a pixel begins: the first row of its image, then row and column within the image.
struct Pixel {
    image: u32,
    y: i32,
    x: i32,
}

// A pixel by its number and its place among those that are numbered; walking from one to the next takes no division.
struct Position {
    number: u32,
    image: u32,
    y: u32,
    x: u32,
}

fn position(number: u32, height: u32, width: u32) -> Position {
    return Position(number, number / (width * height), number / width % height, number % width);
}

fn next(at: Position, height: u32, width: u32) -> Position {
    let row_ends = at.x + 1u == width;
    let image_ends = row_ends && at.y + 1u == height;
    return Position(
        at.number + 1u,
        at.image + u32(image_ends),
        select(at.y + u32(row_ends), 0u, image_ends),
        select(at.x + 1u, 0u, row_ends),
    );
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

// Pixels of a phase in an image.
fn height() -> u32 {
    return (X_H + STRIDE - 1u) / STRIDE;
}

fn width() -> u32 {
    return (X_W + STRIDE - 1u) / STRIDE;
}

// Tap number j of the phase is ky + j STRIDE, and meets dx at q STRIDE + y in dy at q + (y + PAD) / STRIDE - j.
fn pixel_at(at: Position, part: u32) -> Pixel {
    let phase = phase_of(part);
    let y = i32(at.y + (phase.y + PAD) / STRIDE);
    let x = i32(at.x + (phase.x + PAD) / STRIDE);
    return Pixel(at.image * Y_H, select(NOWHERE, y, at.number < p.rows), x);
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

// Where vec4 number i of a column's blocks of B lies behind the first vec4 of a tap's weights, for the first channel group of A; and
// from one channel group to the next. It lies along k and belongs to column i of the block.
fn base_b(column: u32, i: u32) -> u32 {
    return (column * 4u + i) * Y_C4;
}

fn step_b() -> u32 {
    return 1u;
}

fn row_of(at: Position, part: u32) -> Row {
    let phase = phase_of(part);
    let y = at.y * STRIDE + phase.y;
    let x = at.x * STRIDE + phase.x;
    let first = ((at.image * X_H + y) * X_W + x) * X_C4;
    return Row(at.number < p.rows && y < X_H && x < X_W, first);
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

fn height() -> u32 {
    return Y_H;
}

fn width() -> u32 {
    return Y_W;
}

fn pixel_at(at: Position, part: u32) -> Pixel {
    let y = i32(at.y * STRIDE) - i32(PAD);
    let x = i32(at.x * STRIDE) - i32(PAD);
    return Pixel(at.image * X_H, select(NOWHERE, y, at.number < p.pixels), x);
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

// Where vec4 number i of a column's blocks of B lies behind the first vec4 of a tap's weights, for the first channel group of A; and
// from one channel group to the next. It is row i of the block: a channel of x.
fn base_b(column: u32, i: u32) -> u32 {
    return i * Y_C4 + column;
}

fn step_b() -> u32 {
    return 4u * Y_C4;
}

fn row_of(at: Position, part: u32) -> Row {
    return Row(at.number < p.rows, at.number * Y_C4);
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
