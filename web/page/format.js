// @ts-check
/** Text for counts, sizes, times and measurements. */

const COUNT = new Intl.NumberFormat('en');

/** Returns a whole number with separators: `297,635`. @param {number} value */
export function count(value) {
  return COUNT.format(Math.round(value));
}

/** Returns `1 image`, `2,000 images`. @param {number} value @param {string} noun */
export function counted(value, noun) {
  return `${count(value)} ${noun}${value === 1 ? '' : 's'}`;
}

/** Returns a number of bytes with its unit: `36 MiB`. @param {number} bytes */
export function bytes(bytes) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  let value = bytes;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit > 0 && value < 10 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

/** Returns a number of floating-point operations with its unit: `1.2 GFLOP`. @param {number} flops */
export function work(flops) {
  const units = ['FLOP', 'kFLOP', 'MFLOP', 'GFLOP', 'TFLOP'];
  let unit = 0;
  let value = flops;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

/** Returns a duration: `45 s`, `4:46`, `1:02:03`. @param {number} seconds */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  const pad = (/** @type {number} */ value) => String(value).padStart(2, '0');
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return h > 0 ? `${h}:${pad(m)}:${pad(s)}` : `${m}:${pad(s)}`;
}

/** Returns a value with a fixed number of digits and a proper minus sign, or a dash if it is not finite.
 * @param {number} value @param {number} digits */
export function fixed(value, digits) {
  return Number.isFinite(value) ? value.toFixed(digits).replace('-', '−') : '–';
}

/** Returns a value with four significant digits, for measurements of unknown size. @param {number} value */
export function short(value) {
  if (!Number.isFinite(value)) return '–';
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(2).replaceAll('-', '−');
  return value.toPrecision(4).replace('-', '−');
}

/** Returns `32×32, colour`. @param {number[]} size channels, height, width */
export function imageSize([channels, height, width]) {
  return `${width}×${height} pixels, ${channels === 1 ? 'greyscale' : 'colour'}`;
}

/** Returns a message with a capital letter and a full stop: the engine's errors begin with a verb, or with the name of a file, which stays.
 * @param {string} message */
export function sentence(message) {
  const capital = /^[a-z]+\s/.test(message) ? message[0].toUpperCase() + message.slice(1) : message;
  return /[.!?]$/.test(capital) ? capital : `${capital}.`;
}
