// The states and attributes that known tags have: the tables of docs/format.md, row by row.

import { NDArray } from "./dtypes.mjs";
import { Float } from "./msgpack.mjs";

/** Any value, a reference to one too. */
export const any = () => true;

/** Makes the forms below of the classes of the tree. */
export function formsOf({ List, Dict, Tagged }) {
  const nil = (value) => value === null;
  const bool = (value) => typeof value === "boolean";
  const int = (value) => typeof value === "bigint";
  const float = (value) => value instanceof Float;
  const number = (value) => int(value) || float(value);
  const str = (value) => typeof value === "string";
  const bin = (value) => value instanceof Uint8Array;
  const array = (value) => value instanceof NDArray;
  const map = (value) => value instanceof Dict;
  const list = (value) => value instanceof List;
  const within = (low, high) => (value) => int(value) && value >= low && value <= high;
  const either = (...forms) => (value) => forms.some((form) => form(value));
  const of = (...tags) => (value) => value instanceof Tagged && tags.includes(value.tag);
  const listOf = (form) => (value) => list(value) && value.items.every(form);
  const row = (...forms) => (value) =>
    list(value) && value.items.length === forms.length && forms.every((form, i) => form(value.items[i]));
  const arrayOf = (dtype, ...shape) => (value) =>
    array(value) && value.spec.description === dtype && (!shape.length || `${value.spec.shape}` === `${shape}`);
  const text = (pattern) => (value) => str(value) && pattern.test(value);
  const isNamed = (value) => map(value) && value.pairs.every(([key]) => str(key));
  const fields = (forms) => (value) => {
    if (!isNamed(value)) return false;
    const found = new Map(value.pairs);
    return Object.entries(forms).every(([name, form]) => (found.has(name) ? form(found.get(name)) : form.optional));
  };
  const optional = (form) => Object.assign((value) => form(value), { optional: true });

  const short = within(-(2n ** 16384n) + 1n, 2n ** 16384n - 1n);
  const offset = within(-86400n, 86399n);
  const zone = either(nil, of("timezone", "zoneinfo"));
  const name = { class: str };
  const day = "\\d{4}-\\d\\d-\\d\\d";
  const time = "\\d\\d:\\d\\d:\\d\\d(\\.\\d{6})?";
  const exponents = row(number, number, number, number, number, number, number);
  const unit = fields({
    symbol: str,
    name: str,
    dim: exponents,
    scale: number,
    factor: (value) => int(value) || (float(value) && Number.isFinite(value.value)),
    full: bool,
    parts: optional(listOf(row(str, str, number))),
  });

  const [word, draws] = [within(0n, 2n ** 32n - 1n), { has_uint32: within(0n, 1n), uinteger: within(0n, 2n ** 32n - 1n) }];
  const wide = within(0n, 2n ** 128n - 1n);
  const pcg = { state: fields({ state: wide, inc: wide }), ...draws };
  const generators = {
    PCG64: pcg,
    PCG64DXSM: pcg,
    MT19937: { state: fields({ key: arrayOf("uint32", 624), pos: within(0n, 624n) }) },
    Philox: {
      state: fields({ counter: arrayOf("uint64", 4), key: arrayOf("uint64", 2) }),
      buffer: arrayOf("uint64", 4),
      buffer_pos: within(0n, 4n),
      ...draws,
    },
    SFC64: { state: fields({ state: arrayOf("uint64", 4) }), ...draws },
  };
  const generator = (more) => (value) => {
    const kind = isNamed(value) && new Map(value.pairs).get("bit_generator");
    return str(kind) && Object.hasOwn(generators, kind) && fields({ ...generators[kind], ...more })(value);
  };
  const twister = (value) => arrayOf("uint32", 625)(value) && Number(value.elements[624]) <= 624;
  const masked = (value) => {
    const parts = { data: array, mask: either(array, nil), fill_value: either(arrayWithout, nil) };
    if (!fields(parts)(value)) return false;
    const found = new Map(value.pairs);
    return nil(found.get("mask")) || `${found.get("mask").spec.shape}` === `${found.get("data").spec.shape}`;
  };
  const arrayWithout = (value) => array(value) && value.spec.shape.length === 0;

  return {
    tuple: [list],
    list: [list],
    deque: [list, { maxlen: optional(int) }],
    dict: [map],
    OrderedDict: [map],
    defaultdict: [map, { factory: optional(str) }],
    Counter: [map],
    namedtuple: [isNamed, name],
    dataclass: [isNamed, name],
    pytree: [map, name],
    stateful: [any, name],
    "jax.Partial": [fields({ args: of("tuple"), keywords: map })],
    "brainstate.State": [any, name],
    "brainstate.NestedDict": [map],
    "brainstate.FlattedDict": [map],
    "brainstate.Module": [map, name],
    "brainpy.math.BrainPyObject": [map, name],
    "flax.FrozenDict": [map],
    "flax.nnx.Variable": [any, name],
    "flax.nnx.State": [map],
    "flax.nnx.Module": [map, name],
    "equinox.Module": [map, name],
    "equinox.nn.State": [map],
    "penzai.NamedArray": [any, { axes: listOf(str) }],
    "penzai.Variable": [any, name],
    float: [float],
    complex: [row(float, float)],
    bytearray: [bin],
    set: [list],
    frozenset: [list],
    enum: [fields({ name: either(str, nil), value: optional(any) }), name],
    ellipsis: [nil],
    function: [nil, { name: str }],
    range: [(value) => row(int, int, int)(value) && value.items[2] !== 0n],
    slice: [row(any, any, any)],
    datetime: [row(text(RegExp(`^${day}T${time}$`)), within(0n, 1n), zone)],
    date: [text(RegExp(`^${day}$`))],
    time: [row(text(RegExp(`^${time}$`)), within(0n, 1n), zone)],
    timedelta: [row(int, within(0n, 86399n), within(0n, 999999n))],
    timezone: [either(row(offset, within(0n, 999999n)), row(offset, within(0n, 999999n), str))],
    zoneinfo: [str],
    uuid: [(value) => bin(value) && value.length === 16],
    decimal: [text(/^-?(\d+(\.\d+)?(E[+-]\d+)?|Infinity|s?NaN\d*)$/)],
    fraction: [(value) => row(short, short)(value) && value.items[1] > 0n],
    random: [row(int, twister, either(float, nil))],
    "path.PurePosixPath": [str],
    "path.PureWindowsPath": [str],
    "path.PosixPath": [str],
    "path.WindowsPath": [str],
    "numpy.str": [str],
    "numpy.bytes": [bin],
    "numpy.strings": [listOf(either(str, nil)), { shape: listOf(within(0n, 2n ** 63n)), coerce: bool, na: optional(any) }],
    "numpy.subclass": [array, { kind: text(/^(matrix|recarray)$/) }],
    "numpy.masked": [masked, { hard: bool }],
    "numpy.masked_constant": [nil],
    "numpy.generator": [generator({}), { seed_seq: optional(of("numpy.seedsequence")) }],
    "numpy.seedsequence": [
      fields({
        entropy: either(short, listOf(short)),
        spawn_key: listOf(short),
        pool_size: within(4n, 256n),
        n_children_spawned: word,
      }),
    ],
    "numpy.randomstate": [generator({ has_gauss: within(0n, 1n), gauss: float })],
    "jax.key": [arrayOf("uint32"), { impl: str }],
    "brainunit.Quantity": [any, { unit: of("brainunit.Unit") }],
    "brainunit.Unit": [nil, { unit }],
    "brainunit.Dimension": [exponents],
  };
}
