/** The modules that need no browser. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { bytes, count, counted, duration, fixed, sentence, short, work } from '../../page/format.js';
import { divergence, normals, slerp, squaredError } from '../../page/latent.js';
import { CURVES, Series, average, axisRange } from '../../page/series.js';

const row = (value) => Object.fromEntries(CURVES.map((curve) => [curve, value]));

test('numbers have units and separators', () => {
  assert.equal(count(297635), '297,635');
  assert.equal(counted(1, 'image'), '1 image');
  assert.equal(counted(2000, 'image'), '2,000 images');
  assert.equal(bytes(37_748_736), '36 MiB');
  assert.equal(bytes(1.5 * 2 ** 30), '1.5 GiB');
  assert.equal(bytes(12), '12 B');
  assert.equal(work(1.24e9), '1.2 GFLOP');
  assert.equal(work(53e12), '53 TFLOP');
});

test('durations are short', () => {
  assert.deepEqual([0, 45.4, 286, 3723].map(duration), ['0 s', '45 s', '4:46', '1:02:03']);
});

test('messages of the engine become sentences', () => {
  assert.equal(sentence('cannot read a.bin: it is empty'), 'Cannot read a.bin: it is empty.');
  assert.equal(sentence('a.bin: it is empty. Choose another.'), 'a.bin: it is empty. Choose another.');
});

test('values that are not finite are dashes', () => {
  assert.deepEqual([fixed(NaN, 3), short(Infinity), fixed(-0.5, 2), short(1.23456e-5)], ['–', '–', '−0.50', '1.23e−5']);
});

test('a long run is thinned without losing its mean or its end', () => {
  const series = new Series();
  for (let step = 1; step <= 100_000; step += 1) series.push(step, row(step));
  const [steps, values] = series.chart('kl');
  assert.ok(steps.length >= 2048 && steps.length <= 4096, `${steps.length} rows`);
  assert.equal(steps.at(-1), 100_000);
  assert.ok(steps.every((step, i) => i === 0 || step > steps[i - 1]));
  const width = steps[1] - steps[0];
  // A row is the mean of the steps since the one before it.
  assert.equal(values[10], steps[10] - (width - 1) / 2);
});

test('values of epochs keep their place in a thinned run', () => {
  const series = new Series();
  for (let step = 1; step <= 10_000; step += 1) {
    series.push(step, row(1));
    if (step % 1000 === 0) series.held.push({ step, total: step, mse: step });
  }
  const [steps, , , held] = series.chart('total');
  const shown = held.flatMap((value, i) => (value === null ? [] : [[steps[i], value]]));
  assert.equal(shown.length, 10);
  for (const [step, value] of shown) assert.ok(step >= value && step - value < 8, `${value} at ${step}`);
  assert.ok(series.chart('kl')[3].every((value) => value === null));
});

test('averages and ranges skip what is not finite', () => {
  const series = new Series();
  for (const value of [1, NaN, 3]) series.push(series.steps.length + 1, row(value));
  const [, raw, mean] = series.chart('total');
  assert.deepEqual(raw, [1, null, 3]);
  assert.deepEqual(mean, [1, 1, 3]);
  assert.deepEqual(average([]), []);
  assert.deepEqual(axisRange([[null]]), [0, 1]);
});

test('the first steps do not flatten the rest of a curve', () => {
  const values = [1000, ...Array.from({ length: 199 }, (_, i) => i / 199)];
  const [low, high] = axisRange([values]);
  assert.ok(low < 0 && low > -0.1 && high > 0.9 && high < 1.1, `${low} to ${high}`);
});

test('interpolation follows the sphere', () => {
  const near = (got, want) => got.forEach((value, i) => assert.ok(Math.abs(value - want[i]) < 1e-6, `${got}`));
  near(slerp([2, 0], [0, 2], 0.5), [Math.SQRT2, Math.SQRT2]);
  near(slerp([2, 0], [0, 2], 0), [2, 0]);
  near(slerp([3, 0], [0, 0], 0.5), [1.5, 0]);
  near(slerp([1, 0], [-1, 0], 0.5), [0, 0]);
});

test('divergence and squared error of known cases', () => {
  assert.equal(divergence([0, 0], [1, 1]), 0);
  assert.ok(Math.abs(divergence([1], [1]) - 0.5) < 1e-12);
  const pictures = (value) => ({ width: 1, height: 1, channels: 3, count: 1, rgba: Uint8ClampedArray.of(value, value, value, 255) });
  assert.equal(squaredError(pictures(0), pictures(255)), 4);
});

test('random latent vectors are standard normal', () => {
  const values = normals(20_000);
  const mean = values.reduce((a, b) => a + b) / values.length;
  const variance = values.reduce((a, b) => a + (b - mean) ** 2, 0) / values.length;
  assert.ok(Math.abs(mean) < 0.05 && Math.abs(variance - 1) < 0.06, `${mean}, ${variance}`);
  assert.ok(values.every(Number.isFinite));
});
