// Dtypes of docs/format.md, and elements from their stored form.

import { require } from "./msgpack.mjs";

const MAX_ITEMSIZE = 2 ** 31 - 1;
const MAX_DIMENSIONS = 64;
const MAX_LEVELS = 32;
const MAX_FIELDS = 2 ** 16;

const view = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
const scratch = new DataView(new ArrayBuffer(8));

/** A float as the sixteen hexadecimal digits of its float64; all nans are one. */
function float(number) {
  if (Number.isNaN(number)) return "nan";
  scratch.setFloat64(0, number);
  return scratch.getBigUint64(0).toString(16).padStart(16, "0");
}

// Small floats: bits of exponent and mantissa, bias, and what their special numbers are.
const SMALL_FLOATS = {
  float16: [5, 10, 15, "ieee"],
  bfloat16: [8, 7, 127, "ieee"],
  float8_e3m4: [3, 4, 3, "ieee"],
  float8_e4m3: [4, 3, 7, "ieee"],
  float8_e5m2: [5, 2, 15, "ieee"],
  float8_e4m3fn: [4, 3, 7, "fn"],
  float8_e4m3fnuz: [4, 3, 8, "fnuz"],
  float8_e4m3b11fnuz: [4, 3, 11, "fnuz"],
  float8_e5m2fnuz: [5, 2, 16, "fnuz"],
  float6_e2m3fn: [2, 3, 1, "finite"],
  float6_e3m2fn: [3, 2, 3, "finite"],
  float4_e2m1fn: [2, 1, 1, "finite"],
};

function smallFloat(bits, [exponentBits, mantissaBits, bias, special]) {
  const sign = (bits >> (exponentBits + mantissaBits)) & 1;
  const top = 2 ** exponentBits - 1;
  const ones = 2 ** mantissaBits - 1;
  const exponent = (bits >> mantissaBits) & top;
  const mantissa = bits & ones;
  const signed = (number) => (sign ? -number : number);
  if (special === "ieee" && exponent === top) return mantissa ? NaN : signed(Infinity);
  if (special === "fn" && exponent === top && mantissa === ones) return NaN;
  if (special === "fnuz" && sign && !exponent && !mantissa) return NaN;
  if (exponent === 0) return signed(mantissa * 2 ** (1 - bias - mantissaBits));
  return signed((mantissa + 2 ** mantissaBits) * 2 ** (exponent - bias - mantissaBits));
}

/** An 80-bit long double as sign, odd number and power of two. */
function longDouble(bytes) {
  const significand = view(bytes).getBigUint64(0, true);
  const head = view(bytes).getUint16(8, true);
  const sign = head >> 15 ? "-" : "";
  const exponent = head & 0x7fff;
  if (exponent === 0x7fff) return significand << 1n & 0xffffffffffffffffn ? "nan" : `${sign}inf`;
  if (significand === 0n) return `${sign}0`;
  let [number, power] = [significand, Math.max(exponent, 1) - 16383 - 63];
  while (!(number & 1n)) [number, power] = [number >> 1n, power + 1];
  return `${sign}${number}p${power}`;
}

function integer(size, signed) {
  return (bytes) => {
    let number = 0n;
    for (let i = size - 1; i >= 0; i--) number = (number << 8n) | BigInt(bytes[i]);
    return (signed ? BigInt.asIntN(8 * size, number) : number).toString();
  };
}

const hex = (bytes) => Buffer.from(bytes).toString("hex");
const withoutZeros = (items) => items.slice(0, items.findLastIndex((item) => item !== 0) + 1);

/** Elements of fixed names: size, and what makes an element of its bytes. */
const NAMED = {
  bool: [1, (bytes) => bytes[0] !== 0],
  float32: [4, (bytes) => float(view(bytes).getFloat32(0, true))],
  float64: [8, (bytes) => float(view(bytes).getFloat64(0, true))],
  float8_e8m0fnu: [1, ([bits]) => float(bits === 0xff ? NaN : 2 ** (bits - 127))],
  float128: [16, longDouble],
  float96: [12, longDouble],
};
for (const bits of [8, 16, 32, 64]) {
  NAMED[`int${bits}`] = [bits / 8, integer(bits / 8, true)];
  NAMED[`uint${bits}`] = [bits / 8, integer(bits / 8, false)];
}
for (const bits of [1, 2, 4]) {
  NAMED[`uint${bits}`] = [1, ([byte]) => String(byte & (2 ** bits - 1))];
  NAMED[`int${bits}`] = [1, ([byte]) => BigInt.asIntN(bits, BigInt(byte)).toString()];
}
for (const [name, form] of Object.entries(SMALL_FLOATS)) {
  NAMED[name] =
    form[0] + form[1] > 7
      ? [2, (bytes) => float(smallFloat(view(bytes).getUint16(0, true), form))]
      : [1, ([bits]) => float(smallFloat(bits, form))];
}
const PAIRS = {
  complex64: "float32",
  complex128: "float64",
  complex32: "float16",
  bcomplex32: "bfloat16",
  complex256: "float128",
  complex192: "float96",
};
for (const [name, part] of Object.entries(PAIRS)) {
  const [size, read] = NAMED[part];
  NAMED[name] = [2 * size, (bytes) => [read(bytes.subarray(0, size)), read(bytes.subarray(size))]];
}

function text(bytes) {
  const points = Array.from({ length: bytes.length / 4 }, (_, i) => view(bytes).getUint32(4 * i, true));
  require(points.every((point) => point <= 0x10ffff), "text with a character that there is not");
  return String.fromCodePoint(...withoutZeros(points));
}

function time(bytes) {
  const number = view(bytes).getBigInt64(0, true);
  return number === -(2n ** 63n) ? "NaT" : number.toString();
}

const FLEXIBLE = /^([USV])(0|[1-9][0-9]*)$/;
const TIME = /^(?:datetime64|timedelta64)(?:\[([1-9][0-9]*)?(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?$/;

/** A dtype: `stored` and `memory` are the sizes of an element, `read` makes one of its stored bytes. */
function parseName(name) {
  const swapped = name.startsWith(">");
  const plain = swapped ? name.slice(1) : name;
  let dtype;
  if (Object.hasOwn(NAMED, plain)) {
    const [size, read] = NAMED[plain];
    dtype = { stored: size, memory: size, read, single: ["bool", "int8", "uint8"].includes(plain) };
  } else if (FLEXIBLE.test(plain)) {
    const [, kind, digits] = FLEXIBLE.exec(plain);
    const size = Number(digits) * (kind === "U" ? 4 : 1);
    const read = { U: text, S: (bytes) => hex(withoutZeros(bytes)), V: hex }[kind];
    dtype = { stored: size, memory: size, read, single: kind !== "U", flexible: true };
  } else if (TIME.test(plain)) {
    const count = TIME.exec(plain)[1];
    require(count !== "1" && Number(count ?? 1) <= MAX_ITEMSIZE, `the dtype ${name}`);
    dtype = { stored: 8, memory: 8, read: time, single: false };
  }
  require(dtype && !(swapped && dtype.single) && dtype.memory <= MAX_ITEMSIZE, `the dtype ${name}`);
  return dtype;
}

const isSize = (n) => typeof n === "bigint" && n >= 0n && n <= BigInt(MAX_ITEMSIZE);

function parse(description, counted, level = 0) {
  require(level <= MAX_LEVELS, "a dtype that nests too deep");
  if (typeof description === "string") return parseName(description);
  if (Array.isArray(description)) {
    require(level > 0, "a sub-array that is in no field");
    const [base, lengths] = description;
    require(description.length === 2 && Array.isArray(lengths) && lengths.every(isSize), "no sub-array");
    require(lengths.length >= 1 && lengths.length <= MAX_DIMENSIONS, "no sub-array");
    return subArray(parse(base, counted, level + 1), Number(product(lengths)));
  }
  require(description instanceof Map, "no dtype");
  return record(description, counted, level);
}

function subArray(base, count) {
  require(Math.max(count, base.memory * count) <= MAX_ITEMSIZE, "a sub-array that is too large");
  require(!(base.flexible && base.memory === 0), "a sub-array of text without characters");
  require(base.stored > 0 || count <= 2 ** 24, "a sub-array of too many elements without bytes");
  const read = (bytes) => split(bytes, base.stored, count).map(base.read);
  return { stored: base.stored * count, memory: base.memory * count, read };
}

function record(description, counted, level) {
  const keys = [...description.keys()].filter((key) => key !== "record").sort();
  require(keys.join() === "aligned,fields,itemsize", "no dtype of fields");
  require(!description.has("record") || description.get("record") === true, "record that is not true");
  const [rows, size] = [description.get("fields"), description.get("itemsize")];
  require(Array.isArray(rows) && isSize(size) && typeof description.get("aligned") === "boolean", "no dtype of fields");
  counted.fields += rows.length;
  require(counted.fields <= MAX_FIELDS, "too many fields");
  const fields = rows.map((row) => {
    require(Array.isArray(row) && (row.length === 3 || row.length === 4) && isSize(row[2]), "no field");
    require(typeof row[0] === "string" && (row.length < 4 || typeof row[3] === "string"), "a field without a name");
    const dtype = parse(row[1], counted, level + 1);
    require(Number(row[2]) + dtype.memory <= Number(size), "a field that ends after its record");
    return dtype;
  });
  const names = rows.flatMap(([name, , , ...title]) => [name, ...title]);
  require(new Set(names).size === names.length, "fields of one name or title");
  const read = (bytes) => {
    let at = 0;
    return fields.map((field) => field.read(bytes.subarray(at, (at += field.stored))));
  };
  return { stored: fields.reduce((sum, field) => sum + field.stored, 0), memory: Number(size), read };
}

function split(bytes, size, count) {
  return Array.from({ length: count }, (_, i) => bytes.subarray(i * size, (i + 1) * size));
}

const product = (numbers) => numbers.reduce((a, b) => a * BigInt(b), 1n);

export function parseDtype(description) {
  return parse(description, { fields: 0 });
}

const NOT_IN_JAX = /^(>|[USV]|datetime|timedelta|float(6_|96|128)|b?complex(32|192|256))/;
const isJax = (name) => typeof name === "string" && !NOT_IN_JAX.test(name);

/** A row of `specs`: kind, dtype and shape, and that they are not too large. */
export function parseSpec(row) {
  require(Array.isArray(row) && row.length === 3, "no spec");
  const [kind, description, shape] = row;
  require(["numpy", "jax", "jax_weak"].includes(kind), `the kind ${kind}`);
  require(kind === "numpy" || isJax(description), `an array of jax of the dtype ${description}`);
  require(Array.isArray(shape) && shape.length <= MAX_DIMENSIONS, "no shape");
  require(shape.every((n) => typeof n === "bigint" && n >= 0n), "no shape");
  const dtype = parseDtype(description);
  const size = product(shape);
  const [stored, memory] = [size * BigInt(dtype.stored), size * BigInt(dtype.memory)];
  require(product(shape.filter((n) => n)) * BigInt(Math.max(1, dtype.memory)) < 2n ** 63n, "a shape that is too large");
  require(stored > 0n || size <= 2n ** 24n, "too many elements without bytes");
  checkGrowth(memory, stored);
  return { kind, description, dtype, shape: shape.map(Number), size: Number(size), memory };
}

/** One array, or all of a file together. */
export function checkGrowth(memory, stored) {
  require(memory <= 2n ** 26n || memory <= 256n * stored, "arrays far larger in memory than in the file");
}

export const storedSize = (spec) => spec.size * spec.dtype.stored;

/** An array: `spec`, and its bytes in stored form. */
export class NDArray {
  constructor(spec, bytes) {
    require(bytes.length === storedSize(spec), "an array of another size");
    this.spec = spec;
    this.bytes = bytes;
  }

  get elements() {
    return split(this.bytes, this.spec.dtype.stored, this.spec.size).map(this.spec.dtype.read);
  }
}
