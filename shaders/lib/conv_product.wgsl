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
override ACC: bool;

struct Params {
    rows: u32,   // rows of C in one part
    parts: u32,  // phases or splits
    pixels: u32, // pixels of y in the batch
    chunk: u32,  // k groups in a split
}

@group(0) @binding(0) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> b: array<vec4<f32>>;

fn ld_a(i: u32) -> vec4<f32> {
    return a[i];
}

fn ld_b(i: u32) -> vec4<f32> {
    return b[i];
}

#if BACKWARD_WEIGHT

@group(0) @binding(2) var<storage, read_write> c: array<vec4<f32>>;
@group(0) @binding(3) var<uniform> p: Params;

fn bias_of(column: u32) -> vec4<f32> {
    return vec4<f32>();
}

#else

// Where there is no bias, something else that is only read is bound in its place.
override HAS_BIAS: bool;

@group(0) @binding(2) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> c: array<vec4<f32>>;
@group(0) @binding(4) var<uniform> p: Params;

fn bias_of(column: u32) -> vec4<f32> {
    if HAS_BIAS {
        return bias[column];
    }
    return vec4<f32>();
}

#endif

// Where the window of a pixel begins: the first row of its image, then row and column within the image.
struct Pixel {
    image: u32,
    y: i32,
    x: i32,
}

// Where in a window to look, and in which channel quadruple.
struct Tap {
    y: i32,
    x: i32,
    channel: u32,
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

fn tap_at(k: u32, part: u32) -> Tap {
    let across = max(phase_of(part).taps_x, 1u);
    let tap = k / Y_C4;
    return Tap(-i32(tap / across), -i32(tap % across), k % Y_C4);
}

fn load_a(pixel: Pixel, tap: Tap) -> vec4<f32> {
    let y = u32(pixel.y + tap.y);
    let x = u32(pixel.x + tap.x);
    let inside = y < Y_H && x < Y_W;
    let i = ((pixel.image + y) * Y_W + x) * Y_C4 + tap.channel;
    return select(vec4<f32>(), ld_a(select(0u, i, inside)), inside);
}

// Vec4 number i of a block of B lies along k and belongs to column i of the block.
fn load_b(k: u32, column: u32, i: u32, part: u32) -> vec4<f32> {
    let phase = phase_of(part);
    let across = max(phase.taps_x, 1u);
    let tap = k / Y_C4;
    let ky = phase.ky + tap / across * STRIDE;
    let kx = phase.kx + tap % across * STRIDE;
    return ld_b((((ky * KW + kx) * X_C4 + column) * 4u + i) * Y_C4 + k % Y_C4);
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

fn load_a(pixel: Pixel, tap: Tap) -> vec4<f32> {
    let y = u32(pixel.y + tap.y);
    let x = u32(pixel.x + tap.x);
    let inside = y < X_H && x < X_W;
    let i = ((pixel.image + y) * X_W + x) * X_C4 + tap.channel;
    return select(vec4<f32>(), ld_a(select(0u, i, inside)), inside);
}

fn pixel_at(pixel: u32, part: u32) -> Pixel {
    let y = i32(pixel / Y_W % Y_H * STRIDE) - i32(PAD);
    let x = i32(pixel % Y_W * STRIDE) - i32(PAD);
    return Pixel(pixel / (Y_W * Y_H) * X_H, select(NOWHERE, y, pixel < p.pixels), x);
}

fn tap_at(index: u32, part: u32) -> Tap {
    let tap = index / X_C4;
    return Tap(i32(tap / KW), i32(tap % KW), index % X_C4);
}

#if BACKWARD_WEIGHT

fn k_range(part: u32) -> vec2<u32> {
    return vec2<u32>(part * p.chunk, min((part + 1u) * p.chunk, (p.pixels + 3u) / 4u));
}

// Vec4 number i of a block of B is its row i: a pixel. Behind the last pixel, where A is zero, anything will do.
fn load_b(k: u32, column: u32, i: u32, part: u32) -> vec4<f32> {
    return ld_b(min(k * 4u + i, p.pixels - 1u) * Y_C4 + column);
}

fn row_of(row: u32, part: u32) -> Row {
    return Row(row < p.rows, (part * p.rows + row) * Y_C4);
}

#else

fn k_range(part: u32) -> vec2<u32> {
    return vec2<u32>(0u, KH * KW * X_C4);
}

// Vec4 number i of a block of B is its row i: a tap and a channel of x.
fn load_b(k: u32, column: u32, i: u32, part: u32) -> vec4<f32> {
    return ld_b((k * 4u + i) * Y_C4 + column);
}

fn row_of(row: u32, part: u32) -> Row {
    return Row(row < p.rows, row * Y_C4);
}

#endif
#endif

// A block of B by its rows, from the vec4s that load_b gives.
fn block_b(b0: vec4<f32>, b1: vec4<f32>, b2: vec4<f32>, b3: vec4<f32>) -> mat4x4<f32> {
#if BACKWARD_INPUT
    return transpose(mat4x4<f32>(b0, b1, b2, b3));
#else
    return mat4x4<f32>(b0, b1, b2, b3);
#endif
}

fn store(row: Row, column: u32, product: vec4<f32>) {
    if !row.exists || column >= columns() {
        return;
    }
    var sum = product + bias_of(column);
    if ACC {
        sum += c[row.first + column];
    }
    c[row.first + column] = sum;
}

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
