// Convolution by its formula, one vec4 of the result per invocation. Variant `naive`: an independent check of the other variants, and
// the fastest for problems that are too small to fill a tile.
//
//   forward           y[n, oy, ox, o]       = bias[o] + sum over ky, kx, i of x[n, oy S - P + ky, ox S - P + kx, i] w[ky, kx, i, o]
//   backward_input    dx[n, iy, ix, i]      = bias[i] + sum over ky, kx, o of dy[n, oy, ox, o] w[ky, kx, i, o]
//                                             with oy S - P + ky = iy and ox S - P + kx = ix
//   backward_weight   dw[ky, kx, i, o]      = sum over n, oy, ox of x[n, oy S - P + ky, ox S - P + kx, i] dy[n, oy, ox, o]
//
// The bias in backward_input is that of a transposed convolution. lib/conv_fused.wgsl has the rest of prologue and epilogue.
//
// x, dx: [n][X_H][X_W][X_C4] vec4, y, dy: [n][Y_H][Y_W][Y_C4] vec4, weight, dweight: [KH][KW][4 * X_C4][Y_C4] vec4.
// C has `rows` rows: positions of y, positions of dx, or KH * KW * 4 * X_C4. One workgroup computes 64 vec4s, channels fastest, one
// invocation computes one. Each sum is computed in the order in which it is written, indices rising.

#import grid
#import conv_interface
#import conv_fused

// Vec4 i of A, which is in channel group `channel` among `channels`, with the prologue applied.
fn operand_a(i: u32, channel: u32, channels: u32) -> vec4<f32> {
#if NORM
    return activated(ld_a(i), affine(channel, channels));
#else
    return ld_a(i);
#endif
}

#if !BACKWARD_WEIGHT
@compute @workgroup_size(64)
fn forward(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = flat_workgroup(wid, wgs) * 64u + lane;
    let o = index % Y_C4;
    let ox = index / Y_C4 % Y_W;
    let oy = index / (Y_C4 * Y_W) % Y_H;
    let n = index / (Y_C4 * Y_W * Y_H);
    if index >= p.rows * Y_C4 {
        return;
    }
    var sum = vec4<f32>();
    for (var ky = 0u; ky < KH; ky++) {
        for (var kx = 0u; kx < KW; kx++) {
            // Coordinates below zero wrap around and are larger than every size.
            let iy = oy * STRIDE + ky - PAD;
            let ix = ox * STRIDE + kx - PAD;
            if iy < X_H && ix < X_W {
                for (var i = 0u; i < X_C4; i++) {
                    let x = operand_a(((n * X_H + iy) * X_W + ix) * X_C4 + i, i, X_C4);
                    let w = ((ky * KW + kx) * X_C4 + i) * 4u * Y_C4 + o;
                    sum += x.x * ld_b(w);
                    sum += x.y * ld_b(w + Y_C4);
                    sum += x.z * ld_b(w + 2u * Y_C4);
                    sum += x.w * ld_b(w + 3u * Y_C4);
                }
            }
        }
    }
    c[index] = finished(sum, index, aux_at(index), column_at(o, Y_C4));
}

@compute @workgroup_size(64)
fn backward_input(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = flat_workgroup(wid, wgs) * 64u + lane;
    let i = index % X_C4;
    let ix = index / X_C4 % X_W;
    let iy = index / (X_C4 * X_W) % X_H;
    let n = index / (X_C4 * X_W * X_H);
    if index >= p.rows * X_C4 {
        return;
    }
    var sum = vec4<f32>();
    for (var ky = 0u; ky < KH; ky++) {
        for (var kx = 0u; kx < KW; kx++) {
            let oy = (iy + PAD - ky) / STRIDE;
            let ox = (ix + PAD - kx) / STRIDE;
            if oy < Y_H && ox < Y_W && oy * STRIDE + ky == iy + PAD && ox * STRIDE + kx == ix + PAD {
                for (var o = 0u; o < Y_C4; o++) {
                    let dy = operand_a(((n * Y_H + oy) * Y_W + ox) * Y_C4 + o, o, Y_C4);
                    let w = ((ky * KW + kx) * X_C4 + i) * 4u * Y_C4 + o;
                    sum += vec4<f32>(
                        dot(dy, ld_b(w)),
                        dot(dy, ld_b(w + Y_C4)),
                        dot(dy, ld_b(w + 2u * Y_C4)),
                        dot(dy, ld_b(w + 3u * Y_C4)),
                    );
                }
            }
        }
    }
    c[index] = finished(sum, index, aux_at(index), column_at(i, X_C4));
}

#else

// Vec4 i of B, which is in channel group `channel`, with the prologue applied.
fn operand_b(i: u32, channel: u32) -> vec4<f32> {
#if NORM_B
    return activated(ld_b(i), affine(channel, Y_C4));
#else
    return ld_b(i);
#endif
}

@compute @workgroup_size(64)
fn backward_weight(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) wgs: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = flat_workgroup(wid, wgs) * 64u + lane;
    if index >= p.rows * Y_C4 {
        return;
    }
    let o = index % Y_C4;
    let i = index / Y_C4 % (4u * X_C4);
    let kx = index / (Y_C4 * 4u * X_C4) % KW;
    let ky = index / (Y_C4 * 4u * X_C4 * KW);
    var sum = vec4<f32>();
    for (var position = 0u; position < p.positions; position++) {
        let iy = position / Y_W % Y_H * STRIDE + ky - PAD;
        let ix = position % Y_W * STRIDE + kx - PAD;
        let n = position / (Y_W * Y_H);
        if iy < X_H && ix < X_W {
            let x = operand_a(((n * X_H + iy) * X_W + ix) * X_C4 + i / 4u, i / 4u, X_C4)[i % 4u];
            sum += x * operand_b(position * Y_C4 + o, o);
        }
    }
#if ACC
    c[index] += sum;
#else
    c[index] = sum;
#endif
}

#endif
