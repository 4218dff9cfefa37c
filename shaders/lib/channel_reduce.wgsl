// Columns: reductions over all pixels, for each channel. The host's side is src/op/columns.rs.
//
// A tensor [pixels][groups] vec4 is cut into chunks of `span` pixels and tiles of GROUPS channel groups; a workgroup of 64 has
// one chunk of one tile. Its invocations are ROWS = 64 / GROUPS rows of GROUPS: neighbours have neighbouring channels. On a GPU a
// row takes every ROWS-th pixel of the chunk, so that the workgroup reads one piece of memory at a time. A software driver runs
// the rows one after the other, so there each row takes pixels in succession: with a stride they wait for memory.
// The workgroup merges its rows in order and leaves a partial result for its chunk; the dispatch after it merges the chunks,
// again row by row: every workgroup of a tile does the same in the same order.

struct Params {
    pixels: u32,
    channels: u32,
    groups: u32,
    tiles: u32,
    chunks: u32,
    span: u32,
    apart: u32, // from the first pixel of a row to that of the next
    step: u32,  // from a pixel of a row to the next
}

override GROUPS: u32;

// What an invocation works on. Without a channel group of its own (the last tile's surplus) it has no pixels and must not
// store; `group` is then some group that may be read.
struct Place {
    chunk: u32,
    row: u32,
    group: u32,
    // Whether it stores what belongs to the chunk: one row does.
    stores: bool,
    // Pixels first, first + step, ... below end.
    first: u32,
    end: u32,
}

fn rows() -> u32 {
    return 64u / GROUPS;
}

fn place(workgroup: u32, lane: u32, p: Params) -> Place {
    let chunk = workgroup / p.tiles;
    let row = lane / GROUPS;
    let group = workgroup % p.tiles * GROUPS + lane % GROUPS;
    let live = group < p.groups;
    let first = chunk * p.span + row * p.apart;
    let last = min(chunk * p.span + p.span, p.pixels);
    let end = select(0u, select(last, min(last, first + p.apart), p.apart > 1u), live);
    return Place(chunk, row, min(group, p.groups - 1u), live && row == 0u, first, end);
}

// Two sums for each channel of a group.
struct Sums {
    a: vec4<f32>,
    b: vec4<f32>,
}

var<workgroup> row_sums: array<Sums, 64>;

// The sums over all rows, valid in all invocations. To be called in uniform control flow, a second time behind a barrier.
fn sum_rows(lane: u32, mine: Sums) -> Sums {
    row_sums[lane] = mine;
    workgroupBarrier();
    if lane < GROUPS {
        var all = mine;
        for (var other = lane + GROUPS; other < 64u; other += GROUPS) {
            all.a += row_sums[other].a;
            all.b += row_sums[other].b;
        }
        row_sums[lane] = all;
    }
    workgroupBarrier();
    return row_sums[lane % GROUPS];
}
