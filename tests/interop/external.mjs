// Data in other files: what the feature `external` of docs/format.md asks for.

import { closeSync, lstatSync, openSync, readSync } from "node:fs";
import { join } from "node:path";

import { Missing, require } from "./msgpack.mjs";

const MAX_FILES = 64;
const NAME = /^[^/\\\0]+\.shared-[0-9a-f]{8}$/;

/** The table: files, each `{ name, ranges }`. All of it is checked before any of these files is looked for. */
export function parseExternal(external, blobs) {
  require(Array.isArray(external), "external that is no array");
  require(external.length >= 1 && external.length <= MAX_FILES, `data in ${external.length} other files`);
  const files = external.map(parseFile);
  require(new Set(files.map(({ name }) => name)).size === files.length, "another file that is named twice");
  const inCheckpoint = sorted(files.flatMap(({ ranges }) => ranges.map(({ at, size }) => [at, at + size])));
  requireApart(inCheckpoint, "ranges that overlap in the checkpoint");
  requireInBlobs(inCheckpoint, blobs);
  for (const { name, ranges } of files) {
    requireApart(sorted(ranges.map(({ from, size }) => [from, from + size])), `ranges that overlap in ${name}`);
  }
  return files;
}

function parseFile(row) {
  require(Array.isArray(row) && row.length === 2, "external of another form");
  const [name, data] = row;
  const isName = typeof name === "string" && NAME.test(name) && new TextEncoder().encode(name).length <= 255;
  require(isName, `the name ${JSON.stringify(String(name))} of another file`);
  const isBytes = data instanceof Uint8Array;
  require(isBytes && data.length > 0 && data.length % 24 === 0, `ranges in ${name} that are none`);
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const ranges = Array.from({ length: data.length / 24 }, (_, i) => {
    const [at, size, from] = [0, 8, 16].map((place) => view.getBigUint64(24 * i + place, true));
    require(size >= 1n, `an empty range in ${name}`);
    return { at, size, from }; // bigints, of which no sum wraps around
  });
  return { name, ranges };
}

const sorted = (spans) => spans.sort(([a], [b]) => (a < b ? -1 : Number(a > b)));

function requireApart(spans, message) {
  require(spans.every(([start], i) => i === 0 || spans[i - 1][1] <= start), message);
}

/** Both are in the order of their places. */
function requireInBlobs(spans, blobs) {
  let i = 0;
  for (const [start, end] of spans) {
    while (i < blobs.length && start >= blobs[i][0] + blobs[i][1]) i += 1;
    require(i < blobs.length && start >= blobs[i][0] && end <= blobs[i][0] + blobs[i][1], "a range that is in no blob");
  }
}

/** Put what stands in other files where it belongs: what stands there means nothing, and may be anything. */
export function fill(bytes, files, folder) {
  for (const { name, ranges } of files) {
    const path = join(folder, name);
    const size = sizeOf(path, name);
    require(ranges.every((range) => range.from + range.size <= size), `${name} ends too early`);
    const file = openSync(path);
    try {
      for (const { at, size, from } of ranges) {
        readInto(file, bytes.subarray(Number(at), Number(at + size)), Number(from), name);
      }
    } finally {
      closeSync(file);
    }
  }
}

/** Asked for before the file is opened, as to open a pipe would wait for somebody to write into it. */
function sizeOf(path, name) {
  let found;
  try {
    found = lstatSync(path, { bigint: true }); // a link could lead anywhere
  } catch (error) {
    if (error.code === "ENOENT") throw new Missing(name);
    throw error;
  }
  require(found.isFile(), `${name} is no regular file`);
  return found.size;
}

function readInto(file, bytes, from, name) {
  for (let done = 0; done < bytes.length; ) {
    const read = readSync(file, bytes, done, bytes.length - done, from + done);
    require(read > 0, `${name} ends too early`);
    done += read;
  }
}
