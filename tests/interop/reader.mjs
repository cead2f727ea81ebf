// Read checkpoints and print each as one line of JSON, in the form that README.md describes.
//
//     node reader.mjs FILE...
//
// Without arguments the names come from standard input, one a line; a line "base64:..." is a file itself.

import { readFileSync, realpathSync } from "node:fs";
import { dirname } from "node:path";
import { createInterface } from "node:readline";

import { NDArray } from "./dtypes.mjs";
import { Checkpoint } from "./file.mjs";
import { Float, Missing, Refused } from "./msgpack.mjs";
import { Dict, List, Scalar, Tagged, Tree } from "./tree.mjs";

/** Tags of values that cannot be changed: whether two of them are one object means nothing. */
const IMMUTABLE = new Set(
  `tuple namedtuple frozenset int float complex str bytes enum ellipsis function range slice datetime date time
   timedelta timezone zoneinfo uuid decimal fraction path.PurePosixPath path.PureWindowsPath path.PosixPath
   path.WindowsPath numpy.str numpy.bytes numpy.dtype numpy.masked_constant brainunit.Unit
   brainunit.Dimension`.split(/\s+/),
);
const SETS = new Set(["set", "frozenset"]);

const plain = (value) => {
  if (value instanceof Map) return Object.fromEntries([...value].map(([key, item]) => [key, plain(item)]));
  if (Array.isArray(value)) return value.map(plain);
  return typeof value === "bigint" ? Number(value) : value;
};

const children = (value) => {
  if (value instanceof List) return value.items;
  if (value instanceof Dict) return value.pairs.flat();
  return value instanceof Tagged ? [value.state, ...value.attributes.map(([, item]) => item)] : [];
};

class Printer {
  constructor(value) {
    this.times = new Map();
    this.count(value);
    this.numbers = new Map();
  }

  isObject(value) {
    if (value instanceof Tagged) return !IMMUTABLE.has(value.tag);
    return value instanceof NDArray || ((value instanceof List || value instanceof Dict) && !value.isPart);
  }

  count(value) {
    if (this.isObject(value)) {
      const times = this.times.get(value) ?? 0;
      this.times.set(value, times + 1);
      if (times) return;
    }
    children(value).forEach((child) => this.count(child));
  }

  print(value) {
    if (value === null || typeof value === "boolean" || typeof value === "string") return value;
    if (typeof value === "bigint") return { int: value.toString() };
    if (value instanceof Float) return { float: value.bits.toString(16).padStart(16, "0") };
    if (value instanceof Uint8Array) return { bytes: Buffer.from(value).toString("hex") };
    if (value instanceof Scalar) return { scalar: value.element, dtype: plain(value.description) };
    if (this.times.get(value) > 1) {
      if (this.numbers.has(value)) return { again: this.numbers.get(value) };
      this.numbers.set(value, this.numbers.size);
    }
    if (value instanceof List) return { list: value.items.map((item) => this.print(item)) };
    if (value instanceof Dict) return { dict: value.pairs.map((pair) => pair.map((item) => this.print(item))) };
    if (value instanceof NDArray) {
      const { kind, description, shape } = value.spec;
      return { array: value.elements, kind, dtype: plain(description), shape };
    }
    const out = { tag: value.tag, state: this.print(value.state) };
    if (SETS.has(value.tag)) out.state.list.sort((a, b) => (JSON.stringify(a) < JSON.stringify(b) ? -1 : 1));
    if (value.attributes.length) {
      out.attributes = Object.fromEntries(value.attributes.map(([key, item]) => [key, this.print(item)]));
    }
    return out;
  }
}

const print = (value) => new Printer(value).print(value);

function read(bytes, folder) {
  const checkpoint = new Checkpoint(bytes, folder);
  const tree = new Tree(checkpoint);
  return {
    format: checkpoint.version,
    library: checkpoint.index.get("library"),
    arrays: checkpoint.count,
    metadata: print(tree.metadata),
    tree: print(tree.structure),
  };
}

function line(name) {
  try {
    if (name.startsWith("base64:")) return JSON.stringify(read(Buffer.from(name.slice(7), "base64")));
    return JSON.stringify(read(readFileSync(name), dirname(realpathSync(name))));
  } catch (error) {
    if (error instanceof Missing) return JSON.stringify({ missing: error.message });
    if (error instanceof Refused) return JSON.stringify({ refused: error.message });
    return JSON.stringify({ failed: `${error.name}: ${error.message}`, stack: error.stack });
  }
}

const names = process.argv.slice(2);
for (const name of names) console.log(line(name));
if (!names.length) {
  for await (const name of createInterface({ input: process.stdin, terminal: false })) console.log(line(name));
}
