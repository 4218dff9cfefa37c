// Sums of the columns of several matrices in one dispatch: the partial sums of the split weight gradients of many layers, on a GPU.
//
//   out[to + j] = sum of x[from + i * columns + j] over i = 0..rows,   j = 0..columns,   for each matrix
//
// x: the matrices, [rows][columns] vec4 each. out: a range of all gradients, vec4s, of which those of other layers stay as they are. A
// matrix has whole workgroups, numbered from `first`.
// One invocation: one vec4 of out, in the order of lib/column.wgsl. It finds its matrix by bisection.

#import grid
#import column

struct Params {
    count: u32, // matrices
    workgroups: u32,
    // Of matrix m: first, rows, columns, 0 at 2 m, and from, to, 0, 0 at 2 m + 1. `from` and `to` count vec4s.
    matrices: array<vec4<u32>, ${2 * MATRICES}>,
}

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(2) var<uniform> p: Params;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let workgroup = flat_workgroup(wid, wgs);
    if workgroup >= p.workgroups {
        return;
    }
    // The matrix is at or after `low` and before `high`.
    var low = 0u;
    var high = p.count;
    while high - low > 1u {
        let middle = (low + high) / 2u;
        if p.matrices[2u * middle].x <= workgroup {
            low = middle;
        } else {
            high = middle;
        }
    }
    let shape = p.matrices[2u * low];
    let place = p.matrices[2u * low + 1u];
    let column = (workgroup - shape.x) * 64u + lane;
    if column < shape.z {
        out[place.y + column] = column_total(place.x + column, shape.z, place.x + shape.y * shape.z);
    }
}
