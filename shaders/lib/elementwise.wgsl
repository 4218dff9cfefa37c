// Entry point of kernels whose invocations are independent of each other: invocation i computes element i of `p.len`.
// The importing kernel defines `fn element(i: u32)` and the uniform `p`. One workgroup: 64 consecutive elements.

#import grid

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_workgroup(wid, wgs) * 64u + lane;
    if i < p.len {
        element(i);
    }
}
