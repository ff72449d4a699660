"""Pickling of all MLX objects, and of wrappers with the `__class__` of another type."""

from __future__ import annotations

import functools
import importlib
import inspect
import pickle
import pkgutil
import subprocess
import sys
import typing
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.utils
import pytest

from openruntime_jupyter.arrays import function_pickler, pickling

nn: Any = importlib.import_module("mlx.nn")  # mypy does not find its names
optim: Any = importlib.import_module("mlx.optimizers")

X = mx.arange(6.0).reshape(2, 3)


def square(a: Any) -> Any:
    return (a * a).sum()


def double(a: Any) -> Any:
    return a * 2


def minus(a: Any, b: Any) -> Any:
    return a - b


def gradient(a: Any) -> Any:
    return mx.grad(square)(a) + 1


def there_and_back(value: Any) -> Any:
    return pickling.unpack(pickling.pack(value, None))


def mlx_modules() -> list[Any]:
    for package in (nn, optim):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(found.name)
    return [module for name, module in sorted(sys.modules.items()) if name in ("mlx.core", "mlx.utils") or name.startswith("mlx.")]


def public(module: Any) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations":
            yield f"{module.__name__}.{name}", value


def test_named_mlx_objects_round_trip() -> None:
    found = [named for module in mlx_modules() for named in public(module)]
    assert len(found) > 700
    for name, value in found:
        back = there_and_back(value)
        is_data = not callable(value) or typing.get_origin(value) is not None
        assert back is value or (is_data and repr(back) == repr(value) and type(back) is type(value)), name


def test_mlx_names_resolve_in_another_process(tmp_path: Path) -> None:
    values = {name: value for module in mlx_modules() for name, value in public(module) if module.__name__.startswith("mlx.core")}
    values |= {name: value for name, value in public(nn) if not inspect.isclass(value)}
    (tmp_path / "values").write_bytes(pickling.pack(values, None))
    script = (
        "import functools, pathlib, pickle, sys\n"
        f"for name, value in pickle.loads(pathlib.Path({str(tmp_path / 'values')!r}).read_bytes()).items():\n"
        "    parts = name.split('.')\n"
        "    own = functools.reduce(getattr, parts[2:], sys.modules['mlx.' + parts[1]])\n"
        "    assert own is value or own == value or own != own, name\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_array_methods_round_trip() -> None:
    for name in dir(mx.array):
        method = getattr(mx.array, name)
        if not name.startswith("_") and callable(method) and not isinstance(method, property):
            assert there_and_back(method) is method, name
    assert there_and_back(X.sum)().item() == 15


INSTANCES: dict[str, Callable[[], Any]] = {
    "linear": lambda: nn.Linear(3, 3),
    "transformer": lambda: nn.TransformerEncoder(1, 4, 2, activation=nn.silu),
    "quantized": lambda: nn.QuantizedLinear(64, 3),
    "compiled in a module": lambda: _with(step=mx.compile(double)),
}


def _with(**members: Any) -> Any:
    module = nn.Module()
    for name, value in members.items():
        setattr(module, name, value)
    return module


@pytest.mark.parametrize("name", INSTANCES)
def test_modules_round_trip_with_parameters(name: str) -> None:
    module = INSTANCES[name]()
    back = there_and_back(module)
    assert type(back) is type(module)
    ours, theirs = (dict(mlx.utils.tree_flatten(each.parameters())) for each in (module, back))
    assert ours.keys() == theirs.keys()
    assert all(mx.array_equal(ours[key], theirs[key]) for key in ours)


ACTIVATIONS = [
    name for name in dir(nn.layers.activations) if inspect.isclass(kind := getattr(nn, name, None)) and issubclass(kind, nn.Module)
]


@pytest.mark.parametrize("name", sorted({*ACTIVATIONS} - {"Module"}))
def test_activation_layers_compute_the_same(name: str) -> None:
    layer = getattr(nn, name)()
    assert mx.array_equal(there_and_back(layer)(X.T), layer(X.T), equal_nan=True)


@pytest.mark.parametrize(
    "kind", [each for each in vars(optim.optimizers).values() if inspect.isclass(each) and issubclass(each, optim.Optimizer)]
)
def test_optimizers_step_the_same(kind: Any) -> None:
    if kind in (optim.Optimizer, optim.MultiOptimizer):
        return
    optimizer = kind(learning_rate=optim.cosine_decay(0.1, 10))
    parameters = {"w": mx.ones((3, 3))}
    optimizer.update(_with(**parameters), {"w": mx.full((3, 3), 0.5)})
    back = there_and_back(optimizer)
    assert type(back) is kind
    for _ in range(2):
        ours, theirs = (each.apply_gradients({"w": mx.full((3, 3), 0.5)}, parameters) for each in (optimizer, back))
        assert mx.array_equal(ours["w"], theirs["w"])


@pytest.mark.parametrize(
    "value",
    [mx.Device(mx.gpu, 1), mx.default_device(), mx.default_stream(mx.cpu), mx.bool_, mx.array(1.0).dtype, mx.floating],
    ids=str,
)
def test_devices_streams_and_dtypes_are_equal(value: Any) -> None:
    assert there_and_back(value) == value


def test_random_state_as_a_result_is_a_list_with_its_key() -> None:
    state: Any = mx.random.state
    before = state[0].tolist()
    (key,) = there_and_back(state)
    assert key.tolist() == before == state[0].tolist()
    assert key.dtype == mx.uint32


COMPILED: dict[str, tuple[Any, Any]] = {
    "plain": (mx.compile(double), X),
    "shapeless": (mx.compile(double, shapeless=True), X),
    "module": (mx.compile(nn.Linear(3, 2)), X),
    "partial": (functools.partial(mx.compile(minus), b=X + 1), X),
    "gradient inside": (mx.compile(gradient), X),
}


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_functions_compute_the_same(name: str) -> None:
    function, argument = COMPILED[name]
    back = there_and_back({"f": [function]})["f"][0]
    assert type(back) is type(function)
    assert mx.array_equal(back(argument), function(argument))


def test_compiled_method_round_trips() -> None:
    space: dict[str, Any] = {"__name__": "__main__", "mx": mx}
    exec("class Doubles:\n    step = staticmethod(mx.compile(lambda a: a * 2))", space)
    assert there_and_back(space["Doubles"]()).step(mx.array(2.0)).item() == 4


def _custom() -> Any:
    function = mx.custom_function(square)
    function.vjp(lambda primals, cotangents, output: primals)
    return function


REFUSED: dict[str, Callable[[], Any]] = {
    "grad": lambda: mx.grad(square),
    "value_and_grad": lambda: mx.value_and_grad(square),
    "vmap": lambda: mx.vmap(square),
    "vmap with axes": lambda: mx.vmap(square, in_axes=1, out_axes=0),
    "checkpoint": lambda: mx.checkpoint(square),
    "custom function": _custom,
    "grad of compiled": lambda: mx.grad(mx.compile(square)),
    "compiled grad": lambda: mx.compile(mx.grad(square)),
    "compiled with inputs": lambda: mx.compile(square, inputs=[X]),
    "compiled with random state": lambda: mx.compile(square, inputs=[mx.random.state], outputs=[mx.random.state]),
    "value_and_grad of a model": lambda: nn.value_and_grad(nn.Linear(3, 1), square),
    "stream": lambda: mx.new_stream(mx.cpu),
    "iterator": lambda: iter(X),
}
PLACES: dict[str, Callable[[Any], Any]] = {
    "itself": lambda value: value,
    "list": lambda value: [value],
    "partial": lambda value: functools.partial(value, X),
    "closure": lambda value: lambda: value,
    "default": lambda value: lambda given=value: given,
    "module": lambda value: _with(step=value),
    "class": lambda value: type("Holder", (), {"step": [value]})(),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("place", PLACES)
def test_transforms_are_rejected_anywhere(name: str, place: str) -> None:
    value = REFUSED[name]()
    if place == "partial" and not callable(value):
        return
    with pytest.raises((pickle.PicklingError, TypeError)):
        pickling.pack(PLACES[place](value), None)
    with pytest.raises((pickle.PicklingError, TypeError)):
        function_pickler.pickled(PLACES[place](value))


class Wrapper:
    """Wrapper with the `__class__` of the function inside, like the decorators of wrapt."""

    def __init__(self, inside: Any) -> None:
        self.inside = inside

    def __getattribute__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "inside"), name) if name != "inside" else object.__getattribute__(self, name)

    def __call__(self, *args: Any) -> Any:
        return -self.inside(*args)


class Reduced(Wrapper):
    """Wrapper with its own `__reduce__`."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Wrapper, (object.__getattribute__(self, "inside"),)


def _plain(number: int) -> int:
    return number


@pytest.mark.parametrize("inside", [_plain, nn.Linear(2, 2)], ids=["function", "object"])
def test_wrapper_with_other_class_is_rejected(inside: Any) -> None:
    with pytest.raises(pickle.PicklingError, match="can't be pickled: its __class__ is"):
        pickling.pack(Wrapper(inside), None)


def test_wrapper_with_own_reduce_is_kept() -> None:
    assert type(there_and_back(Reduced(_plain))) is Wrapper


def test_weak_proxy_is_pickled_as_its_object() -> None:
    layer = nn.Linear(2, 2)
    assert mx.array_equal(there_and_back(weakref.proxy(layer)).weight, layer.weight)


def test_cached_notebook_function_has_empty_cache() -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("import functools\n@functools.lru_cache(maxsize=3)\ndef twice(n):\n    return 2 * n", space)
    space["twice"](1)
    back = there_and_back(space["twice"])
    assert back(4) == 8
    assert back.cache_info() == (0, 1, 3, 1)


def test_pickling_does_not_import_mlx() -> None:
    script = (
        "import sys\n"
        "from openruntime_jupyter.arrays import function_pickler, pickling\n"
        "def work(x): return x\n"
        "function_pickler.pickled((work, [1, b'x' * 2_000_000], {}))\n"
        "pickling.pack((work, [1], {}), lambda array, layout: None)\n"
        "assert not any(name.startswith('mlx') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
