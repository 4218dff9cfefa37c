//! Sums of the columns of a matrix in a fixed order: bias gradients, and sums that are split into partial sums.

use crate::runtime::kernel::Access::{Read, ReadWrite};
use crate::runtime::kernel::{Arg, Bind, DeviceKind, Dispatch, Field, Kernel, Lowered, kernel_params, tree_levels};
use crate::runtime::op::basic::elementwise;

/// Up to this many rows are summed by one dispatch.
const ONE_STAGE: usize = 128;
/// Rows that an invocation loads at the same time.
const UNROLLED: usize = 4;

/// A matrix whose rows are summed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    pub(crate) from: Bind,
    pub(crate) rows: usize,
    /// In vec4s.
    pub(crate) columns: usize,
}

/// Appends the dispatches of `to = sum of the rows of a matrix`, plus the old `to` if `acc`.
pub(crate) fn column_sum(lowered: &mut Lowered, matrix: Matrix, to: Bind, acc: bool, kind: DeviceKind) {
    let Matrix { from, rows, columns } = matrix;
    if rows <= ONE_STAGE {
        lowered.dispatches.push(stage(from, to, rows, columns, 1, acc));
    } else {
        // A GPU has more invocations than one for each column, and none of them should sum many rows.
        let least = if kind == DeviceKind::Gpu { rows.div_ceil(ONE_STAGE) } else { 1 };
        let splits = rows.isqrt().max(least);
        let partial = lowered.new_scratch(16 * splits * columns);
        lowered.dispatches.push(stage(from, partial, rows, columns, splits, false));
        column_sum(lowered, Matrix { from: partial, rows: splits, columns }, to, acc, kind);
    }
}

/// Returns the matrix and the result of a dispatch that stores the sum of its rows in a tensor; `None` for any other dispatch.
pub(crate) fn stored_sum(dispatch: &Dispatch) -> Option<(Matrix, Arg)> {
    let &[from, Bind::Arg(to)] = dispatch.bindings.as_slice() else { return None };
    if !std::ptr::eq(dispatch.kernel, &raw const KERNEL) || dispatch.accumulate {
        return None;
    }
    let (len, end) = dispatch.params.split_first_chunk::<4>()?;
    let (len, end) = (u32::from_le_bytes(*len) as usize, u32::from_le_bytes(*end.first_chunk()?) as usize);
    Some((Matrix { from, rows: end / len, columns: len }, to))
}

/// Most matrices of one dispatch of [`JOINED`].
pub(crate) const MOST_JOINED: usize = 64;

/// A dispatch that stores the sums of the rows of up to [`MOST_JOINED`] matrices: for each the number of rows and columns, its first vec4 in
/// `from`, and that of the result in `to`.
pub(crate) fn joined_sums(from: Bind, to: Bind, matrices: &[[usize; 4]]) -> Dispatch {
    let mut table = Vec::new();
    let mut workgroups = 0;
    for &[rows, columns, first, result] in matrices {
        table.extend([workgroups, rows, columns, 0, first, result, 0, 0]);
        workgroups += columns.div_ceil(64);
    }
    table.resize(8 * MOST_JOINED, 0);
    let words = [matrices.len(), workgroups, 0, 0].into_iter().chain(table);
    let params = words.flat_map(|word| (word as u32).to_le_bytes()).collect();
    let rows = matrices.iter().map(|[rows, ..]| rows.div_ceil(UNROLLED)).max().unwrap_or(0);
    let bisection = tree_levels(matrices.len().next_power_of_two());
    Dispatch { params, workgroups, ..Dispatch::new(&JOINED, [from, to]).iterations(bisection + rows) }
}

fn stage(from: Bind, to: Bind, rows: usize, columns: usize, splits: usize, acc: bool) -> Dispatch {
    let len = splits * columns;
    let params = Params { len: len as u32, end: (rows * columns) as u32 }.bytes();
    let sum = elementwise(&KERNEL, [from, to], len, params).iterations(rows.div_ceil(splits).div_ceil(UNROLLED));
    sum.accumulate("ACC", acc)
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

/// The kernel that sums the rows of several matrices.
pub(crate) static JOINED: Kernel = Kernel {
    name: "joined_sums",
    file: "basic/joined_sums.wgsl",
    source: include_str!("../../../../shaders/basic/joined_sums.wgsl"),
    defines: &[("MATRICES", MOST_JOINED as i64)],
    params: &[
        Field { name: "count", offset: 0, bytes: 4 },
        Field { name: "workgroups", offset: 4, bytes: 4 },
        Field { name: "matrices", offset: 16, bytes: 32 * MOST_JOINED as u32 },
    ],
    overrides: &[],
    ..KERNEL
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::kernel::grad;

    #[test]
    fn long_sums_take_stages_of_the_square_root() {
        for (rows, stages) in [(1, 1), (ONE_STAGE, 1), (ONE_STAGE + 1, 2), (16_384, 2), (131_072, 3)] {
            let mut lowered = Lowered::default();
            let matrix = Matrix { from: grad("y").into(), rows, columns: 8 };
            column_sum(&mut lowered, matrix, grad("bias").into(), true, DeviceKind::Software);
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
    #[test]
    fn no_invocation_of_a_gpu_sums_many_rows() {
        for rows in [1, 5, 127, 128, 129, 131_072, 1 << 20] {
            let mut lowered = Lowered::default();
            let matrix = Matrix { from: grad("y").into(), rows, columns: 1 };
            column_sum(&mut lowered, matrix, grad("bias").into(), true, DeviceKind::Gpu);
            assert!(lowered.dispatches.len() <= 3);
            assert!(lowered.dispatches.iter().all(|dispatch| dispatch.work.iterations <= 32), "{rows}");
        }
    }
}
