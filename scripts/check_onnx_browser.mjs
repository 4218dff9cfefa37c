// check_onnx_browser.mjs PACKAGES FOLDER: runs the script in FOLDER/example.html, the code for browsers in docs/onnx.md, with FOLDER/onnx as
// the folder of its page. PACKAGES is a folder where `npm install onnxruntime-web` has been called. Prints as JSON what the script
// gives to the decoder and what it draws.
import { readFileSync, writeSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const [packages, folder] = process.argv.slice(2).map((path) => resolve(path));
const ort = createRequire(`${packages}/`)("onnxruntime-web");
const page = readFileSync(`${folder}/example.html`, "utf8");
const [, script] = page.match(/<script type="module">(.*?)<\/script>/s);
// The model of the test is smaller.
const code = script.replace(/(const latent =) \d+/, "$1 4");
if (code === script) throw new Error("the script has no `const latent`");

// What a page has: its elements, and images for a canvas.
const canvas = { getContext: () => ({ putImageData: (image, x, y) => drawn.push({ image, x, y }) }) };
const drawn = [];
const inputs = [];
globalThis.ort = {
  ...ort,
  Tensor: function (type, data, dims) {
    inputs.push({ type, data: [...data], dims });
    return new ort.Tensor(type, data, dims);
  },
};
globalThis.document = { querySelector: (name) => (name === "canvas" ? canvas : null) };
globalThis.ImageData = class {
  constructor(data, width, height) {
    if (!(data instanceof Uint8ClampedArray) || data.length !== 4 * width * height) throw new Error("not the pixels of an image");
    Object.assign(this, { data: [...data], width, height });
  }
};

process.chdir(`${folder}/onnx`);
await import(`data:text/javascript,${encodeURIComponent(code)}`);
if (inputs.length !== 1 || drawn.length !== 1) throw new Error(`${inputs.length} inputs and ${drawn.length} images, expected one of each`);
const { image, x, y } = drawn[0];
writeSync(1, JSON.stringify({ z: inputs[0], image, at: [x, y], canvas: [canvas.width, canvas.height] }));
