// Runs a program for WASI under Node.js: `node start.mjs PROGRAM [ARGUMENT...]`. It sees no files.
import { readFileSync } from "node:fs";
import { WASI } from "node:wasi";

const [program, ...args] = process.argv.slice(2);
const wasi = new WASI({ version: "preview1", args: [program, ...args], env: {} });
const module = new WebAssembly.Module(readFileSync(program));
const { exports } = new WebAssembly.Instance(module, { wasi_snapshot_preview1: wasi.wasiImport });
process.exitCode = wasi.start({ exports });
