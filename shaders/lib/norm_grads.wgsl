// Gradients of the parameters of a norm: dbias = sum of g, dweight = sum of g * xhat (+ dbias, dweight where ACC_* is set).

override ACC_DWEIGHT: bool;
override ACC_DBIAS: bool;

// Merges the chunks' sums of g and g * xhat, which lib/norm_partials.wgsl stored after `header` rows. Requires uniform control flow.
fn merge_partials(here: Place, header: u32) -> Sums {
    var mine = Sums();
#if UNROLLED > 1
    for (var first = here.row; first < p.chunks; first += ${UNROLLED}u * rows()) {
#for u in 0..UNROLLED
        let chunk$u = first + ${u}u * rows();
        let row$u = (header + 2u * min(chunk$u, p.chunks - 1u)) * p.groups + here.group;
        let a$u = select(vec4<f32>(), partials[row$u], chunk$u < p.chunks);
        let b$u = select(vec4<f32>(), partials[row$u + p.groups], chunk$u < p.chunks);
#endfor
#for u in 0..UNROLLED
        mine.a += a$u;
        mine.b += b$u;
#endfor
    }
#else
    for (var chunk = here.row; chunk < p.chunks; chunk += rows()) {
        let row = (header + 2u * chunk) * p.groups + here.group;
        mine.a += partials[row];
        mine.b += partials[row + p.groups];
    }
#endif
    return sum_rows(here, mine);
}

fn store_grads(g: u32, all: Sums) {
    var dw = all.b;
    var db = all.a;
    if ACC_DWEIGHT {
        dw += dweight[g];
    }
    if ACC_DBIAS {
        db += dbias[g];
    }
    dweight[g] = dw;
    dbias[g] = db;
}
