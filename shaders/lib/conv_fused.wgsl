// What a convolution does to its operands on the way in and to its sums on the way out, so that no tensor in between is ever
// stored. `a` and `b` are the operands of the product, `c` its result, and:
//
//   NORM       an operand is relu(norm(v)), computed as it is loaded: v is what is bound, `stats` describes the norm
//   HAS_BIAS   bias[column] is added
//   RESIDUAL   aux is added, of c's shape: the other branch of a residual block
//   GATE       c is the gradient of relu(norm(aux)): it passes where that is above zero; `stats` describes the norm
//   ACC        the result is added to what is there
//
// stats: five rows of one number a channel, [5][groups] vec4: shift, offset, rstd, scale = rstd * weight, and
// addend = bias - offset * scale. norm(v) = (v - shift) * scale + addend: near a mean far above the standard deviation v - shift is
// exact, where v * scale would lose everything.
// These flags are defines, not overrides: drivers keep a share of whatever text they were given. What a flag does not ask for has
// something else bound.

// A norm's numbers for one channel group.
struct Affine {
    shift: vec4<f32>,
    scale: vec4<f32>,
    addend: vec4<f32>,
}

// Of channel group `group` among `groups`.
fn affine(group: u32, groups: u32) -> Affine {
    return Affine(ld_stats(group), ld_stats(3u * groups + group), ld_stats(4u * groups + group));
}

fn norm(v: vec4<f32>, n: Affine) -> vec4<f32> {
    return (v - n.shift) * n.scale + n.addend;
}

// relu(norm(v)). NaN passes.
fn activated(v: vec4<f32>, n: Affine) -> vec4<f32> {
    let y = norm(v, n);
    return select(y, vec4<f32>(), y <= vec4<f32>());
}

#if !BACKWARD_WEIGHT
// What belongs to a column of c.
struct Column {
    bias: vec4<f32>,
    norm: Affine,
}

// Of channel group `column` of `columns`; anything for what no flag asks for.
fn column_at(column: u32, columns: u32) -> Column {
    return Column(
#if HAS_BIAS
        bias[column],
#else
        vec4<f32>(),
#endif
#if GATE
        affine(column, columns),
#else
        Affine(),
#endif
    );
}

// What of aux belongs to vec4 i of c.
fn aux_at(i: u32) -> vec4<f32> {
#if RESIDUAL || GATE
    return ld_aux(i);
#else
    return vec4<f32>();
#endif
}

// What is to be stored at vec4 i of c for a sum of products; x is aux there.
fn finished(sum: vec4<f32>, i: u32, x: vec4<f32>, column: Column) -> vec4<f32> {
    let value = sum
#if HAS_BIAS
        + column.bias
#endif
#if RESIDUAL
        + x
#endif
        ;
#if GATE
    let gated = select(value, vec4<f32>(), norm(x, column.norm) <= vec4<f32>());
#else
    let gated = value;
#endif
    return gated
#if ACC
        + c[i]
#endif
        ;
}
#endif
