// Has the library of tests/wasm/src train with kernels of one number: `node train.mjs LIBRARY NUMBER`. Tells the status, and
// the first and the last loss as the hex digits of their bits.
import { readFileSync } from "node:fs";

const [library, number] = process.argv.slice(2);
const module = new WebAssembly.Module(readFileSync(library));
// It asks for nothing of whoever runs it.
const { exports } = new WebAssembly.Instance(module, {});
const bits = (x) => new BigUint64Array(new Float64Array([x]).buffer)[0].toString(16).padStart(16, "0");
const status = exports.train(Number(number));
console.log(status, bits(exports.first_loss()), bits(exports.last_loss()));
