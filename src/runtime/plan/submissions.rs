//! Cuts a run into submissions, so that none keeps a GPU busy for longer than its operating system allows (two seconds on Windows), and
//! where processes exchange values.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::runtime::graph::Graph;
use crate::runtime::kernel::DeviceKind;
use crate::runtime::op::Cost;
use crate::runtime::plan::BoundDispatch;

/// Rates of the slowest GPU that a submission must not stall: floating-point operations and bytes per second.
const SLOW_GPU: (f64, f64) = (20e9, 4e9);
/// Default limit of a submission in seconds, on the slowest GPU.
const LONGEST: f64 = 0.5;

/// Cuts `dispatches` into ranges of at most `longest` estimated seconds each, and after the nodes in `ends`. A node is never cut, even if it
/// takes longer.
pub(super) fn cut(
    graph: &Graph,
    dispatches: &[BoundDispatch],
    longest: Option<f64>,
    kind: DeviceKind,
    ends: &[usize],
) -> Result<Vec<Range<usize>>> {
    let longest = longest.unwrap_or(match kind {
        DeviceKind::Gpu => LONGEST,
        DeviceKind::Software => f64::INFINITY,
    });
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let (mut seconds, mut last) = (0.0, None);
    for (i, dispatch) in dispatches.iter().enumerate() {
        let before = last.replace(dispatch.node);
        if before != Some(dispatch.node) {
            let missing = || Error::bug(format!("{} belongs to no node", dispatch.label));
            let node = graph.nodes().get(dispatch.node).ok_or_else(missing)?;
            let Cost { flop, bytes } = node.op.cost(&node.pass)?;
            let more = (flop / SLOW_GPU.0).max(bytes / SLOW_GPU.1);
            if ranges.is_empty() || seconds + more > longest || before.is_some_and(|node| ends.contains(&node)) {
                ranges.push(i..i);
                seconds = 0.0;
            }
            seconds += more;
        }
        if let Some(range) = ranges.last_mut() {
            range.end = i + 1;
        }
    }
    Ok(ranges)
}
