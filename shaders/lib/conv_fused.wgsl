// Prologue and epilogue of a convolution's matrix product: the operations around it, computed as operands are loaded and sums are
// stored, so that no tensor in between is ever stored. `a` and `b` are the operands of the product, `c` is its result.
//
//   NORM       prologue: a is relu(norm(v)), v being the tensor that is bound; `stats` is the norm
//   NORM_B     the same for b
//   HAS_BIAS   epilogue: bias[column] is added
//   RESIDUAL   epilogue: aux, of c's shape, is added: the other branch of a residual block
//   RELU_MASK  epilogue: c is the gradient of relu(norm(aux)), so it is zeroed where norm(aux) <= 0; `stats` is the norm
//   ACC        epilogue: the previous value of c is added
//
// stats: [5][channel groups] vec4: pivot, offset, rstd, scale = rstd * weight, addend = bias - offset * scale. Then
// norm(v) = (v - pivot) * scale + addend. If the mean is much larger than the standard deviation, v - pivot is exact while v * scale would
// lose most digits.
//
// The flags are defines and not overrides, because drivers keep memory in proportion to the source. A binding that no flag uses holds
// another tensor.

#import rectify

// The norm of one channel group.
struct Affine {
    pivot: vec4<f32>,
    scale: vec4<f32>,
    addend: vec4<f32>,
}

// The norm of channel group `group` among `groups`.
fn affine(group: u32, groups: u32) -> Affine {
    return Affine(ld_stats(group), ld_stats(3u * groups + group), ld_stats(4u * groups + group));
}

fn norm(v: vec4<f32>, n: Affine) -> vec4<f32> {
    return (v - n.pivot) * n.scale + n.addend;
}

// relu(norm(v)). NaN stays NaN.
fn activated(v: vec4<f32>, n: Affine) -> vec4<f32> {
    return rectified(norm(v, n));
}

#if !BACKWARD_WEIGHT
// The values that the epilogue needs for a column of c.
struct Column {
    bias: vec4<f32>,
    norm: Affine,
}

// The values of channel group `column` among `columns`; unspecified for flags that are not set.
fn column_at(column: u32, columns: u32) -> Column {
    return Column(
#if HAS_BIAS
        bias[column],
#else
        vec4<f32>(),
#endif
#if RELU_MASK
        affine(column, columns),
#else
        Affine(),
#endif
    );
}

// aux at vec4 i of c.
fn aux_at(i: u32) -> vec4<f32> {
#if RESIDUAL || RELU_MASK
    return ld_aux(i);
#else
    return vec4<f32>();
#endif
}

// The epilogue: the value of vec4 i of c for a sum of products, where x is aux there.
fn finished(sum: vec4<f32>, i: u32, x: vec4<f32>, column: Column) -> vec4<f32> {
    let value = sum
#if HAS_BIAS
        + column.bias
#endif
#if RESIDUAL
        + x
#endif
        ;
#if RELU_MASK
    let masked = select(value, vec4<f32>(), cut_off(norm(x, column.norm)));
#else
    let masked = value;
#endif
    return masked
#if ACC
        + c[i]
#endif
        ;
}
#endif
