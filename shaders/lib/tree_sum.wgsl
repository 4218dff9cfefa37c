// Sum over a workgroup of SUM_WIDTH invocations in a fixed order: a tree that folds the second half onto the first until one value is
// left. SUM_WIDTH, a power of two, is a define of the importing kernel.

var<workgroup> tree: array<vec4<f32>, ${SUM_WIDTH}>;

// The sum of `value` over all invocations, valid in all of them. Requires uniform control flow.
fn tree_sum(lane: u32, value: vec4<f32>) -> vec4<f32> {
    workgroupBarrier();
    tree[lane] = value;
    workgroupBarrier();
    for (var half = ${SUM_WIDTH / 2}u; half > 0u; half /= 2u) {
        if lane < half {
            tree[lane] += tree[lane + half];
        }
        workgroupBarrier();
    }
    return tree[0];
}
