// A convolution's three matrix products C = A B, as an implicit GEMM: A is never built, its elements are found in the tensors.
//
//                      A    B        C         rows of C                      k, the summation index
//   forward            x    weight   y         positions of y                 taps and channels of x
//   backward_input     dy   weight   dx        positions of dx, in phases     taps of the phase and channels of dy
//   backward_weight    x    dy       dweight   taps and channels of x         positions of y, split
//
// x: [n][X_H][X_W][X_C4], y: [n][Y_H][Y_W][Y_C4] and weight: [KH * KW][4 * X_C4][Y_C4] are arrays of vec4s over channels, and so are
// their gradients. A linear layer is a 1x1 convolution of images of one pixel.
//
// A transposed convolution is the adjoint of a convolution: its x is y here, and its y is x. It exchanges the first two products: its
// forward is backward_input here, and its backward_input is forward. In the third it exchanges x and dy: A is its dy, and B is its x.
//
// Products are computed in blocks of 4 x 4, so indices count groups of four: row groups, k groups, columns (channel groups of C).
//
// An element of A is found by a position and a tap: the position gives the place where its window begins, the tap a place in the
// window. In the first two products rows are positions and k runs over taps; in the third, rows are taps and k runs over positions. So
// a block of A is four vec4s along k in the first two, and four vec4s along the rows in the third.
//
// A phase of backward_input consists of the positions of dx that are equal modulo the stride. They see the same taps, so a phase is a
// dense convolution of stride 1. Split-K cuts the k of backward_weight into ranges of positions, and C is then one partial sum per split.
// A part is a phase or a split. With SPLIT the k of another product, which has one phase, is cut, too.
//
// lib/conv_interface.wgsl has the bindings, lib/conv_fused.wgsl prologue and epilogue.

#import conv_interface
#import conv_fused

// Origin of the window of a position: number of the first row of its image, then row and column within the image.
struct Pixel {
    image: u32,
    y: i32,
    x: i32,
}

// A position by its number and its coordinates. Stepping to the next one takes no division.
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

// An offset within a window.
struct Tap {
    y: i32,
    x: i32,
}

// The first vec4 of A at a tap of a position's window. Outside of the image A is zero.
struct Site {
    first: u32,
    inside: bool,
}

// A row outside of every image.
const NOWHERE: i32 = -0x40000000;

// A row of C: whether it exists, and its first vec4.
struct Row {
    exists: bool,
    first: u32,
}

#if BACKWARD_INPUT

fn columns() -> u32 {
    return X_C4;
}

// A phase: coordinates of its first position, of the first tap that its positions see, and the numbers of these taps.
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

// Positions of a phase in an image.
fn height() -> u32 {
    return (X_H + STRIDE - 1u) / STRIDE;
}

fn width() -> u32 {
    return (X_W + STRIDE - 1u) / STRIDE;
}

// Tap j of the phase is ky + j STRIDE. It connects dx at q STRIDE + y with dy at q + (y + PAD) / STRIDE - j.
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

// The first channel group of A at a tap of a window.
fn site_of(pixel: Pixel, tap: Tap) -> Site {
    let y = u32(pixel.y + tap.y);
    let x = u32(pixel.x + tap.x);
    let inside = y < Y_H && x < Y_W;
    return Site(select(0u, ((pixel.image + y) * Y_W + x) * Y_C4, inside), inside);
}

// The first vec4 of the weights of a tap.
fn weights_at(tap: u32, part: u32) -> u32 {
    let phase = phase_of(part);
    let across = max(phase.taps_x, 1u);
    let ky = phase.ky + tap / across * STRIDE;
    let kx = phase.kx + tap % across * STRIDE;
    return (ky * KW + kx) * X_C4 * 4u * Y_C4;
}

// Offset of vec4 i of a column's block of B from the first vec4 of a tap's weights, for the first channel group of A; then the step
// from one channel group to the next. Vec4 i runs along k and is column i of the block.
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

// The first channel group of A at a tap of a window.
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
    return Pixel(at.image * X_H, select(NOWHERE, y, at.number < p.positions), x);
}

fn tap_at(tap: u32, part: u32) -> Tap {
    return Tap(i32(tap / KW), i32(tap % KW));
}

#if BACKWARD_WEIGHT

fn k_range(part: u32) -> vec2<u32> {
    return vec2<u32>(part * p.chunk, min((part + 1u) * p.chunk, (p.positions + 3u) / 4u));
}

// Vec4 i of a block of B is its row i, a position. After the last position A is zero, so any value of B will do. In the weight
// gradient of a transposed convolution the norm applies to B.
fn load_b(k: u32, column: u32, i: u32, n: Affine) -> vec4<f32> {
    let v = ld_b(min(k * 4u + i, p.positions - 1u) * Y_C4 + column);
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

// The first vec4 of the weights of a tap.
fn weights_at(tap: u32, part: u32) -> u32 {
    return tap * X_C4 * 4u * Y_C4;
}

// Offset of vec4 i of a column's block of B from the first vec4 of a tap's weights, for the first channel group of A; then the step
// from one channel group to the next. Vec4 i is row i of the block, a channel of x.
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

// A at a site, with the prologue applied.
fn load_a(site: Site, channel: u32, n: Affine) -> vec4<f32> {
    let v = ld_a(site.first + channel);
#if NORM
    return select(vec4<f32>(), activated(v, n), site.inside);
#else
    return select(vec4<f32>(), v, site.inside);
#endif
}

// The norm of channel group `channel` of A; unspecified without NORM.
fn affine_a(channel: u32) -> Affine {
#if NORM
    return affine(channel, depth());
#else
    return Affine();
#endif
}

// A block of B by rows, from its four vec4s in memory order.
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

// The tile of C that a workgroup computes, in one part. With SPLIT that is the only phase, and `split` is the range of k.
struct Tile {
    rows: u32,
    part: u32,
    columns: u32,
    split: u32,
}

fn parts() -> u32 {
#if BACKWARD_WEIGHT
    return p.splits;
#else
    return p.phases;
#endif
}

// Neighbouring workgroups share rows of A.
fn tile_of(workgroup: u32, tile_columns: u32) -> Tile {
    let across = (columns() + tile_columns - 1u) / tile_columns;
    let row_part = workgroup / across;
#if SPLIT
    return Tile(row_part / p.splits, 0u, workgroup % across, row_part % p.splits);
#else
    return Tile(row_part / parts(), row_part % parts(), workgroup % across, 0u);
#endif
}

#if SPLIT
// The k groups of a split.
fn split_range(tile: Tile) -> vec2<u32> {
    let end = k_range(tile.part).y;
    return vec2<u32>(min(tile.split * p.chunk, end), min((tile.split + 1u) * p.chunk, end));
}
#endif
