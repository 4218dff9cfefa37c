//! Names that operations and variants had in earlier releases. Run folders and tables of `vae-wgpu tune` may contain them.

use std::borrow::Cow;

/// Returns the current name of an operation, a kernel or a variant. A name that never changed is returned as it is.
#[must_use]
pub fn current_name(name: &str) -> &str {
    match name {
        "columns" => "channel_reduce",
        "lanes" => "subgroup_tex",
        "lanes_buffers" => "subgroup",
        "lanes_plain" => "register_tiled",
        "norm_parts" => "fused_norm",
        "pixels" => "image_decode",
        "rollback" => "restore_states",
        name => name,
    }
}

/// Returns the current form of `op`, `op.pass` or `op.pass shapes`.
#[must_use]
pub fn current_key(key: &str) -> Cow<'_, str> {
    let (op, rest) = key.split_at(key.find('.').unwrap_or(key.len()));
    match current_name(op) {
        current if current == op => Cow::Borrowed(key),
        current => Cow::Owned(format!("{current}{rest}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_names_are_translated_and_others_kept() {
        assert_eq!(["lanes", "naive", "subgroup"].map(current_name), ["subgroup_tex", "naive", "subgroup"]);
        assert_eq!(current_key("pixels.forward [1, 3, 8, 8]"), "image_decode.forward [1, 3, 8, 8]");
        assert_eq!(["rollback", "conv2d.forward"].map(current_key), ["restore_states", "conv2d.forward"]);
    }
}
