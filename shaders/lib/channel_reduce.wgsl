// Reductions over the positions of each channel, in a fixed order. The host side is src/runtime/op/norm/channel_reduce.rs.
//
// A tensor [positions][groups] vec4 is cut into chunks of `span` positions and tiles of GROUPS channel groups. A workgroup of LANES
// invocations has one chunk of one tile. Its invocations form LANES / GROUPS rows of GROUPS; neighbours in a row have neighbouring
// channels. On a GPU a row takes every (LANES / GROUPS)th position of the chunk, so that the loads of a workgroup are contiguous. A
// software driver runs the rows one after the other; there each row takes consecutive positions, because a stride costs cache misses.
//
// The workgroup merges its rows and stores a partial result of its chunk. The next dispatch merges the chunks, again row by row, in the
// same order in each workgroup of a tile. Then a row takes every (LANES / GROUPS)th chunk and loads UNROLLED of them at the same time.
//
// LANES is 64, or 256 in the dispatches of GPUs that only merge chunks: their rows are summed in a tree, those of 64 in order. LANES and
// UNROLLED are defines of the importing kernel.
//
// This file contains the entry point. The importing kernel defines `fn run(here: Place)` and the uniform `p`.

#import grid

struct Params {
    positions: u32,
    channels: u32,
    groups: u32,
    tiles: u32,
    chunks: u32,
    span: u32,
    apart: u32, // from the first position of a row to that of the next
    step: u32,  // from a position of a row to the next
    workgroups: u32,
}

override GROUPS: u32;

// The work of an invocation. In the last tile there may be invocations without a channel group: they have no positions and store
// nothing, and their `group` is one that they may read.
struct Place {
    lane: u32,
    chunk: u32,
    row: u32,
    group: u32,
    // Whether it stores the results of its chunk: true in one row.
    stores: bool,
    // Its positions are first, first + step, ... below end.
    first: u32,
    end: u32,
}

fn rows() -> u32 {
    return ${LANES}u / GROUPS;
}

fn place(workgroup: u32, lane: u32) -> Place {
    let chunk = workgroup / p.tiles;
    let row = lane / GROUPS;
    let group = workgroup % p.tiles * GROUPS + lane % GROUPS;
    let live = group < p.groups;
    let first = chunk * p.span + row * p.apart;
    let last = min(chunk * p.span + p.span, p.positions);
    let end = select(0u, select(last, min(last, first + p.apart), p.apart > 1u), live);
    return Place(lane, chunk, row, min(group, p.groups - 1u), live && row == 0u, first, end);
}

// Number of positions of a chunk: `span`, or fewer in the last one.
fn chunk_len(chunk: u32) -> u32 {
    return min(p.span, p.positions - chunk * p.span);
}

// Two sums for each channel of a group.
struct Sums {
    a: vec4<f32>,
    b: vec4<f32>,
}

var<workgroup> row_sums: array<Sums, $LANES>;

// The sums over all rows, valid in all invocations. Requires uniform control flow, and a barrier before a second call.
fn sum_rows(here: Place, mine: Sums) -> Sums {
    row_sums[here.lane] = mine;
    workgroupBarrier();
#if LANES > 64
    // Folds the second half of the rows onto the first until one is left.
    for (var half = ${LANES / 2}u; half >= GROUPS; half /= 2u) {
        if here.lane < half {
            row_sums[here.lane].a += row_sums[here.lane + half].a;
            row_sums[here.lane].b += row_sums[here.lane + half].b;
        }
        workgroupBarrier();
    }
#else
    if here.lane < GROUPS {
        var all = mine;
        for (var other = here.lane + GROUPS; other < ${LANES}u; other += GROUPS) {
            all.a += row_sums[other].a;
            all.b += row_sums[other].b;
        }
        row_sums[here.lane] = all;
    }
    workgroupBarrier();
#endif
    return row_sums[here.lane % GROUPS];
}

@compute @workgroup_size($LANES)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let workgroup = flat_workgroup(wid, wgs);
    if workgroup < p.workgroups {
        run(place(workgroup, lane));
    }
}
