// @ts-check
/** Computations with latent vectors. */

/**
 * Returns the point at share `t` of the way from `a` to `b` on a sphere around the origin (Shoemake, "Animating Rotation with Quaternion
 * Curves", 1985), as `vae-wgpu interpolate` does. Most of a Gaussian's mass lies near a sphere, which a straight line leaves.
 * @param {ArrayLike<number>} a @param {ArrayLike<number>} b @param {number} t
 */
export function slerp(a, b, t) {
  let [dot, aa, bb] = [0, 0, 0];
  for (let i = 0; i < a.length; i += 1) {
    dot += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  const cosine = Math.min(1, Math.max(-1, dot / Math.sqrt(aa * bb)));
  const angle = Math.acos(cosine);
  const sine = Math.sin(angle);
  // Parallel, opposite or zero vectors span no plane.
  const onSphere = sine > 1e-3;
  const [wa, wb] = onSphere ? [Math.sin((1 - t) * angle) / sine, Math.sin(t * angle) / sine] : [1 - t, t];
  return Float32Array.from(a, (value, i) => wa * value + wb * b[i]);
}

/** Returns the KL divergence from a standard normal in nats. @param {ArrayLike<number>} mean @param {ArrayLike<number>} std */
export function divergence(mean, std) {
  let sum = 0;
  for (let i = 0; i < mean.length; i += 1) sum += 0.5 * (mean[i] ** 2 + std[i] ** 2 - 1) - Math.log(std[i]);
  return sum;
}

/**
 * Returns the mean squared error between two pictures, with pixel values from -1 to 1.
 * @param {import('./client.js').Pictures} a @param {import('./client.js').Pictures} b
 */
export function squaredError(a, b) {
  let sum = 0;
  for (let i = 0; i < a.rgba.length; i += 4) {
    for (let c = 0; c < 3; c += 1) sum += ((a.rgba[i + c] - b.rgba[i + c]) / 127.5) ** 2;
  }
  return sum / (a.rgba.length * 0.75);
}

/** Returns `count` independent draws of a standard normal. @param {number} count */
export function normals(count) {
  return Float32Array.from({ length: count }, () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random()));
}
