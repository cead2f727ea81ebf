// From the structure of a file to a tree: lists, dicts, arrays, and objects with tag, state and attributes.

import { NDArray, parseDtype, parseSpec } from "./dtypes.mjs";
import { Float, require } from "./msgpack.mjs";
import { any, formsOf } from "./states.mjs";

export class List {
  constructor(items) {
    this.items = items;
  }
}

export class Dict {
  constructor(pairs) {
    this.pairs = pairs;
  }
}

/** An object of a tag; what its state means, the table of tags says. */
export class Tagged {
  constructor(tag, state, attributes) {
    this.tag = tag;
    this.state = state;
    this.attributes = attributes; // pairs of name and value
  }
}

/** One element of a dtype. */
export class Scalar {
  constructor(description, element) {
    this.description = description;
    this.element = element;
  }
}

const [LIST, ARRAY, ITEMS, NODE, LEAF, REF, ARRAYS, NAMED_ARRAYS] = [0n, 1n, 2n, 3n, 4n, 5n, 6n, 7n];
const MAX_LEVELS = 1024;

export class Tree {
  constructor(checkpoint) {
    this.checkpoint = checkpoint;
    const [shared, metadata] = [checkpoint.index.get("shared"), checkpoint.index.get("metadata")];
    require(Array.isArray(shared) && metadata instanceof Map, "shared is no array, or metadata no map");
    this.shared = [];
    this.levels = [];
    this.inRuns = 0;
    this.arrays = checkpoint.count;
    for (const value of shared) {
      require(!(Array.isArray(value) && value[0] === REF), "a shared value that is a reference itself");
      this.levels.push(this.check(value));
      this.shared.push(this.read(value));
    }
    this.check(checkpoint.index.get("structure"));
    this.structure = this.read(checkpoint.index.get("structure"));
    this.bare = true; // metadata refers to nothing
    this.check(metadata);
    this.metadata = this.read(metadata);
  }

  // The grammar. Gives the number of levels, references followed.

  check(value, key = false, depth = 0) {
    require(depth <= MAX_LEVELS, "too many levels");
    if (value instanceof Map) return this.deepest([...value.values()], key, depth);
    if (!Array.isArray(value)) return 0;
    const [kind, ...rest] = value;
    const bare = key || this.bare;
    require(!(bare && [ARRAY, REF, ARRAYS, NAMED_ARRAYS].includes(kind)), "a reference where there must be none");
    if (kind === ARRAY) return this.checkRun(rest.length === 1, rest[0], 1n, 0n) - 1;
    if (kind === ARRAYS) return this.checkRun(rest.length === 2, rest[0], rest[1], rest[1]);
    if (kind === NAMED_ARRAYS) {
      const names = rest.slice(1);
      require(names.every((name) => typeof name === "string"), "a name that is no str");
      require(new Set(names).size === names.length, "a name that occurs twice");
      return this.checkRun(rest.length >= 1, rest[0], BigInt(names.length), BigInt(names.length));
    }
    if (kind === REF) {
      require(rest.length === 1 && isPlace(rest[0], this.levels.length), "a reference to what does not come before");
      return this.levels[Number(rest[0])];
    }
    if (kind === NODE || kind === LEAF) {
      require((rest.length === 2 || rest.length === 3) && typeof rest[0] === "string", "no object");
      require(rest.length === 2 || rest[2] instanceof Map, "attributes that are no map");
      return this.deepest(rest.slice(1), key, depth);
    }
    if (kind === ITEMS) {
      require(rest.length % 2 === 0, "a key without a value");
      return Math.max(
        this.deepest(rest.filter((_, i) => i % 2 === 0), true, depth),
        this.deepest(rest.filter((_, i) => i % 2), key, depth),
      );
    }
    require(kind === LIST, `a node of the kind ${kind}`);
    return this.deepest(rest, key, depth);
  }

  deepest(values, key, depth) {
    const deepest = 1 + values.reduce((most, value) => Math.max(most, this.check(value, key, depth + 1)), 0);
    require(deepest <= MAX_LEVELS, "too many levels");
    return deepest;
  }

  checkRun(whole, first, count, counted) {
    require(whole && isPlace(first, this.arrays + 1) && isPlace(count, this.arrays + 1), "a run that is none");
    require(Number(first) + Number(count) <= this.arrays, "an array that there is not");
    this.inRuns += Number(counted);
    require(this.inRuns <= this.arrays, "runs of arrays that have arrays in common");
    return 2;
  }

  // Values.

  read(value) {
    if (value instanceof Map) return new Dict([...value].map(([key, item]) => [key, this.read(item)]));
    if (!Array.isArray(value)) return value;
    const [kind, ...rest] = value;
    const run = (first, count) => Array.from({ length: count }, (_, i) => this.checkpoint.array(Number(first) + i));
    switch (kind) {
      case LIST:
        return new List(rest.map((item) => this.read(item)));
      case ARRAY:
        return this.checkpoint.array(Number(rest[0]));
      case ITEMS:
        return this.readItems(rest);
      case REF:
        return this.shared[Number(rest[0])];
      case ARRAYS:
        return new List(run(rest[0], Number(rest[1])));
      case NAMED_ARRAYS: {
        const arrays = run(rest[0], rest.length - 1);
        return new Dict(rest.slice(1).map((key, i) => [key, arrays[i]]));
      }
      default:
        return this.readObject(...rest);
    }
  }

  readItems(rest) {
    const pairs = [];
    for (let i = 0; i < rest.length; i += 2) pairs.push([this.read(rest[i]), this.read(rest[i + 1])]);
    const keys = pairs.map(([key]) => key);
    keys.forEach(checkKey);
    requireDistinct(keys, "a key");
    return new Dict(pairs);
  }

  /** State or attribute of an object: a list or dict that stands there itself is a part of the object. */
  readPart(packed) {
    const value = this.read(packed);
    const isNode = packed instanceof Map || (Array.isArray(packed) && packed[0] !== REF);
    if (isNode && (value instanceof List || value instanceof Dict)) value.isPart = true;
    return value;
  }

  readObject(tag, packed, packedAttributes = new Map()) {
    const attributes = new Map([...packedAttributes].map(([key, item]) => [key, this.readPart(item)]));
    const make = MAKERS.get(tag);
    const state = this.readPart(packed);
    const made = make ? make(state, attributes) : state;
    checkForm(tag, packed, made, attributes);
    if (UNTAGGED.has(tag) && !attributes.has("class")) return made;
    return new Tagged(tag, made, [...attributes]);
  }
}

const isPlace = (n, count) => typeof n === "bigint" && n >= 0n && n < BigInt(count);

/** Tags that say how a value is written, and not that it is anything else. */
const UNTAGGED = new Set(["int", "str", "bytes", "array", "numpy.scalar"]);

const FORMS = new Map(Object.entries(formsOf({ List, Dict, Tagged })));

/** A known tag has the state and the attributes that its table says; others it may have as well. */
function checkForm(tag, packed, state, attributes) {
  if (!FORMS.has(tag)) return;
  const [form, forms = {}] = FORMS.get(tag);
  const isPart = state instanceof List || state instanceof Dict;
  require(form(state) && !(isPart && packed[0] === REF && form !== any), `a ${tag} of something else`);
  for (const [name, form] of Object.entries(forms)) {
    require(attributes.has(name) ? form(attributes.get(name)) : form.optional, `the attribute ${name} of a ${tag}`);
  }
  const count = attributes.get("maxlen");
  require(tag !== "deque" || count === undefined || count >= BigInt(state.items.length), "more than a deque holds");
  if (tag === "set" || tag === "frozenset") {
    state.items.forEach(checkKey);
    requireDistinct(state.items, "an element");
  }
  if (tag === "numpy.strings") {
    const size = attributes.get("shape").items.reduce((a, b) => a * b, 1n);
    require(size === BigInt(state.items.length), "strings of another shape");
    require(attributes.has("na") || !state.items.includes(null), "strings of which some are missing");
  }
}

function requireDistinct(values, what) {
  const same = values.map(sameKey);
  require(new Set(same).size === same.length, `${what} that occurs twice`);
}

/** Tags of what can be changed, which is no key and no element of a set. */
const CHANGEABLE = new Set("list deque dict OrderedDict defaultdict Counter set bytearray".split(" "));
const OF_KEYS = new Set(["tuple", "namedtuple", "frozenset"]);

/** Keys are values that cannot be changed, and whole. */
function checkKey(key) {
  require(!(key instanceof List || key instanceof Dict || key instanceof NDArray), "a key that is a list, dict or array");
  if (!(key instanceof Tagged)) return;
  require(!CHANGEABLE.has(key.tag), `a key that is a ${key.tag}`);
  if (OF_KEYS.has(key.tag)) partsOf(key.state).forEach(checkKey);
  else if (!FORMS.has(key.tag) && !MAKERS.has(key.tag) && !key.tag.startsWith("class:")) checkKey(key.state);
}

const partsOf = (state) => state.items ?? state.pairs.map(([, item]) => item);

/** A text that equal keys have in common, and others have not: true, 1 and 1.0 are equal, a nan is equal to nothing. */
function sameKey(key) {
  if (typeof key === "boolean") return `number ${Number(key)}`;
  if (typeof key === "bigint") return `number ${key}`;
  if (key instanceof Float) {
    const number = key.value;
    if (Number.isNaN(number)) return Symbol("nan");
    return `number ${Number.isInteger(number) ? BigInt(number) : number}`;
  }
  if (key instanceof Uint8Array) return `bytes ${Buffer.from(key).toString("hex")}`;
  if (key instanceof Scalar) return `scalar ${JSON.stringify(plain(key.description))} ${JSON.stringify(key.element)}`;
  if (key instanceof List || key instanceof Dict) return all("", [...(key.items ?? key.pairs.flat())].map(sameKey));
  if (!(key instanceof Tagged)) return `${typeof key} ${JSON.stringify(key)}`;
  const { tag, state } = key;
  if (OF_KEYS.has(tag)) {
    const parts = partsOf(state).map(sameKey);
    return tag === "frozenset" ? all("frozenset", parts.sort(byText)) : all("tuple", parts);
  }
  if (["int", "float", "str", "bytes"].includes(tag)) return sameKey(state); // of a class derived from it
  const attributes = new Map(key.attributes);
  if (state instanceof Dict && new Map(state.pairs).has("name") && attributes.has("class")) {
    return all(tag, [tag === "enum" ? attributes.get("class") : "", new Map(state.pairs).get("name")].map(sameKey));
  }
  return all(tag, [sameKey(state), ...[...attributes].flat().map(sameKey)]);
}

const byText = (a, b) => (String(a) < String(b) ? -1 : 1);

/** What has a nan in it is equal to nothing. */
const all = (name, parts) => (parts.some((part) => typeof part === "symbol") ? Symbol("nan") : `${name} ${JSON.stringify(parts)}`);

function plain(value) {
  if (value instanceof Map) return [...value].map(([key, item]) => [key, plain(item)]);
  return Array.isArray(value) ? value.map(plain) : String(value);
}

function integer(state) {
  if (typeof state === "bigint") return state;
  require(state instanceof Uint8Array, "an int of something else");
  const bits = BigInt(`0x0${Buffer.from(state).reverse().toString("hex")}`);
  return state.length ? BigInt.asIntN(8 * state.length, bits) : 0n;
}

function bytes(state) {
  if (state instanceof NDArray) {
    require(state.spec.description === "uint8", "bytes of another dtype");
    return state.bytes;
  }
  require(state instanceof Uint8Array, "bytes of something else");
  return state;
}

/** UTF-8 in which surrogates stand as if they were characters. */
function text(state) {
  if (typeof state === "string") return state;
  const data = bytes(state);
  let out = "";
  for (let i = 0; i < data.length; ) {
    const size = data[i] < 0x80 ? 1 : data[i] < 0xe0 ? 2 : data[i] < 0xf0 ? 3 : 4;
    let point = size === 1 ? data[i] : data[i] & (0x7f >> size);
    require(i + size <= data.length && (size === 1 || data[i] >= 0xc2) && data[i] < 0xf5, "text that is no UTF-8");
    for (let j = 1; j < size; j++) {
      require((data[i + j] & 0xc0) === 0x80, "text that is no UTF-8");
      point = (point << 6) | (data[i + j] & 0x3f);
    }
    require(point >= [0, 0, 0x80, 0x800, 0x10000][size] && point <= 0x10ffff, "text that is no UTF-8");
    out += String.fromCodePoint(point);
    i += size;
  }
  return out;
}

/** A dtype description is a value like any other in the structure: back to the form that it has in `specs`. */
function description(value) {
  if (value instanceof List) return value.items.map(description);
  return value instanceof Dict ? new Map(value.pairs.map(([key, item]) => [key, description(item)])) : value;
}

function scalar(state, attributes) {
  const form = description(attributes.get("dtype"));
  const { dtype } = parseSpec(["numpy", form, []]);
  require(state instanceof Uint8Array && state.length === dtype.stored, "a scalar of another size");
  return new Scalar(form, dtype.read(state));
}

function inlineArray(state, attributes) {
  const shape = attributes.get("shape");
  require(state instanceof Uint8Array && shape instanceof List, "an array of something else");
  return new NDArray(parseSpec([attributes.get("kind"), description(attributes.get("dtype")), shape.items]), state);
}

/** Units stand in one place of the file for many in the tree: what they are made of is no list of the tree. */
function markParts(value) {
  if (!(value instanceof List || value instanceof Dict)) return;
  value.isPart = true;
  (value.items ?? value.pairs.flat()).forEach(markParts);
}

function unit(state, attributes) {
  const value = attributes.get("unit");
  require(value instanceof Dict, "a unit that is not described");
  markParts(value);
  return state;
}

/** In early files a quantity's unit is not an object of its own. */
function quantity(state, attributes) {
  const value = attributes.get("unit");
  if (value instanceof Dict) {
    checkForm("brainunit.Unit", null, null, new Map([["unit", value]]));
    attributes.set("unit", new Tagged("brainunit.Unit", null, [["unit", value]]));
  }
  return state;
}

function numpyDtype(state) {
  parseDtype(description(state));
  return state;
}

const MAKERS = new Map(
  Object.entries({
    int: integer,
    str: text,
    bytes,
    bytearray: bytes,
    array: inlineArray,
    "numpy.scalar": scalar,
    "numpy.dtype": numpyDtype,
    "brainunit.Unit": unit,
    "brainunit.Quantity": quantity,
  }),
);
