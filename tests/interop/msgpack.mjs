// MessagePack as this format needs it: what docs/format.md tells apart stays apart.

import { DecodeError, Decoder } from "@msgpack/msgpack";

/** A float: JavaScript has one type of number, and 1 and 1.0 are two values of a checkpoint. */
export class Float {
  constructor(bits) {
    this.bits = bits; // as a bigint of 64 bits
  }

  get value() {
    return new Float64Array(BigUint64Array.of(this.bits).buffer)[0];
  }
}

export class Refused extends Error {}

/** A file is not where the checkpoint has data in it: nothing is damaged, and it may be put back. */
export class Missing extends Error {}

const MAX_LEVELS = 1024;

export function require(condition, message) {
  if (!condition) throw new Refused(message);
}

function mapKeyConverter(key) {
  require(typeof key === "string", "a map with a key that is no str");
  return key;
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

function textOf(bytes) {
  try {
    return utf8.decode(bytes);
  } catch {
    throw new Refused("a str that is no UTF-8");
  }
}

/**
 * The package's decoder, but that ints become bigints, floats become Floats, and maps become Maps, which keep their
 * order whatever their keys are (and may have the key "__proto__").
 */
class FaithfulDecoder extends Decoder {
  constructor() {
    super({ useBigInt64: true, keyDecoder: null, mapKeyConverter });
    this.sizes = new Map(); // how many entries a map says that it has
  }

  readF64() {
    const bits = this.view.getBigUint64(this.pos);
    this.pos += 8;
    return new Float(bits);
  }

  readF32() {
    throw new Refused("a float of 32 bits");
  }

  decodeExtension() {
    throw new Refused("an ext object");
  }

  // Keys of objects that look like numbers would come first: with a mark before them, none does.
  decodeUtf8String(byteLength, headerOffset) {
    const isKey = this.stateIsMapKey();
    const start = this.pos + headerOffset;
    require(start + byteLength <= this.bytes.length, "a str that is cut off");
    const text = textOf(this.bytes.subarray(start, start + byteLength));
    this.pos = start + byteLength;
    return isKey ? `=${text}` : text;
  }

  pushMapState(size) {
    super.pushMapState(size);
    this.sizes.set(this.stack.top().map, size);
  }

  faithful(object, level = 0) {
    if (typeof object === "number") return BigInt(object);
    if (Array.isArray(object)) {
      require(level < MAX_LEVELS, "more levels than MessagePack libraries read");
      return object.map((item) => this.faithful(item, level + 1));
    }
    if (object === null || typeof object !== "object" || object instanceof Uint8Array || object instanceof Float) {
      return object;
    }
    require(level < MAX_LEVELS, "more levels than MessagePack libraries read");
    const entries = Object.entries(object);
    require(entries.length === (this.sizes.get(object) ?? 0), "a map that has a key twice");
    return new Map(entries.map(([key, value]) => [key.slice(1), this.faithful(value, level + 1)]));
  }
}

/** What the package throws of bytes that are no MessagePack. */
function refusing(work) {
  try {
    return work();
  } catch (error) {
    if (error instanceof RangeError || error instanceof DecodeError) throw new Refused(error.message);
    throw error;
  }
}

export function decode(bytes) {
  const decoder = new FaithfulDecoder();
  return decoder.faithful(refusing(() => decoder.decode(bytes)));
}

/** All objects of a file, one after the other; a bin is a view of the file, so that its place is known. */
export function* objects(bytes) {
  const decoder = new FaithfulDecoder();
  const found = decoder.decodeMulti(bytes);
  for (let next = refusing(() => found.next()); !next.done; next = refusing(() => found.next())) {
    yield decoder.faithful(next.value);
  }
}
