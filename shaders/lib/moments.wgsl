// Mean and squared deviations of each channel over the rows of a workgroup (see lib/channel_reduce.wgsl), merged in a tree that folds
// the second half onto the first. Rounding errors grow with the depth of the tree, not with the number of rows.

// Count, mean, and sum of squared deviations from the mean of some positions.
struct Moments {
    count: f32,
    mean: vec4<f32>,
    squares: vec4<f32>,
}

// The parallel update of Chan, Golub and LeVeque. Either argument may be empty.
fn merge(a: Moments, b: Moments) -> Moments {
    let count = a.count + b.count;
    let share = b.count / max(count, 1.0);
    let d = b.mean - a.mean;
    return Moments(count, a.mean + d * share, a.squares + b.squares + d * d * (a.count * share));
}

var<workgroup> row_moments: array<Moments, $LANES>;

// The moments of all rows, valid in all invocations. Requires uniform control flow.
fn merge_rows(here: Place, mine: Moments) -> Moments {
    row_moments[here.lane] = mine;
    workgroupBarrier();
    for (var half = ${LANES / 2}u; half >= GROUPS; half /= 2u) {
        if here.lane < half {
            row_moments[here.lane] = merge(row_moments[here.lane], row_moments[here.lane + half]);
        }
        workgroupBarrier();
    }
    return row_moments[here.lane % GROUPS];
}
