//! The CPU reference: convolutions as plain loops, and the norm, ReLU, residual and statistics that may be fused with them.

use crate::error::Result;
use crate::runtime::op::conv::Conv;
use crate::runtime::op::conv::geometry::{Geometry, Layer, LayerKind};
use crate::runtime::op::norm::fused::CHUNK;
use crate::runtime::op::norm::fused::STATISTICS_ROWS;
use crate::runtime::op::{BatchNorm, Reference, no_such_pass, operand};
use crate::runtime::sys::threads;
use crate::runtime::tensor::Shape;
use crate::runtime::tensor::real::{Real, blocked_sum};

impl Reference for Conv {
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        let layer = &self.layer;
        match (pass, reads, writes) {
            ("forward", reads, writes) => self.forward(reads, writes)?,
            ("backward_input", [dy, weight], [dx]) => layer.backward_input(dy, weight, dx),
            ("backward_input", [dy, weight, x, stats], [dx, dw, db]) => {
                let mut g = vec![T::zero(); x.len()];
                layer.backward_input(dy, weight, &mut g);
                self.norm_gradient(x, stats, &mut g, dx, dw, db);
            }
            ("backward_weight", [x, dy], [dweight]) => layer.backward_weight(x, dy, dweight),
            ("backward_weight", [x, dy, stats], [dweight]) => {
                layer.backward_weight(&self.activated(x, stats), dy, dweight);
            }
            ("backward_bias", [dy], [dbias]) => layer.backward_bias(dy, dbias),
            _ => return Err(no_such_pass(self, pass)),
        }
        Ok(())
    }
}

impl Conv {
    fn forward<T: Real>(&self, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        let args = self.forward_pass().reads;
        let missing = || no_such_pass(self, "forward");
        let optional = |name| args.iter().zip(reads).find(|(arg, _)| **arg == operand(name)).map(|(_, read)| *read);
        let read = |name| optional(name).ok_or_else(missing);
        let mut writes = writes.iter_mut().map(|write| &mut **write);
        let mut write = || writes.next().ok_or_else(missing);

        let (x, weight, bias) = (read("x")?, read("weight")?, read("bias")?);
        let y = write()?;
        let stats = if self.measures() { Some(write()?) } else { None };
        let y_partials = if self.epilogue.emit_statistics { Some(write()?) } else { None };
        let activated = match (&self.prologue, stats) {
            (None, _) => None,
            (Some(_), None) => Some(self.activated(x, read("stats")?)),
            (Some(prologue), Some(stats)) => {
                let norm = &prologue.norm;
                let running = optional("running_mean").zip(optional("running_var"));
                let (norm_weight, norm_bias) = (read("norm_weight")?, read("norm_bias")?);
                let mut updates = if self.training() { Some((write()?, write()?)) } else { None };
                let c = self.layer.x.c;
                for i in 0..c {
                    let (pivot, offset, rstd, squares) = match (running, optional("partials")) {
                        (Some((mean, var)), _) => (mean[i], T::zero(), norm.inverse_std(var[i]), T::zero()),
                        (None, None) => norm.moments(x, i),
                        (None, Some(partials)) => self.merged(norm, i, partials),
                    };
                    let scale = rstd * norm_weight[i];
                    let rows = [pivot, offset, rstd, scale, norm_bias[i] - offset * scale];
                    for (row, value) in rows.into_iter().enumerate() {
                        stats[row * c + i] = value;
                    }
                    if let Some((running_mean, running_var)) = &mut updates {
                        let unbiased = squares / T::from_usize(self.layer.x.positions() - 1);
                        norm.update(&mut running_mean[i], pivot + offset);
                        norm.update(&mut running_var[i], unbiased);
                    }
                }
                Some(self.activated(x, stats))
            }
        };
        self.layer.forward(activated.as_deref().unwrap_or(x), weight, bias, y);
        if let Some(residual) = optional("residual") {
            y.iter_mut().zip(residual).for_each(|(y, r)| *y += *r);
        }
        if let Some(partials) = y_partials {
            emit_statistics(self.layer.y, y, partials);
        }
        Ok(())
    }

    /// [`BatchNorm::moments`] of a channel of x from the statistics of its chunks.
    fn merged<T: Real>(&self, norm: &BatchNorm, channel: usize, partials: &[T]) -> (T, T, T, T) {
        let (c, positions) = (self.layer.x.c, self.layer.x.positions());
        let row = |chunk: usize, row: usize| partials[(chunk * STATISTICS_ROWS + row) * c + channel];
        let chunks = positions.div_ceil(CHUNK);
        let count = |chunk: usize| T::from_usize(CHUNK.min(positions - chunk * CHUNK));
        let pivot = row(0, 0);
        let mean = |chunk: usize| row(chunk, 0) - pivot + row(chunk, 1);
        let offset = blocked_sum((0..chunks).map(|i| mean(i) * count(i))) / T::from_usize(positions);
        let squares = blocked_sum((0..chunks).map(|i| row(i, 2) + count(i) * (mean(i) - offset).squared()));
        (pivot, offset, norm.inverse_std(squares / T::from_usize(positions)), squares)
    }

    /// relu(norm(x)) for the rows of `stats`.
    fn activated<T: Real>(&self, x: &[T], stats: &[T]) -> Vec<T> {
        let Shape { c, h, w, .. } = self.layer.x;
        let mut activated = x.to_vec();
        for (i, plane) in activated.chunks_exact_mut(h * w).enumerate() {
            let channel = Affine::new(stats, c, i % c);
            plane.iter_mut().for_each(|x| *x = channel.norm(*x).relu());
        }
        activated
    }

    /// Gradients of x and of the norm's parameters from `g`, the gradient of relu(norm(x)).
    fn norm_gradient<T: Real>(&self, x: &[T], stats: &[T], g: &mut [T], dx: &mut [T], dw: &mut [T], db: &mut [T]) {
        let Shape { c, h, w, .. } = self.layer.x;
        let plane = h * w;
        dw.fill(T::zero());
        db.fill(T::zero());
        for (i, (g, x)) in g.chunks_exact_mut(plane).zip(x.chunks_exact(plane)).enumerate() {
            let channel = Affine::new(stats, c, i % c);
            let (mut sum_gx, mut sum_g) = (T::zero(), T::zero());
            for (g, x) in g.iter_mut().zip(x) {
                if channel.norm(*x) <= T::zero() {
                    *g = T::zero();
                }
                sum_g += *g;
                sum_gx += *g * channel.normalized(*x);
            }
            dw[i % c] += sum_gx;
            db[i % c] += sum_g;
        }
        let count = T::from_usize(self.layer.x.positions());
        let planes = dx.chunks_exact_mut(plane).zip(g.chunks_exact(plane)).zip(x.chunks_exact(plane));
        for (i, ((dx, g), x)) in planes.enumerate() {
            let channel = Affine::new(stats, c, i % c);
            let (mean_g, mean_gx) = (db[i % c] / count, dw[i % c] / count);
            for ((dx, g), x) in dx.iter_mut().zip(g).zip(x) {
                let g = if self.training() { *g - mean_g - channel.normalized(*x) * mean_gx } else { *g };
                *dx = g * channel.scale;
            }
        }
    }
}

/// A column of `stats`: the norm of one channel.
struct Affine<T> {
    pivot: T,
    offset: T,
    rstd: T,
    scale: T,
    addend: T,
}

impl<T: Real> Affine<T> {
    fn new(stats: &[T], channels: usize, channel: usize) -> Self {
        let row = |row: usize| stats[row * channels + channel];
        Self { pivot: row(0), offset: row(1), rstd: row(2), scale: row(3), addend: row(4) }
    }

    fn norm(&self, x: T) -> T {
        (x - self.pivot) * self.scale + self.addend
    }

    fn normalized(&self, x: T) -> T {
        (x - self.pivot - self.offset) * self.rstd
    }
}

/// Writes the statistics of each chunk of [`CHUNK`] positions of y: pivot, mean - pivot, squared deviations.
fn emit_statistics<T: Real>(shape: Shape, y: &[T], partials: &mut [T]) {
    let Shape { n, c, h, w } = shape;
    let at = |position: usize, channel: usize| y[(position / (h * w) * c + channel) * h * w + position % (h * w)];
    for (chunk, first) in (0..n * h * w).step_by(CHUNK).enumerate() {
        let positions = first..(first + CHUNK).min(n * h * w);
        let count = T::from_usize(positions.len());
        for channel in 0..c {
            let pivot = at(first, channel);
            let differences = || positions.clone().map(|position| at(position, channel) - pivot);
            let mean = blocked_sum(differences()) / count;
            let squares = blocked_sum(differences().map(|d| (d - mean).squared()));
            for (row, value) in [pivot, mean, squares].into_iter().enumerate() {
                partials[(chunk * STATISTICS_ROWS + row) * c + channel] = value;
            }
        }
    }
}

impl Layer {
    fn forward<T: Real>(&self, x: &[T], weight: &[T], bias: &[T], y: &mut [T]) {
        match self.kind {
            LayerKind::Conv2d => self.geometry.forward(x, weight, Some(bias), y),
            LayerKind::ConvTranspose2d => self.geometry.backward_input(x, weight, Some(bias), y),
            LayerKind::Linear => {
                let (inputs, outputs) = self.vectors();
                for (y, x) in y.chunks_exact_mut(outputs).zip(x.chunks_exact(inputs)) {
                    for ((y, weight), bias) in y.iter_mut().zip(weight.chunks_exact(inputs)).zip(bias) {
                        *y = dot(x, 1, weight) + *bias;
                    }
                }
            }
        }
    }

    fn backward_input<T: Real>(&self, dy: &[T], weight: &[T], dx: &mut [T]) {
        match self.kind {
            LayerKind::Conv2d => self.geometry.backward_input(dy, weight, None, dx),
            LayerKind::ConvTranspose2d => self.geometry.forward(dy, weight, None, dx),
            LayerKind::Linear => {
                let (inputs, outputs) = self.vectors();
                dx.fill(T::zero());
                for (dx, dy) in dx.chunks_exact_mut(inputs).zip(dy.chunks_exact(outputs)) {
                    for (weight, dy) in weight.chunks_exact(inputs).zip(dy) {
                        add_scaled(dx, weight, *dy);
                    }
                }
            }
        }
    }

    fn backward_weight<T: Real>(&self, x: &[T], dy: &[T], dweight: &mut [T]) {
        match self.kind {
            LayerKind::Conv2d => self.geometry.backward_weight(x, dy, dweight),
            LayerKind::ConvTranspose2d => self.geometry.backward_weight(dy, x, dweight),
            LayerKind::Linear => {
                let (inputs, outputs) = self.vectors();
                dweight.fill(T::zero());
                for (x, dy) in x.chunks_exact(inputs).zip(dy.chunks_exact(outputs)) {
                    for (dweight, dy) in dweight.chunks_exact_mut(inputs).zip(dy) {
                        dweight.iter_mut().zip(x).for_each(|(dweight, x)| *dweight += *dy * *x);
                    }
                }
            }
        }
    }

    /// The sum of each channel of `dy` over images and positions; of a linear layer, the sum of each output over images.
    fn backward_bias<T: Real>(&self, dy: &[T], dbias: &mut [T]) {
        let plane = if self.kind == LayerKind::Linear { 1 } else { self.y.h * self.y.w };
        let channels = dbias.len();
        dbias.fill(T::zero());
        for (i, dy) in dy.chunks_exact(plane).enumerate() {
            dbias[i % channels] += dy.iter().copied().sum();
        }
    }

    /// Elements of an image of x and of y.
    fn vectors(&self) -> (usize, usize) {
        (self.x.c * self.x.h * self.x.w, self.y.c * self.y.h * self.y.w)
    }
}

impl Geometry {
    /// Calls `f(k, xi, yi, len)` for each tap `k` of the window and each row of a plane of y, where the tap joins `len` elements of
    /// the row, from `yi` on, with every `stride`-th element of a row of x, from `xi` on.
    #[inline]
    fn for_rows(&self, mut f: impl FnMut(usize, usize, usize, usize)) {
        let (kh, kw) = self.kernel;
        for ky in 0..kh {
            for kx in 0..kw {
                // Columns of y whose window has this tap inside x: ox * stride + kx - padding in 0..w.
                let first = self.padding.saturating_sub(kx).div_ceil(self.stride);
                let end = (self.x.w + self.padding).saturating_sub(kx).div_ceil(self.stride).min(self.y.w);
                if first >= end {
                    continue;
                }
                for oy in 0..self.y.h {
                    let Some(iy) = (oy * self.stride + ky).checked_sub(self.padding).filter(|&iy| iy < self.x.h) else {
                        continue;
                    };
                    let ix = first * self.stride + kx - self.padding;
                    f(ky * kw + kx, iy * self.x.w + ix, oy * self.y.w + first, end - first);
                }
            }
        }
    }

    /// Elements of a plane of `x`, a plane of `y` and a window.
    fn plane_sizes(&self) -> (usize, usize, usize) {
        (self.x.h * self.x.w, self.y.h * self.y.w, self.kernel.0 * self.kernel.1)
    }

    /// `y[n, o] = bias[o] + sum over i of x[n, i] * weight[o, i]`, `*` being the windowed product.
    fn forward<T: Real>(&self, x: &[T], weight: &[T], bias: Option<&[T]>, y: &mut [T]) {
        let (xs, ys, ks) = self.plane_sizes();
        threads::for_parts(y, ys, self.macs(), |plane, y| {
            let (n, o) = (plane / self.y.c, plane % self.y.c);
            y.fill(T::zero());
            for i in 0..self.x.c {
                let x = &x[(n * self.x.c + i) * xs..][..xs];
                let weight = &weight[(o * self.x.c + i) * ks..][..ks];
                self.for_rows(|k, xi, yi, len| {
                    let (y, x, w) = (&mut y[yi..][..len], &x[xi..], weight[k]);
                    if self.stride == 1 {
                        add_scaled(y, x, w);
                    } else {
                        y.iter_mut().enumerate().for_each(|(j, y)| *y += x[j * self.stride] * w);
                    }
                });
            }
        });
        add_bias(y, bias, self.y.c, ys);
    }

    /// The adjoint of [`Self::forward`] in `x`, with a bias for each channel of `x` where it is a transposed convolution's.
    fn backward_input<T: Real>(&self, dy: &[T], weight: &[T], bias: Option<&[T]>, dx: &mut [T]) {
        let (xs, ys, ks) = self.plane_sizes();
        threads::for_parts(dx, xs, self.macs(), |plane, dx| {
            let (n, i) = (plane / self.x.c, plane % self.x.c);
            dx.fill(T::zero());
            for o in 0..self.y.c {
                let dy = &dy[(n * self.y.c + o) * ys..][..ys];
                let weight = &weight[(o * self.x.c + i) * ks..][..ks];
                self.for_rows(|k, xi, yi, len| {
                    let (dx, dy, w) = (&mut dx[xi..], &dy[yi..][..len], weight[k]);
                    if self.stride == 1 {
                        add_scaled(&mut dx[..len], dy, w);
                    } else {
                        dy.iter().enumerate().for_each(|(j, dy)| dx[j * self.stride] += *dy * w);
                    }
                });
            }
        });
        add_bias(dx, bias, self.x.c, xs);
    }

    /// `dweight[o, i]`: the windowed products of `x[n, i]` and `dy[n, o]`, summed over images n.
    fn backward_weight<T: Real>(&self, x: &[T], dy: &[T], dweight: &mut [T]) {
        let (xs, ys, ks) = self.plane_sizes();
        threads::for_parts(dweight, self.x.c * ks, self.macs(), |o, dweight| {
            dweight.fill(T::zero());
            for n in 0..self.y.n {
                let dy = &dy[(n * self.y.c + o) * ys..][..ys];
                for (i, dweight) in dweight.chunks_exact_mut(ks).enumerate() {
                    let x = &x[(n * self.x.c + i) * xs..][..xs];
                    self.for_rows(|k, xi, yi, len| dweight[k] += dot(&x[xi..], self.stride, &dy[yi..][..len]));
                }
            }
        });
    }
}

/// Adds `bias[c]` to all elements of channel `c`.
fn add_bias<T: Real>(y: &mut [T], bias: Option<&[T]>, channels: usize, plane: usize) {
    let Some(bias) = bias else { return };
    for (i, y) in y.chunks_exact_mut(plane).enumerate() {
        y.iter_mut().for_each(|y| *y += bias[i % channels]);
    }
}

// The two innermost loops use indices: iterators that are zipped or summed take calls where optimisation ends at a codegen unit.

/// `y[i] += x[i] * w`. `x` is at least as long as `y`.
#[inline]
fn add_scaled<T: Real>(y: &mut [T], x: &[T], w: T) {
    let x = &x[..y.len()];
    for i in 0..y.len() {
        y[i] += x[i] * w;
    }
}

/// `sum of x[i * stride] * y[i]`, as eight interleaved sums for the sake of vector instructions.
#[expect(clippy::needless_range_loop, reason = "see above")]
#[inline]
fn dot<T: Real>(x: &[T], stride: usize, y: &[T]) -> T {
    let mut sums = [T::zero(); 8];
    let whole = y.len() / 8 * 8;
    if stride == 1 {
        for at in (0..whole).step_by(8) {
            let (x, y) = (&x[at..at + 8], &y[at..at + 8]);
            for i in 0..8 {
                sums[i] += x[i] * y[i];
            }
        }
    } else {
        for i in 0..whole {
            sums[i % 8] += x[i * stride] * y[i];
        }
    }
    for i in whole..y.len() {
        sums[i % 8] += x[i * stride] * y[i];
    }
    let mut total = sums[0];
    for i in 1..8 {
        total += sums[i];
    }
    total
}
