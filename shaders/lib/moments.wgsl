// Moments of columns: what the rows of a workgroup (see lib/columns.wgsl) found, merged in a tree of fixed shape, the second
// half onto the first: its rounding grows with the depth and not with the number of rows.

// Count, mean and sum of squared deviations from the mean of some pixels.
struct Moments {
    count: f32,
    mean: vec4<f32>,
    squares: vec4<f32>,
}

// Chan, Golub and LeVeque's merge. Either may be empty.
fn merge(a: Moments, b: Moments) -> Moments {
    let count = a.count + b.count;
    let share = b.count / max(count, 1.0);
    let d = b.mean - a.mean;
    return Moments(count, a.mean + d * share, a.squares + b.squares + d * d * (a.count * share));
}

var<workgroup> row_moments: array<Moments, 64>;

// The moments of all rows, valid in all invocations.
fn merge_rows(lane: u32, mine: Moments) -> Moments {
    row_moments[lane] = mine;
    workgroupBarrier();
    for (var half = 32u; half >= GROUPS; half /= 2u) {
        if lane < half {
            row_moments[lane] = merge(row_moments[lane], row_moments[lane + half]);
        }
        workgroupBarrier();
    }
    return row_moments[lane % GROUPS];
}
