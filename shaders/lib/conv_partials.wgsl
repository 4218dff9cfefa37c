// Sums over the rows of a tile, per column, of the values that a convolution stores. PARTIALS selects them:
//
//   1  STATISTICS  three rows of `partials` per tile: first value of the tile (pivot), mean - pivot, sum of squared deviations
//   2  GRADIENT    two rows per tile, for the gradient of a norm: sum of c, sum of c * xhat, xhat being aux normalized
//
// partials: [tiles * phases][3 or 2][columns] vec4.

#import kept
#import rectify

#let STATISTICS = 1
#let GRADIENT = 2

#if PARTIALS
struct Sum {
    a: vec4<f32>,
    b: vec4<f32>,
}

// The normalization of aux in a column: xhat = ((aux - pivot) - offset) * rstd.
struct Normalized {
    pivot: vec4<f32>,
    offset: vec4<f32>,
    rstd: vec4<f32>,
}

fn normalized_c(column: u32, columns: u32) -> Normalized {
    return Normalized(ld_stats(column), ld_stats(columns + column), ld_stats(2u * columns + column));
}

fn plus_gradient(sum: Sum, g: vec4<f32>, x: vec4<f32>, n: Normalized) -> Sum {
    return Sum(sum.a + g, sum.b + g * ((kept(x - n.pivot, p.rows) - n.offset) * n.rstd));
}

// d: difference of a value from the pivot.
fn plus_statistics(sum: Sum, d: vec4<f32>) -> Sum {
    return Sum(sum.a + d, sum.b + d * d);
}

// Mean and sum of squared deviations, from the sums of the differences from the pivot and of their squares.
fn moments(sum: Sum, count: f32) -> Sum {
    let mean = sum.a / max(count, 1.0);
    return Sum(mean, rectified(sum.b - sum.a * mean));
}

fn store_statistics(tile: Tile, column: u32, pivot: vec4<f32>, mean: vec4<f32>, squares: vec4<f32>) {
    let row = tile.rows * 3u * columns() + column;
    partials[row] = pivot;
    partials[row + columns()] = mean;
    partials[row + 2u * columns()] = squares;
}

fn store_gradient(tile: Tile, column: u32, sum: Sum) {
    let row = (tile.rows * parts() + tile.part) * 2u * columns() + column;
    partials[row] = sum.a;
    partials[row + columns()] = sum.b;
}
#endif
