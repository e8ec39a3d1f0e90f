"""Whether what the engines for GPUs call is there, in the installed packages; no GPU is needed.

The packages are `cuda-bindings`, and `tensorrt` or only its bindings, `tensorrt-cu13-bindings` or `-cu12-`: small, and
without TensorRT's own libraries, whose few entry points are then imitated with the C compiler so that they import.
"""

import ast
import ctypes
import importlib
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from damoserve_server.engines import engine as engines

FOLDER = Path(engines.__file__).parent
SOURCES = {name: ast.parse((FOLDER / f"{name}.py").read_text()) for name in ("cuda", "tensorrt", "tensorrt_plan")}

# Class, method, and how many arguments it is given.
METHODS = [
    ("Builder", "build_serialized_network", 2),
    ("Builder", "create_builder_config", 0),
    ("Builder", "create_network", 1),
    ("Builder", "create_optimization_profile", 0),
    ("IBuilderConfig", "add_optimization_profile", 1),
    ("IBuilderConfig", "clear_flag", 1),
    ("IBuilderConfig", "create_timing_cache", 1),
    ("IBuilderConfig", "get_timing_cache", 0),
    ("IBuilderConfig", "set_memory_pool_limit", 2),
    ("IBuilderConfig", "set_timing_cache", 2),
    ("ICudaEngine", "create_execution_context", 1),
    ("ICudaEngine", "get_tensor_dtype", 1),
    ("ICudaEngine", "get_tensor_name", 1),
    ("ICudaEngine", "get_tensor_shape", 1),
    ("IExecutionContext", "execute_async_v3", 1),
    ("IExecutionContext", "set_device_memory", 2),
    ("IExecutionContext", "set_input_shape", 2),
    ("IExecutionContext", "set_optimization_profile_async", 2),
    ("IExecutionContext", "set_tensor_address", 2),
    ("INetworkDefinition", "get_input", 1),
    ("IOptimizationProfile", "set_shape", 4),
    ("ITimingCache", "serialize", 0),
    ("OnnxParser", "get_error", 1),
    ("OnnxParser", "parse", 1),
    ("ParserError", "desc", 0),
    ("Runtime", "deserialize_cuda_engine", 1),
]
ATTRIBUTES = [
    ("ICudaEngine", "device_memory_size_v2"),
    ("ICudaEngine", "num_io_tensors"),
    ("ITensor", "name"),
    ("ITensor", "shape"),
    ("OnnxParser", "num_errors"),
]
CONSTRUCTORS = [("Builder", 1), ("OnnxParser", 2), ("Runtime", 1)]

ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)


@pytest.fixture(scope="module")
def tensorrt(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    if find_spec("tensorrt"):
        return importlib.import_module("tensorrt")
    if not find_spec("tensorrt_bindings"):
        pytest.skip("needs TensorRT's bindings")
    if not find_spec("tensorrt_libs"):
        imitate_libraries(tmp_path_factory.mktemp("libraries"))
    return importlib.import_module("tensorrt_bindings")


def imitate_libraries(folder: Path) -> None:
    """Loads libraries that have the entry points and do nothing, under the names that the bindings look for."""
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("needs TensorRT's libraries, or a C compiler to imitate them")
    major = version(packages_distributions()["tensorrt_bindings"][0]).split(".")[0]
    source = folder / "entry_points.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in ENTRY_POINTS))
    for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        path = folder / f"lib{library}.so.{major}"
        subprocess.run([compiler, "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-o", path, source], check=True)
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)


@pytest.fixture(scope="module")
def runtime() -> ModuleType:
    module: ModuleType = pytest.importorskip("cuda.bindings.runtime", reason="needs the package cuda-bindings")
    return module


def chains(source: str, root: str) -> set[str]:
    """What is read of a module: `BuilderFlag.TF32` for `tensorrt.BuilderFlag.TF32`."""
    found = (ast.unparse(node) for node in ast.walk(SOURCES[source]) if isinstance(node, ast.Attribute))
    return {chain.removeprefix(f"{root}.") for chain in found if re.fullmatch(rf"{root}(\.\w+)+", chain)}


def calls(source: str) -> Iterator[tuple[str, list[ast.expr]]]:
    """The last name, and the arguments, of every call of an attribute."""
    for node in ast.walk(SOURCES[source]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert not node.keywords, ast.unparse(node)
            yield node.func.attr, node.args


def resolve(module: ModuleType, chain: str) -> object:
    found: object = module
    for name in chain.split("."):
        found = getattr(found, name)
    return found


def accepted(documented: str) -> Iterator[range]:
    """How many arguments, besides self, each overload takes, from pybind11's documentation."""
    for parameters in re.findall(r"\(self: (.*)\) ->", documented):
        outside = re.sub(r"<[^>]*>|\[[^]]*\]", "", parameters)
        given = outside.split(", ")[1:]
        optional = sum(" = " in parameter for parameter in given)
        yield range(len(given) - optional, len(given) + 1)


@pytest.mark.parametrize("source", ["tensorrt", "tensorrt_plan"])
def test_the_names_are_tensorrts(tensorrt: ModuleType, source: str) -> None:
    names = chains(source, "tensorrt")
    assert names
    for name in names:
        resolve(tensorrt, name)


@pytest.mark.parametrize(("kind", "method", "count"), METHODS)
def test_the_methods_take_what_they_are_given(tensorrt: ModuleType, kind: str, method: str, count: int) -> None:
    documented = getattr(getattr(tensorrt, kind), method).__doc__
    assert any(count in overload for overload in accepted(documented)), documented


@pytest.mark.parametrize(("kind", "count"), CONSTRUCTORS)
def test_the_classes_are_made_of_what_they_are_given(tensorrt: ModuleType, kind: str, count: int) -> None:
    documented = getattr(tensorrt, kind).__init__.__doc__
    assert any(count in overload for overload in accepted(documented)), documented


@pytest.mark.parametrize(("kind", "attribute"), ATTRIBUTES)
def test_the_attributes_are_there(tensorrt: ModuleType, kind: str, attribute: str) -> None:
    assert isinstance(inspect.getattr_static(getattr(tensorrt, kind), attribute), property)


@pytest.mark.parametrize(("kind", "method", "count"), METHODS)
def test_the_table_above_is_what_the_engine_does(kind: str, method: str, count: int) -> None:
    given = [args for source in ("tensorrt", "tensorrt_plan") for name, args in calls(source) if name == method]
    assert count in {len(args) for args in given}, f"{kind}.{method}"


def test_nothing_that_tensorrt_calls_deprecated_is_called(tensorrt: ModuleType) -> None:
    for kind, method, _ in METHODS:
        assert "deprecated" not in getattr(getattr(tensorrt, kind), method).__doc__.lower(), f"{kind}.{method}"


def test_the_names_are_cudas(runtime: ModuleType) -> None:
    names = chains("cuda", "runtime")
    assert len(names) > 20
    for name in names:
        resolve(runtime, name)
    nvml = importlib.import_module("cuda.bindings.nvml")
    for name in chains("cuda", "nvml"):
        assert callable(resolve(nvml, name))


def test_cudas_functions_take_what_they_are_given(runtime: ModuleType) -> None:
    seen = 0
    for name, arguments in calls("cuda"):
        if name.startswith("cuda"):
            inspect.signature(getattr(runtime, name)).bind(*arguments)
            seen += 1
    assert seen > 10


def test_a_device_that_is_not_there_is_an_engine_error(runtime: ModuleType) -> None:
    from damoserve_server.engines.cuda import use_device

    with pytest.raises(engines.EngineError, match=r"^CUDA: .+ \(cudaError"):
        use_device(10_000)


def test_the_engine_imports(tensorrt: ModuleType, runtime: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    engine = importlib.import_module("damoserve_server.engines.tensorrt")
    plan = importlib.import_module("damoserve_server.engines.tensorrt_plan")
    assert callable(engine.TensorRtEngine)
    assert isinstance(plan._logger(), tensorrt.ILogger)
    assert tensorrt.nptype(tensorrt.DataType.UINT8)().itemsize == 1
