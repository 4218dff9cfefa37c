//! What a run of several processes checks before it starts.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::runtime::gpu::AdapterInfo;
use crate::vae::ranks::Ranks;

/// Returns the number of micro-batches of a step that `ranks` processes share: `all`, or `each` in each of them.
///
/// # Errors
/// If the processes cannot have equal blocks of a power of two.
pub(super) fn micro_batches(ranks: usize, each: Option<usize>, all: Option<usize>) -> anyhow::Result<usize> {
    let Some(all) = all else {
        let each = each.unwrap_or(1);
        if !each.is_power_of_two() {
            let what = format!("number of micro-batches of each of {ranks} processes (--accumulate)");
            return Err(Error::argument(what, "a power of two", each).into());
        }
        return Ok(each.saturating_mul(ranks));
    };
    if !(all.is_multiple_of(ranks) && (all / ranks).is_power_of_two()) {
        anyhow::bail!(
            "{ranks} processes cannot share the micro-batches of a step (--micro-batches, which --like and train.toml set): expected {ranks} \
             times a power of two, found {all}. Start another number of processes, or add --accumulate K for a step of K micro-batches in \
             each process"
        );
    }
    Ok(all)
}

/// The place of a rank.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// Number of the machine: that of its first rank.
    node: usize,
    /// Number of the adapter on the machine; `None` is the CPU reference.
    adapter: Option<usize>,
}

/// Returns a warning if ranks of a machine share an adapter. All ranks call this; `adapter` is that of this one, which is on machine `node`.
///
/// # Errors
/// As [`Ranks::gather`].
pub(super) fn shared_adapter(ranks: &mut Ranks, node: usize, adapter: Option<&AdapterInfo>) -> Result<Option<String>> {
    let own = (node as u64, adapter.map(|adapter| adapter.index as u64));
    let all = ranks.gather_patiently(&serde_json::to_vec(&own).map_err(Error::bug)?)?;
    let places = all.iter().map(|message| {
        let (node, adapter): (u64, Option<u64>) = serde_json::from_slice(message).map_err(Error::bug)?;
        Ok(Place { node: node as usize, adapter: adapter.map(|index| index as usize) })
    });
    let places = places.collect::<Result<Vec<_>>>()?;
    Ok(adapter.and_then(|adapter| warning(&places, &adapter.name, adapter.device_type == "cpu")))
}

/// The warning for ranks in these places, if two are in one. `name` is that of an adapter, all of which are of one kind.
fn warning(places: &[Place], name: &str, software: bool) -> Option<String> {
    let mut ranks_of: BTreeMap<&Place, usize> = BTreeMap::new();
    places.iter().filter(|place| place.adapter.is_some()).for_each(|place| *ranks_of.entry(place).or_default() += 1);
    let most = ranks_of.values().copied().max().filter(|&most| most > 1)?;
    Some(if software {
        format!(
            "{most} ranks of a machine run on its processor with {name}, and their threads compete for its cores: set LP_NUM_THREADS to the \
             number of cores for each rank, or start one rank on a machine"
        )
    } else {
        format!(
            "{most} ranks share one adapter, {name}, and take turns on it: start as many ranks on a machine as it has adapters, or name \
             others, such as --device 0,1; `vae-wgpu devices` lists them"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_step_keeps_its_micro_batches_on_any_number_of_processes() {
        assert_eq!([1, 2, 4].map(|ranks| micro_batches(ranks, None, Some(4)).unwrap()), [4; 3]);
        assert_eq!([1, 2, 3].map(|ranks| micro_batches(ranks, Some(2), None).unwrap()), [2, 4, 6]);
        assert_eq!(micro_batches(3, None, None).unwrap(), 3);
        for (ranks, all) in [(2, 1), (4, 2), (3, 4), (2, 6)] {
            let error = micro_batches(ranks, None, Some(all)).unwrap_err().to_string();
            let expected = format!("expected {ranks} times a power of two, found {all}");
            assert!(error.contains(&expected) && error.contains("--accumulate"), "{error}");
        }
        let error = micro_batches(2, Some(3), None).unwrap_err().to_string();
        assert!(error.contains("expected a power of two"), "{error}");
    }

    #[test]
    fn ranks_that_share_an_adapter_are_warned_about() {
        let place = |node, adapter| Place { node, adapter };
        let apart = [place(0, Some(0)), place(0, Some(1)), place(2, Some(0)), place(2, Some(1))];
        assert_eq!(warning(&apart, "Radeon", false), None);
        assert_eq!(warning(&[place(0, None), place(0, None)], "", true), None);
        let shared = [place(0, Some(0)), place(0, Some(1)), place(0, Some(0))];
        let said = warning(&shared, "Radeon", false).unwrap();
        assert!(said.starts_with("2 ranks share one adapter, Radeon,") && said.contains("--device 0,1"), "{said}");
        let said = warning(&shared, "llvmpipe", true).unwrap();
        assert!(said.contains("LP_NUM_THREADS") && !said.contains("--device"), "{said}");
    }
}
