//! What several ranks must agree on, and the description of their devices.

use super::Settings;
use super::shared_step::Share;
use crate::error::{Error, Result};
use crate::runtime::graph::Arena;
use crate::vae::ranks::Ranks;
use crate::vae::runner::Runner;

/// Checks that all ranks train the same model on the same data and devices, from the same weights.
pub(super) fn check_same(ranks: &mut Ranks, settings: &Settings, fingerprint: &str, runner: &mut Runner) -> Result<()> {
    let mut hash = crc32fast::Hasher::new();
    for arena in [Arena::Params, Arena::States, Arena::OptimizerState(0), Arena::OptimizerState(1)] {
        runner.download(arena)?.iter().for_each(|tensor| hash.update(bytemuck::cast_slice(tensor)));
    }
    let mut values = vec![
        ("version of vae-wgpu", crate::VERSION.to_owned()),
        ("data set", fingerprint.to_owned()),
        ("device", runner.describe()),
        ("first step", (runner.step() + 1).to_string()),
    ];
    // One by one, so that the message is short. The same data may be in different places.
    let fields = serde_json::to_value(settings).map_err(Error::bug)?;
    let fields = fields.as_object().into_iter().flatten().filter(|(name, _)| *name != "data");
    let fields: Vec<_> = fields.map(|(name, value)| (format!("setting `{name}`"), value)).collect();
    values.extend(fields.iter().map(|(name, value)| (name.as_str(), value.to_string())));
    values.push(("initial weights", format!("checksum {:08x}", hash.finalize())));
    ranks.check_same(&values)
}

/// Separates the number of ranks from the device of each.
const RANKS_ON: &str = " ranks on ";

/// Describes the devices of all ranks.
pub(super) fn of_ranks(device: &str, share: Share) -> String {
    if share.is_whole() { device.to_owned() } else { format!("{}{RANKS_ON}{device}", share.ranks()) }
}

/// The adapter in what [`of_ranks`] returns.
pub(super) fn adapter(device: &str) -> &str {
    device.split_once(RANKS_ON).map_or(device, |(_, adapter)| adapter)
}
