//! Sums of the columns of a matrix in a fixed order: bias gradients, and sums that are split into partial sums.

use crate::runtime::kernel::Access::{Read, ReadWrite};
use crate::runtime::kernel::{Bind, Dispatch, Kernel, Lowered, kernel_params};
use crate::runtime::op::basic::elementwise;

/// Up to this many rows are summed by one dispatch.
const ONE_STAGE: usize = 128;

/// Appends the dispatches of `to = sum of the rows of from`, plus the old `to` if `acc`, for a matrix of `rows` rows and `columns`
/// vec4 columns.
pub(crate) fn column_sum(lowered: &mut Lowered, from: Bind, to: Bind, rows: usize, columns: usize, acc: bool) {
    if rows <= ONE_STAGE {
        lowered.dispatches.push(stage(from, to, rows, columns, 1, acc));
    } else {
        let splits = rows.isqrt();
        let partial = lowered.new_scratch(16 * splits * columns);
        lowered.dispatches.push(stage(from, partial, rows, columns, splits, false));
        column_sum(lowered, partial, to, splits, columns, acc);
    }
}

fn stage(from: Bind, to: Bind, rows: usize, columns: usize, splits: usize, acc: bool) -> Dispatch {
    let len = splits * columns;
    let params = Params { len: len as u32, end: (rows * columns) as u32 }.bytes();
    elementwise(&KERNEL, [from, to], len, params).accumulate("ACC", acc)
}

kernel_params! {
    /// See `shaders/basic/column_sum.wgsl`.
    Params { len: u32, end: u32 }
}

/// The kernel of every stage.
pub(crate) static KERNEL: Kernel = Kernel {
    name: "column_sum",
    variant: "vec4",
    file: "basic/column_sum.wgsl",
    source: include_str!("../../../../shaders/basic/column_sum.wgsl"),
    bindings: &[("x", Read), ("out", ReadWrite)],
    params: Params::FIELDS,
    overrides: &["ACC"],
    ..Kernel::DEFAULT
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::kernel::grad;

    #[test]
    fn long_sums_take_stages_of_the_square_root() {
        for (rows, stages) in [(1, 1), (ONE_STAGE, 1), (ONE_STAGE + 1, 2), (16_384, 2), (131_072, 3)] {
            let mut lowered = Lowered::default();
            column_sum(&mut lowered, grad("y").into(), grad("bias").into(), rows, 8, true);
            assert_eq!(lowered.dispatches.len(), stages, "{rows}");
            assert_eq!(lowered.scratch.len(), stages - 1);
            // Only the last stage adds to what is there, and each stage reads what the one before wrote.
            for (i, dispatch) in lowered.dispatches.iter().enumerate() {
                assert_eq!(dispatch.overrides, [("ACC", f64::from(i + 1 == stages))]);
                if i > 0 {
                    assert_eq!(dispatch.bindings[0], lowered.dispatches[i - 1].bindings[1]);
                }
            }
        }
    }
}
