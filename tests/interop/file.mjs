// From the bytes of a file to its index and its arrays: every check that docs/format.md asks for.

import { decompress } from "fzstd";
import { createXXHash3 } from "hash-wasm";

import { NDArray, checkGrowth, parseSpec, storedSize } from "./dtypes.mjs";
import { fill, parseExternal } from "./external.mjs";
import { Missing, decode, objects, require } from "./msgpack.mjs";

const MAGIC = Uint8Array.from([0x89, 0x42, 0x54, 0x43, 0x4b, 0x50, 0x54, 0x0d, 0x0a, 0x1a, 0x0a, 0x00]);
const HEADER_SIZE = 18;
const TRAILER_SIZE = 38;
const MAX_FRAME = 2 ** 22;
const FEATURES = ["zstd", "external"];
const hasher = await createXXHash3(0, 0);

function xxh3(bytes) {
  hasher.init();
  hasher.update(bytes);
  return BigInt(`0x${hasher.digest("hex")}`);
}

function same(bytes, expected) {
  return bytes.length === expected.length && expected.every((byte, i) => bytes[i] === byte);
}

const view = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** A checkpoint: `index` is its index, `array(n)` gives an array of its table. What it has elsewhere is in `folder`. */
export class Checkpoint {
  constructor(bytes, folder, maxSize = 2 ** 30) {
    this.bytes = bytes;
    this.folder = folder;
    this.maxSize = maxSize;
    this.readHeader();
    this.readTrailer();
    this.readIndex();
    this.readBlobTable();
    this.readExternal();
    this.step();
    this.checkHashes();
    this.join();
    this.readArrayTable();
  }

  readHeader() {
    const head = this.bytes.subarray(0, 14);
    require(this.bytes.length >= HEADER_SIZE && same(head, [0xc4, 0x10, ...MAGIC]), "not a checkpoint");
    this.version = view(this.bytes).getUint32(14, true);
    require(this.version === 1, `format version ${this.version}, and this reader knows version 1`);
  }

  readTrailer() {
    const at = this.bytes.length - TRAILER_SIZE;
    require(at >= HEADER_SIZE, "cut short");
    const trailer = this.bytes.subarray(at);
    require(same(trailer.subarray(0, 2), [0xc4, 0x24]) && same(trailer.subarray(26), MAGIC), "no trailer");
    const [offset, length, hash] = [2, 10, 18].map((i) => view(trailer).getBigUint64(i, true));
    require(offset >= HEADER_SIZE && offset + length === BigInt(at), "a trailer that points elsewhere");
    this.indexAt = Number(offset);
    const index = this.bytes.subarray(this.indexAt, at);
    require(xxh3(index) === hash, "the checksum of the index does not match");
    this.packedIndex = index;
  }

  readIndex() {
    const index = decode(this.packedIndex);
    require(index instanceof Map, "an index that is no map");
    for (const key of ["format", "library", "metadata", "arrays", "shared", "structure"]) {
      require(index.has(key), `an index without ${key}`);
    }
    require(index.get("format") === 1n, "an index of another version");
    require(typeof index.get("library") === "string", "a library that is no str");
    const features = index.has("features") ? index.get("features") : [];
    require(Array.isArray(features), "features that are no array");
    for (const feature of features) require(FEATURES.includes(feature), `the unknown feature ${feature}`);
    this.compressed = features.includes("zstd");
    this.external = features.includes("external");
    require(!this.external || index.has("external"), "an index without external");
    this.index = index;
    this.table = index.get("arrays");
    require(this.table instanceof Map, "an array table that is no map");
  }

  /** A column of the array table; its numbers have to be exact in JavaScript, but for hashes. */
  column(name, size, { exact = true } = {}) {
    const data = this.table.get(name);
    require(data instanceof Uint8Array && data.length % size === 0, `the column ${name} is not right`);
    const get = {
      1: (i) => data[i],
      4: (i) => view(data).getUint32(i, true),
      8: (i) => view(data).getBigUint64(i, true),
    }[size];
    const numbers = Array.from({ length: data.length / size }, (_, i) => get(i * size));
    if (size < 8 || !exact) return numbers;
    return numbers.map((n) => {
      require(n <= BigInt(Number.MAX_SAFE_INTEGER), `the column ${name} has the number ${n}`);
      return Number(n);
    });
  }

  readBlobTable() {
    this.at = this.column("blob_at", 8);
    this.size = this.column("blob_size", 8);
    this.hashes = this.column("hashes", 8, { exact: false });
    this.rawSize = this.compressed ? this.column("raw_size", 8) : this.size;
    this.width = this.compressed ? this.column("width", 1) : this.size.map(() => 0);
    const block = this.table.get("hash_block");
    require(typeof block === "bigint" && block >= 1n, "a hash_block that is none");
    this.hashBlock = Number(block);
    const count = this.at.length;
    require([this.size, this.rawSize, this.width].every((column) => column.length === count), "columns that differ");
    let end = HEADER_SIZE;
    let blocks = 0;
    for (let i = 0; i < count; i++) {
      const gap = this.at[i] - 5 - end;
      require(this.at[i] % 64 === 0 && gap >= 0 && gap < 4096, `blob ${i} is not where it should be`);
      require(this.size[i] >= 1 && this.size[i] < 2 ** 32, `blob ${i} has ${this.size[i]} bytes`);
      require(
        this.width[i] ? this.rawSize[i] > this.size[i] && this.rawSize[i] <= MAX_FRAME : this.rawSize[i] === this.size[i],
        `blob ${i} cannot stand for ${this.rawSize[i]} bytes`,
      );
      end = this.at[i] + this.size[i];
      blocks += Math.ceil(this.size[i] / this.hashBlock);
    }
    require(end === this.indexAt, "the index does not follow the last blob");
    require(blocks === this.hashes.length, "hashes are missing, or too many");
    require(this.rawSize.reduce((a, b) => a + b, 0) <= this.maxSize, `more than ${this.maxSize} bytes`);
  }

  /** From here on, the file is a whole one. (Without the feature, a key `external` means nothing.) */
  readExternal() {
    if (!this.external) return;
    const blobs = this.at.map((at, i) => [at, this.size[i]].map(BigInt));
    const files = parseExternal(this.index.get("external"), blobs);
    if (this.folder === undefined) throw new Missing(files[0].name); // nothing is beside what is no file
    fill(this.bytes, files, this.folder);
  }

  /** Step through the file as any MessagePack library can, and find what the table says. */
  step() {
    const found = [];
    let maps = 0;
    for (const object of objects(this.bytes)) {
      if (object === null) require(maps === 0, "padding after the index");
      else if (object instanceof Uint8Array) found.push([object.byteOffset - this.bytes.byteOffset, object.length]);
      else {
        require(object instanceof Map, "an object that does not belong here");
        maps += 1;
        found.push(["index", 0]);
      }
    }
    const blobs = this.at.map((at, i) => [at, this.size[i]]);
    const expected = [[2, 16], ...blobs, ["index", 0], [this.bytes.length - TRAILER_SIZE + 2, 36]];
    require(JSON.stringify(found) === JSON.stringify(expected), "the objects of the file are not those of the table");
    for (const [i, at] of this.at.entries()) {
      const head = this.bytes.subarray(at - 5, at);
      require(head[0] === 0xc6 && view(head).getUint32(1) === this.size[i], `blob ${i} has another head`);
    }
  }

  checkHashes() {
    let next = 0;
    for (const [i, at] of this.at.entries()) {
      for (let start = 0; start < this.size[i]; start += this.hashBlock) {
        const block = this.bytes.subarray(at + start, at + Math.min(this.size[i], start + this.hashBlock));
        require(xxh3(block) === this.hashes[next++], `the checksum of block ${next - 1} does not match`);
      }
    }
  }

  join() {
    this.total = this.rawSize.reduce((a, b) => a + b, 0);
    const used = this.width.some((width) => width > 0) ? this.specSizes().reduce((a, b) => a + b, 0) : null;
    if (used !== null) {
      require(this.total - used <= 64 * this.column("spec", 4).length, "bytes that belong to no array");
    }
    this.data = new Uint8Array(this.total);
    let start = 0;
    for (const [i, at] of this.at.entries()) {
      const blob = this.bytes.subarray(at, at + this.size[i]);
      this.data.set(this.width[i] ? decompressed(blob, this.rawSize[i], this.width[i]) : blob, start);
      start += this.rawSize[i];
    }
  }

  /** How many stored bytes each array has. */
  specSizes() {
    if (this.sizes) return this.sizes;
    const rows = this.table.get("specs");
    require(Array.isArray(rows), "specs that are no array");
    this.specs = rows.map(parseSpec);
    const numbers = this.column("spec", 4);
    require(numbers.every((n) => n < this.specs.length), "an array of a spec that there is not");
    this.specOf = numbers.map((n) => this.specs[n]);
    this.sizes = this.specOf.map(storedSize);
    return this.sizes;
  }

  readArrayTable() {
    const sizes = this.specSizes();
    this.offsets = this.column("offset", 8);
    require(this.offsets.length === sizes.length, "columns that differ");
    const [memory, stored] = [this.specOf.map((spec) => spec.memory), sizes.map(BigInt)];
    checkGrowth(...[memory, stored].map((column) => column.reduce((a, b) => a + b, 0n)));
    const ranges = sizes.map((size, i) => [this.offsets[i], this.offsets[i] + size]);
    require(ranges.every(([, end]) => end <= this.total), "an array outside of the blobs");
    const held = ranges.filter(([start, end]) => end > start).sort(([a], [b]) => a - b);
    require(held.every(([start], i) => i === 0 || held[i - 1][1] <= start), "arrays share bytes");
    this.arrays = new Array(sizes.length).fill(null);
  }

  get count() {
    return this.specOf.length;
  }

  /** An array: one object, however often it is asked for. */
  array(n) {
    const start = this.offsets[n];
    this.arrays[n] ??= new NDArray(this.specOf[n], this.data.subarray(start, start + this.sizes[n]));
    return this.arrays[n];
  }
}

function decompressed(blob, rawSize, width) {
  require(frameSize(blob, rawSize) === blob.length, "a compressed blob that is not one frame");
  let data;
  try {
    data = decompress(blob);
  } catch (error) {
    require(false, `zstd: ${error.message}`);
  }
  require(data.length === rawSize, "a frame that gives another size");
  const count = Math.floor(rawSize / width);
  const out = new Uint8Array(rawSize);
  for (let item = 0; item < count; item++) {
    for (let byte = 0; byte < width; byte++) out[item * width + byte] = data[byte * count + item];
  }
  out.set(data.subarray(count * width), count * width);
  return out;
}

/** Walk over one zstd frame (RFC 8878, 3.1.1) and give its size; its content has to be as large as it should be. */
function frameSize(blob, rawSize) {
  require(blob.length >= 6 && view(blob).getUint32(0, true) === 0xfd2fb528, "no zstd frame");
  const descriptor = blob[4];
  const single = (descriptor >> 5) & 1;
  require((descriptor & 0b1011) === 0, "a zstd frame that needs a dictionary, or has reserved bits");
  let at = 5 + (single ? 0 : 1);
  const bytes = [single, 2, 4, 8][descriptor >> 6];
  let size = 0;
  for (let i = 0; i < bytes; i++) size += (blob[at + i] ?? 0) * 2 ** (8 * i);
  require(bytes > 0 && size + (bytes === 2 ? 256 : 0) === rawSize, "a zstd frame of another size");
  at += bytes;
  for (let last = 0; !last; ) {
    require(at + 3 <= blob.length, "a zstd frame that is cut off");
    const head = blob[at] | (blob[at + 1] << 8) | (blob[at + 2] << 16);
    last = head & 1;
    at += 3 + (((head >> 1) & 3) === 1 ? 1 : head >> 3);
  }
  return at + ((descriptor >> 2) & 1 ? 4 : 0);
}
