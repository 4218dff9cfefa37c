// Stores two partial results of a chunk (see lib/channel_reduce.wgsl) as two rows of [groups] of `partials`, after `header` rows.

fn store_partials(here: Place, header: u32, a: vec4<f32>, b: vec4<f32>) {
    if here.stores {
        let row = (header + 2u * here.chunk) * p.groups + here.group;
        partials[row] = a;
        partials[row + p.groups] = b;
    }
}
