// The grid: a dispatch of `count` workgroups is folded into x and y, as no dimension may have more than 65,535.
// The host's side is `fold_grid` in src/op/kernel.rs.

// Number of this workgroup in the order x fastest.
fn flat_workgroup(workgroup: vec3<u32>, workgroups: vec3<u32>) -> u32 {
    return workgroup.y * workgroups.x + workgroup.x;
}
