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
// What a flag does not ask for has something else bound that is only read.

override NORM: bool;
override ACC: bool;

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
override HAS_BIAS: bool;
override RESIDUAL: bool;
override GATE: bool;

// The norm behind c in channel group `column` of `columns`; anything where there is none.
fn affine_c(column: u32, columns: u32) -> Affine {
    if GATE {
        return affine(column, columns);
    }
    return Affine();
}

// What of aux belongs to vec4 i of c.
fn aux_at(i: u32) -> vec4<f32> {
    if RESIDUAL || GATE {
        return ld_aux(i);
    }
    return vec4<f32>();
}

// What is to be stored at vec4 i of c, which belongs to `column`, for a sum of products; `x` and `n` are aux and norm there.
fn finished(sum: vec4<f32>, i: u32, column: u32, x: vec4<f32>, n: Affine) -> vec4<f32> {
    var value = sum;
    if HAS_BIAS {
        value += bias[column];
    }
    if RESIDUAL {
        value += x;
    }
    if GATE {
        value = select(value, vec4<f32>(), norm(x, n) <= vec4<f32>());
    }
    if ACC {
        value += c[i];
    }
    return value;
}
#endif
