//! The choice of kernel variants by name.

use crate::error::{Error, Result};
use crate::runtime::kernel::Arg;
use crate::runtime::op::{Op, Pass, current_key, current_name, spec_of};
use crate::runtime::plan::Options;

impl Options {
    /// Returns the variant that [`Options::variants`] names for a pass. An entry for the pass takes precedence over one for the
    /// operation, and that over one for the pass and its shapes ([`key`]). Entries for a convolution also apply to the operation
    /// that it was fused into.
    ///
    /// # Errors
    /// Those of [`key`].
    pub fn variant(&self, op: &dyn Op, pass: &Pass) -> Result<Option<&str>> {
        if self.variants.is_empty() {
            return Ok(None);
        }
        // Keys and variants may be names of earlier releases.
        let get = |wanted: &str| {
            let named = self.variants.iter().find(|(key, _)| current_key(key) == wanted);
            named.map(|(_, variant)| current_name(variant))
        };
        let kinds = [op.kind(), op.unfused_kind()];
        let by_pass = kinds.iter().find_map(|kind| get(&format!("{kind}.{}", pass.name)));
        // Not all passes of an operation have the same variants.
        let has = |variant: &&str| op.variants(pass.name).contains(variant);
        let by_op = || kinds.iter().find_map(|kind| get(kind).filter(has));
        match by_pass.or_else(by_op) {
            Some(variant) => Ok(Some(variant)),
            None => Ok(get(&key(op, pass)?)),
        }
    }
}

/// Returns the key of a variant that was chosen for one shape: the pass with the shapes that it reads and writes.
///
/// # Errors
/// [`Error::Bug`] if the pass names an operand that `op` does not have.
pub fn key(op: &dyn Op, pass: &Pass) -> Result<String> {
    let shapes = |args: &mut dyn Iterator<Item = &Arg>| {
        let shapes = args.map(|arg| Ok(spec_of(op, *arg)?.to_string())).collect::<Result<Vec<_>>>();
        Ok::<_, Error>(shapes?.join(", "))
    };
    let (from, to) = (shapes(&mut pass.reads.iter())?, shapes(&mut pass.writes.iter().chain(&pass.updates))?);
    Ok(format!("{}.{} {from} -> {to}", op.kind(), pass.name))
}
