// Sum over a workgroup in a fixed order: a binary tree over SUM_WIDTH invocations, the second half folded onto the first
// until one is left. SUM_WIDTH (a power of two) is the importing kernel's define.

var<workgroup> tree: array<vec4<f32>, ${SUM_WIDTH}>;

// The sum of `value` over all invocations, valid in all of them. To be called in uniform control flow.
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
