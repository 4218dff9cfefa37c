// Moments of columns: what the rows of a workgroup (see lib/columns.wgsl) found, merged in order.

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
    if lane < GROUPS {
        var all = mine;
        for (var other = lane + GROUPS; other < 64u; other += GROUPS) {
            all = merge(all, row_moments[other]);
        }
        row_moments[lane] = all;
    }
    workgroupBarrier();
    return row_moments[lane % GROUPS];
}
