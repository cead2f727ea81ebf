"""Classes that users register, and enums, dataclasses and pytrees that they do not."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import random
import warnings
from typing import Any, Generic, NamedTuple, TypeVar

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintools_ckpt as bt
from braintools_ckpt.tree.classes import base_with_hidden_data

T = TypeVar("T")


class Pair(NamedTuple):
    a: int


@functools.lru_cache
def name_of(kind: str) -> str:
    return f"test_objects.{kind}"


def again(tree: Any, target: Any = None, **options: Any) -> Any:
    return bt.msgpack_loads(bt.msgpack_dumps(tree), target, **options)


def raises(kind: type[Exception], message: str, function: Any, *args: Any, **options: Any) -> Exception:
    with pytest.raises(kind) as caught:
        function(*args, **options)
    assert str(caught.value) == message
    assert type(caught.value) is kind
    return caught.value


def fresh(*bases: type, **body: Any) -> Any:
    """Make a class that nobody has registered."""
    return type("Fresh", bases, {"__module__": "test_objects", "__qualname__": "Fresh", **body})


# --- what can be registered by its attributes -----------------------------------------------------------------

HIDDEN = [dict, list, tuple, Pair, str, int, float, complex, set, bytes, np.ndarray, Exception, random.Random]
HIDDEN += [collections.deque, np.float32, type, BaseException]


@pytest.mark.parametrize("base", HIDDEN, ids=lambda ty: ty.__name__)
@pytest.mark.parametrize("override", [False, True])
def test_bases_that_hold_data_outside_of_attributes_are_refused(base, override):
    ty = fresh(base)
    hidden = base_with_hidden_data(ty)
    assert hidden is not None
    message = (
        f"Fresh cannot be saved by its attributes: its base {hidden.__name__} holds data that is in none. Leave it "
        "unregistered if it is a subclass of a builtin container, scalar or array: those are saved as they are. "
        "Otherwise, or to save more than that, call msgpack_register_serialization."
    )
    raises(bt.RegistrationError, message, bt.serializable(override=override), ty)


def test_bases_without_hidden_data_are_not_refused():
    class Slots:
        __slots__ = ("__weakref__", "a", "b")

    class More(Slots):
        __slots__ = ("c",)

    class Dict(More):
        pass

    @dataclasses.dataclass(slots=True, weakref_slot=True)
    class Data:
        a: int

    class Own(Generic[T]):
        pass

    for ty in (Slots, More, Dict, Data, Own, fresh(), fresh(Dict)):
        assert base_with_hidden_data(ty) is None, ty


def test_a_container_may_still_be_registered_by_a_pair_of_functions():
    ty = fresh(dict)
    bt.msgpack_register_serialization(ty, lambda x: {"n": len(x)}, lambda t, s: ty(n=s["n"]))
    assert again(ty(a=1, b=2), ty()) == {"n": 2}


def test_dataclasses_that_hold_other_data_are_not_saved_by_their_fields():
    @dataclasses.dataclass
    class Failed(Exception):  # noqa: N818
        code: int

    with pytest.raises(bt.SerializationError, match="no handler is registered for it"):
        bt.msgpack_dumps(Failed(3))


def test_states_need_no_registration():
    ty = fresh(brainstate.State)
    with pytest.raises(bt.RegistrationError) as caught:
        bt.serializable(ty)
    assert str(caught.value) == (
        "Fresh needs no registration: it is saved as its base is, by <StateHandler of "
        "braintools_ckpt.adapters.brainstate>. Leave the decorator out, or pass override=True to save its attributes "
        "instead."
    )
    bt.serializable(fields=("extra",), name=name_of("state"), override=True)(ty)


def test_a_subclass_of_a_registered_class_may_be_registered():
    base = fresh()
    bt.serializable(name=name_of("base"))(base)
    derived = fresh(base)
    bt.serializable(name=name_of("derived"))(derived)
    assert type(again(derived())) is derived


# --- pairs of functions ---------------------------------------------------------------------------------------


def test_a_handler_must_return_the_object():
    ty = fresh()
    bt.msgpack_register_serialization(ty, lambda x: {}, lambda t, s: None, name=name_of("none"))
    state = brainstate.State(0)
    message = "The handler of Fresh must return the restored object; it returned None (at path net/0)."
    data = bt.msgpack_dumps({"s": brainstate.State(1), "net": [ty()]})
    raises(bt.HandlerError, message, bt.msgpack_loads, data, {"s": state, "net": [ty()]})
    assert state.value == 0


def test_a_handler_may_return_an_object_of_another_registered_class():
    ty = fresh()
    derived = fresh(ty)
    bt.msgpack_register_serialization(ty, lambda x: {}, lambda t, s: ty(), name=name_of("base of two"))
    assert type(again(derived(), derived())) is ty


def nothing() -> dict[str, Any]:
    """Take no argument."""
    return {}


WRONG = {
    "to": (nothing, lambda t, s: t, "ty_to_state_dict must take one argument, the object."),
    "from 1": (vars, lambda t: t, "ty_from_state_dict must take (target, state, mismatch) or (target, state)."),
    "from 4": (
        vars,
        lambda a, b, c, d: a,
        "ty_from_state_dict must take (target, state, mismatch) or (target, state).",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_functions_that_cannot_be_called(case):
    to, back, message = WRONG[case]
    raises(bt.RegistrationError, message, bt.msgpack_register_serialization, fresh(), to, back)


def test_builtins_without_a_signature_may_be_handlers():
    bt.msgpack_register_serialization(fresh(), dict, max, name=name_of("builtin"))


# --- fields ---------------------------------------------------------------------------------------------------


def test_an_object_that_lacks_a_named_field():
    ty = bt.serializable(fields=("a", "b"), name=name_of("lacks"))(fresh())
    whole, half = ty(), ty()
    whole.a = whole.b = half.a = 1
    message = (
        "The Fresh at path net/0 has no value for its field(s) {'b'}. Set them first, or leave them out of the fields."
    )
    raises(bt.HandlerError, message, bt.msgpack_dumps, {"net": [half]})
    raises(bt.HandlerError, message, again, {"net": [whole]}, {"net": [half]})


@pytest.mark.parametrize("register", [False, True])
def test_a_dataclass_with_an_unset_field(register):
    @dataclasses.dataclass
    class Late:
        a: int
        b: int = dataclasses.field(init=False)

    if register:
        bt.serializable(name=name_of("late"))(Late)
    whole = Late(1)
    whole.b = 2
    message = (
        f"The {Late.__qualname__} at path x has no value for its field(s) {{'b'}}. Set them first, or leave them out "
        "of the fields."
    )
    raises(bt.HandlerError, message, bt.msgpack_dumps, {"x": Late(1)})
    raises(bt.HandlerError, message, again, {"x": whole}, {"x": Late(1)})


@pytest.mark.parametrize("names", [{"fields": ("a", "bb")}, {"static": ("bb",)}])
def test_names_that_a_dataclass_does_not_have(names):
    @dataclasses.dataclass
    class Known:
        a: int

    message = "The dataclass Known has no field(s) {'bb'}; its fields are {'a'}."
    raises(bt.RegistrationError, message, bt.serializable(**names), Known)


def test_names_that_are_no_strings():
    message = "fields and static must be lists of names, got [1]."
    raises(bt.RegistrationError, message, bt.serializable(fields=[1]), fresh())


@bt.serializable
class Private:
    __slots__ = ("__a", "b")

    def __init__(self, a: Any) -> None:
        self.__a = a

    @property
    def a(self) -> Any:
        return self.__a


def test_private_and_unset_slots():
    for target in (None, Private(0)):
        back = again(Private(3), target)
        assert back.a == 3
        assert not hasattr(back, "b")


def test_objects_of_generic_classes():
    class Box(Generic[T]):
        def __init__(self, item: Any) -> None:
            self.item = item

    bt.serializable(name=name_of("box"))(Box)
    box = Box[int](3)
    assert "__orig_class__" in vars(box)
    assert vars(again(box)) == {"item": 3}
    assert vars(again(box, Box[int](0))) == {"item": 3, "__orig_class__": Box[int]}


def test_static_fields_in_slots_come_from_the_target():
    @bt.serializable(static=("act",), name=name_of("static slots"))
    class Net:
        __slots__ = ("act", "w")

        def __init__(self, w: Any, act: Any) -> None:
            self.w, self.act = w, act

    back = again(Net(1, max), Net(0, min))
    assert (back.w, back.act) == (1, min)


@pytest.mark.parametrize("register", [False, True])
def test_attributes_beside_the_fields_of_a_dataclass_are_the_targets(register):
    @dataclasses.dataclass
    class Cached:
        a: int

    if register:
        bt.serializable(name=name_of("cached"))(Cached)
    saved, target = Cached(1), Cached(0)
    saved.cache, target.cache = "saved", "target"
    assert vars(again(saved, target)) == {"a": 1, "cache": "target"}


# --- what a file may set --------------------------------------------------------------------------------------


def file_of(name: str, **fields: Any) -> bytes:
    """Write a file with fields of any names for a registered class."""
    ty = fresh()
    bt.msgpack_register_serialization(ty, lambda x: fields, lambda t, s: t, name=name, override=True)
    return bt.msgpack_dumps({"net": ty()})


CHANGED = "The class has changed: pass a target, or register an upgrade."


class Slotted:
    __slots__ = ("a",)


@dataclasses.dataclass
class Data:
    a: int
    b: int = 5
    c: list = dataclasses.field(default_factory=list)


class Open:
    kind = "class"

    def method(self) -> None: ...

    @classmethod
    def make(cls) -> None: ...

    @property
    def value(self) -> int:
        return 1


UNKNOWN = {
    "dataclass": (Data, {}, "z"),
    "slots": (Slotted, {}, "z"),
    "fields": (Open, {"fields": ("a",)}, "z"),
    "static": (Open, {"static": ("z",)}, "z"),
    "method": (Open, {}, "method"),
    "classmethod": (Open, {}, "make"),
    "property": (Open, {}, "value"),
    "class": (Open, {}, "__class__"),
    "dict": (Open, {}, "__dict__"),
    "dunder": (Open, {}, "__anything__"),
    "no identifier": (Open, {}, "a b"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_names_that_a_file_must_not_set(case):
    ty, options, field = UNKNOWN[case]
    data = file_of(name_of("unknown"), a=1, **{field: 2})
    bt.serializable(name=name_of("unknown"), override=True, **options)(ty)
    message = (
        f"The checkpoint's {ty.__name__} at path net has the field(s) {{{field!r}}}, which the class does not have"
    )
    error = bt.CorruptCheckpointError if field.startswith("__") or " " in field else bt.HandlerError
    raises(error, f"{message}. {CHANGED}", bt.msgpack_loads, data)


def test_names_that_a_file_may_set():
    data = file_of(name_of("free"), a=1, kind="file", mro=3, _private=4)
    bt.serializable(name=name_of("free"), override=True)(Open)
    assert vars(bt.msgpack_loads(data)["net"]) == {"a": 1, "kind": "file", "mro": 3, "_private": 4}


def test_attributes_that_a_file_must_not_set_are_not_saved_either():
    bt.serializable(name=name_of("shadow"), override=True)(Open)
    shadow = Open()
    shadow.method = shadow.a = 3
    message = (
        "The Open at path x has the attribute(s) {'method'}, which a file must not set: they are no plain names, or "
        "the class defines them itself. Name the fields to save with @serializable(fields=...), or pass these as "
        "static=."
    )
    raises(bt.HandlerError, message, bt.msgpack_dumps, {"x": shadow})
    bt.serializable(name=name_of("shadow"), override=True, fields=("method", "a"))(Open)
    assert vars(again(shadow)) == {"method": 3, "a": 3}


def test_fields_that_a_file_lacks():
    bt_name = name_of("lacking")
    data = file_of(bt_name, b=1)
    bt.serializable(name=bt_name, override=True)(Data)
    message = f"The checkpoint's Data at path net lacks the field(s) {{'a'}}. {CHANGED}"
    raises(bt.HandlerError, message, bt.msgpack_loads, data)
    with pytest.raises(bt.MismatchError, match=r"contains keys \{'a', 'c'\} which are not present"):
        bt.msgpack_loads(data, {"net": Data(1)})


def test_fields_that_a_file_lacks_have_their_defaults():
    data = file_of(name_of("defaults"), a=1)
    bt.serializable(name=name_of("defaults"), override=True)(Data)
    assert bt.msgpack_loads(data)["net"] == Data(1, 5, [])


def test_static_fields_without_a_default_are_warned_of():
    @bt.serializable(static=("act", "rate"), name=name_of("static"))
    class Net:
        rate = 0.5

    net = Net()
    net.w, net.act = 1, max
    message = (
        "The checkpoint does not hold the static field(s) {'act'} of "
        f"{Net.__qualname__}: without a target they stay unset. Pass a target, or give them defaults."
    )
    with pytest.warns(UserWarning, match="static") as record:
        back = again([net, {"net": net}, Net()])
    assert [str(warning.message) for warning in record] == [message]
    assert vars(back[0]) == {"w": 1}
    assert again(net, net).act is max


# --- enums ----------------------------------------------------------------------------------------------------


class Color(enum.Enum):
    RED = 1
    BLUE = "blue"


def test_an_enum_without_a_target_says_what_to_do():
    with pytest.warns(UserWarning, match="enum") as record:
        assert again({"c": Color.RED}) == {"c": {"name": "RED", "value": 1}}
    assert [str(warning.message) for warning in record] == [
        "The checkpoint holds a member of the enum 'test_objects.Color': without a target it is loaded as a plain "
        "dict. Pass a target to get the member back."
    ]


def test_registered_enums_come_back_as_members():
    @bt.serializable(name=name_of("mode"))
    class Mode(enum.Flag):
        A = 1
        B = 2

    tree = {"a": Mode.A, "ab": Mode.A | Mode.B, Mode.B: [Mode.B]}
    for target in (None, {"a": Mode.B, "ab": Mode.A, Mode.B: [Mode.A]}):
        assert again(tree, target) == tree
    data = bt.msgpack_dumps({"m": Mode.B})

    @bt.serializable(name=name_of("mode"), override=True)
    class Renamed(enum.Flag):
        FIRST = 1
        SECOND = 2

    assert bt.msgpack_loads(data) == {"m": Renamed.SECOND}
    assert bt.msgpack_loads(data, {"m": Renamed.FIRST}) == {"m": Renamed.SECOND}

    @bt.serializable(name=name_of("mode"), override=True)
    class Smaller(enum.Enum):
        FIRST = 1

    message = (
        f"The checkpoint holds the member B of {Smaller.__qualname__} at path m, which the class does not have. Give "
        f"{Smaller.__qualname__} this member, as an alias if it has been renamed."
    )
    raises(bt.HandlerError, message, bt.msgpack_loads, data)


def test_an_enum_is_registered_by_its_name_alone():
    ty = enum.Enum("Plain", "A B")
    message = (
        "Plain is an enum, which is registered by its name alone: leave out fields=, static=, version= and upgrade=."
    )
    for options in ({"fields": ("A",)}, {"static": ("A",)}, {"version": 2}, {"upgrade": {1: dict}}):
        with pytest.raises(bt.RegistrationError):
            bt.serializable(**options)(ty)
    raises(bt.RegistrationError, message, bt.serializable(version=2), ty)


def test_registered_and_plain_enums_fit_each_other():
    def define():
        class Same(enum.Enum):
            A = 1
            B = 2

        return Same

    plain, registered = define(), bt.serializable(name=name_of("same"))(define())
    assert again(plain.B, registered.A) is registered.B
    assert again(registered.B, plain.A) is plain.B


def test_members_of_another_enum_do_not_fit():
    other = enum.Enum("Other", {"RED": 1, "BLUE": "blue"}, module="test_objects")
    message = (
        "Leaf mismatch: expected a member of Other, got Color.RED at path c. Nothing was loaded. Pass mismatch='warn' "
        "or mismatch='ignore' to keep the target's values where they do not fit."
    )
    raises(bt.MismatchError, message, again, {"c": Color.RED}, {"c": other.BLUE})
    moved = enum.Enum("Color", {"RED": 1, "BLUE": "blue"}, module="elsewhere")
    assert again({"c": Color.RED}, {"c": moved.BLUE}) == {"c": moved.RED}
    with pytest.raises(bt.MismatchError, match="expected a member of Color, got Other.BLUE at path c"):
        again({"c": other.BLUE}, {"c": Color.RED})


def test_an_enum_whose_values_cannot_be_saved_is_saved_by_name():
    class Kind(enum.Enum):
        SINGLE = (np.float32, np.zeros(3))
        DOUBLE = (np.float64, np.zeros(3))

    tree = {"k": [Kind.DOUBLE, np.ones(2)]}
    back = again(tree, {"k": [Kind.SINGLE, np.zeros(2)]})
    assert back["k"][0] is Kind.DOUBLE
    np.testing.assert_array_equal(back["k"][1], np.ones(2))
    with pytest.warns(UserWarning, match="a member of the enum"):
        assert again(tree)["k"][0] == {"name": "DOUBLE"}


# --- upgrades -------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Inner:
    lr: Any
    color: Color


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass
class Tree:
    w: Any

    def tree_flatten_with_keys(self):
        return ((jax.tree_util.GetAttrKey("w"), self.w),), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def versioned(version: int, **options: Any) -> Any:
    @bt.serializable(name=name_of("versioned"), version=version, override=True, **options)
    class Holder:
        def __init__(self, **fields: Any) -> None:
            self.__dict__.update(fields)

    return Holder


def test_an_upgrade_passes_on_what_only_the_target_knows():
    """Enums, dataclasses, pytrees and named tuples, at any depth, with arrays in them, and without a warning."""

    def parts(number: float, color: Color) -> dict[str, Any]:
        inner = Inner(np.full(2, number), color)
        return {"inner": inner, "color": color, "deep": [{"t": Tree(jnp.full(3, number))}, Pair(int(number))]}

    holder = versioned(1)
    data = bt.msgpack_dumps({"h": holder(**parts(1.0, Color.BLUE), old=3)})
    seen = []

    def upgrade(state: dict[str, Any]) -> dict[str, Any]:
        seen.append(state["inner"]["lr"].tolist())
        return {"new": state.pop("old"), **state}

    holder = versioned(2, upgrade={1: upgrade})
    back = bt.msgpack_loads(data, {"h": holder(**parts(0.0, Color.RED), new=0)})["h"]
    assert seen == [[1.0, 1.0]]
    assert type(back) is holder
    assert (back.new, back.color, back.inner.color) == (3, Color.BLUE, Color.BLUE)
    assert type(back.inner) is Inner
    np.testing.assert_array_equal(back.inner.lr, np.ones(2))
    np.testing.assert_array_equal(back.deep[0]["t"].w, np.ones(3))
    assert back.deep[1] == Pair(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert bt.msgpack_loads(data)["h"].color == {"name": "BLUE", "value": "blue"}


def test_an_upgrade_may_change_what_it_passes_on():
    holder = versioned(1)
    data = bt.msgpack_dumps(holder(inner=Inner(1, Color.RED)))

    def upgrade(state: dict[str, Any]) -> dict[str, Any]:
        state["inner"]["lr"] = 7
        return state

    holder = versioned(2, upgrade={1: upgrade})
    assert bt.msgpack_loads(data, holder(inner=Inner(0, Color.BLUE))).inner == Inner(7, Color.RED)


FAILING = {
    "newer": (
        1,
        {},
        "The checkpoint holds a {0} of version 3, but the class registered here has version 1. Update the code that "
        "defines {0}",
    ),
    "no step": (
        4,
        {},
        "The checkpoint holds a {0} of version 3, and no upgrade from 3 to 4 is registered. Pass upgrade={{3: "
        "function}} where {0} is registered",
    ),
    "raises": (4, {3: lambda s: s["z"]}, "The upgrade of {0} from version 3 failed: KeyError: 'z'"),
    "no dict": (
        4,
        {3: lambda s: [s]},
        "The upgrade of {0} from version 3 must return a dict with string keys, got list",
    ),
    "keys": (
        4,
        {3: lambda s: {1: s}},
        "The upgrade of {0} from version 3 must return a dict with string keys, got keys [1]",
    ),
}


@pytest.mark.parametrize("case", FAILING)
def test_failing_upgrades_name_the_class_and_the_path(case):
    version, upgrade, message = FAILING[case]
    data = bt.msgpack_dumps({"net": [versioned(3)(a=1)]})
    holder = versioned(version, upgrade=upgrade)
    message = message.format(holder.__qualname__) + " (name 'test_objects.versioned', at path net/0)."
    for target in (None, {"net": [holder(a=0)]}):
        raises(bt.HandlerError, message, bt.msgpack_loads, data, target)


def test_upgrades_of_pairs_of_functions_name_the_path_too():
    def define(version: int, **options: Any) -> Any:
        ty = fresh()
        bt.msgpack_register_serialization(
            ty, lambda x: {}, lambda t, s: t, name=name_of("pair"), version=version, override=True, **options
        )
        return ty

    data = bt.msgpack_dumps({"net": [define(1)()]})
    ty = define(2, upgrade={1: lambda s: 1 / 0})
    message = (
        "The upgrade of Fresh from version 1 failed: ZeroDivisionError: division by zero (name 'test_objects.pair', at "
        "path net/0)."
    )
    for target in (None, {"net": [ty()]}):
        error = raises(bt.HandlerError, message, bt.msgpack_loads, data, target)
        assert isinstance(error.__cause__, ZeroDivisionError)


def test_an_upgrade_that_returns_what_cannot_be_loaded():
    data = bt.msgpack_dumps({"net": versioned(1)(a=1)})
    holder = versioned(2, upgrade={1: lambda s: {"a": len}})
    message = (
        f"The upgrade of {holder.__qualname__} returned what cannot be loaded: Cannot save a value of type "
        "builtin_function_or_method at path a: no handler is registered for it. Functions and classes are not saved; "
        "take it out of the tree, or hold it in a static field. (at path net)."
    )
    raises(bt.HandlerError, message, bt.msgpack_loads, data, {"net": holder(a=0)})


@pytest.mark.parametrize("steps", [[1], [1, 3], [0, 1, 2, 3], [3, 4], [4], [1, 2, 3, 4]])
def test_steps_that_leave_gaps_or_lead_too_far(steps):
    message = (
        "upgrade must have a step for each version from its first one to 3, since version=4; got steps from the "
        f"versions {steps}."
    )
    options = {"version": 4, "upgrade": dict.fromkeys(steps, dict)}
    raises(bt.RegistrationError, message, bt.serializable(**options), fresh())
    raises(
        bt.RegistrationError,
        message,
        bt.msgpack_register_serialization,
        fresh(),
        lambda x: {},
        lambda t, s: t,
        **options,
    )


@pytest.mark.parametrize("upgrade", [{"1": dict}, {1: 5}, {1: nothing}, {True: dict}])
def test_steps_that_are_no_functions_of_a_state(upgrade):
    message = "upgrade must map version numbers to functions of one state dict."
    raises(bt.RegistrationError, message, bt.serializable(version=2, upgrade=upgrade), fresh())


def test_the_first_versions_need_no_step():
    bt.serializable(version=3, upgrade={2: dict}, name=name_of("late start"))(fresh())


# --- pytrees --------------------------------------------------------------------------------------------------


def test_a_pytree_fits_a_class_with_the_same_keys():
    @jax.tree_util.register_pytree_with_keys_class
    class Other(Tree):
        pass

    assert type(again(Tree(np.ones(2)), Other(np.zeros(2)))) is Other


def test_a_class_that_jax_learns_of_late_is_a_pytree():
    ty = fresh()
    with pytest.raises(bt.SerializationError):
        bt.msgpack_dumps(ty())
    jax.tree_util.register_pytree_node(ty, lambda x: ((1,), None), lambda aux, children: ty())
    assert bt.msgpack_dumps(ty())
