// Unfolding of the grid. No dimension of a dispatch may have more than 65,535 workgroups, so a dispatch is folded into x and y by
// `fold_grid` in src/runtime/kernel/profile.rs. Surplus workgroups have indices at or above the unfolded count.

// Index of a workgroup in the unfolded grid: x is the fastest dimension.
fn flat_workgroup(workgroup: vec3<u32>, workgroups: vec3<u32>) -> u32 {
    return workgroup.y * workgroups.x + workgroup.x;
}
