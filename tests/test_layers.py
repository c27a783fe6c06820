"""The architecture as facts: who imports whom, who knows the host, and what no file of the package may do."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ding_ebm"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A layer imports itself and those before it.
LAYERS = (
    "config",
    "weights",
    "checkpoint",
    "diffusion",
    "model",
    "energy",
    "data",
    "envs",
    "policy",
    "host",
    "evaluation",
    "cli",
)
BELOW_POLICY = LAYERS[: LAYERS.index("policy")]
# Beyond the order: what a layer may import from outside the standard library and the package ...
THIRD_PARTY = {
    "config": set(),
    "weights": {"torch"},
    "checkpoint": {"torch"},
    "diffusion": {"torch"},
    "model": {"torch"},
    "energy": {"torch", "numpy"},
    "data": {"torch", "numpy", "h5py"},
    "envs": {"numpy", "gymnasium", "gymnasium_robotics", "mujoco", "robosuite", "furniture_bench", "torch"},
}
# ... and what a policy may not: data sets and environments come to it through the host.
NOT_FOR_POLICIES = re.compile(r"ding_ebm\.(envs|data(?!\.normalizer\b))")
HOST = {"ding", "ditk", "dizoo", "easydict", "treevalue", "gym", "d4rl", "wandb"}
NAMES_ALGORITHM = re.compile(
    r"(?<![a-z])(qgpo|dppo|dql|qsm|dipo|idql|rwr|awr|dpoer|diffusion_bc|gaussian_(bc|ppo)|gmm_(bc|ppo))(?![a-z])",
    re.IGNORECASE,
)
MAX_LINES = 350
# An algorithm is one file, with every key of its config, the rule of each, and what they mean.
MAX_LINES_OF_A_POLICY = 600


def layer_of(path: Path) -> str:
    """The layer that a file of the package belongs to, '' for the package's own __init__."""
    first = path.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imports(source: str, package: str) -> set[str]:
    """Dotted names that a module imports anywhere; ``package`` is where its relative imports start."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = package.split(".")
                base = ".".join([*anchor[: len(anchor) - node.level + 1], *filter(None, [base])])
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


def imports_of(path: Path) -> set[str]:
    return imports(path.read_text("utf-8"), ".".join(path.relative_to(ROOT).parts[:-1]))


# Calls that can execute code from what they are given, whatever their options say.
RUN_CODE = re.compile(
    r"(builtins\.)?(eval|exec|__import__)"
    r"|(_?c?pickle|dill|cloudpickle|joblib|marshal|shelve|hickle|jsonpickle|code|runpy)\.\w+"
    r"|(yaml|ruamel\.yaml)\.(unsafe_|full_|unsafe_all_)?load(_all)?|yaml\.(Unsafe|Full)?Loader"
    r"|(pandas|numpy\.lib\.npyio)\.read_pickle|os\.(system|popen|exec\w*|spawn\w*)"
    r"|torch\.(jit\.load|package\.\w+|hub\.load\w*|serialization\.(add_safe_globals|safe_globals)|utils\.model_zoo\.\w+)"
    r"|importlib\.util\.spec_from_file_location|imp\.load_\w+"
    # ... or put a file wherever its name in the archive says.
    r"|(\w+\.)*(extractall|unpack_archive)"
)
# DI-engine imports a config file as a module: one place does that, with the file that the user names.
RUNS_CONFIGS = {"ding_ebm/evaluation/checkpoint.py"}


def full_names(tree: ast.Module) -> dict[str, str]:
    """What the names that a module imports stand for."""
    found = {"np": "numpy"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return found


def dangerous_calls(source: str) -> list[str]:
    """Calls that can execute code from a file: pickles, eval, and loaders that unpickle unless told not to."""
    found, tree = [], ast.parse(source)
    names = full_names(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        first, dot, rest = ast.unparse(node.func).partition(".")
        name = f"{names.get(first, first)}{dot}{rest}"
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if (
            (RUN_CODE.fullmatch(name) and not _is_safe_yaml(name, options))
            or (re.fullmatch(r"torch\.(serialization\.)?load|load", name) and options.get("weights_only") != "True")
            or (options.get("allow_pickle", "False") != "False" and not re.fullmatch(r"numpy\.save\w*", name))
            or options.get("shell", "False") != "False"
            or (name.startswith("numpy.") and name.endswith("load") and None in options)
        ):
            found.append(f"line {node.lineno}: {name}")
    return found


def _is_safe_yaml(name: str, options: dict[str | None, str]) -> bool:
    return name == "yaml.load" and re.fullmatch(r"(yaml\.)?C?SafeLoader", options.get("Loader", "")) is not None


def run_python(code: str) -> str:
    """Standard output of a fresh interpreter."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_belongs_to_a_layer():
    assert {layer_of(path) for path in MODULES} <= {"", *LAYERS}, "give the new layer its place in LAYERS"


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_earlier_ones(layer: str):
    allowed = set(LAYERS[: LAYERS.index(layer) + 1])
    for path in (path for path in MODULES if layer_of(path) == layer):
        for name in imports_of(path):
            parts = name.split(".")
            if parts[0] == "ding_ebm" and len(parts) > 1 and parts[1] in LAYERS:
                assert parts[1] in allowed, f"{path.relative_to(ROOT)} imports {name}, a later layer"


@pytest.mark.skipif(sys.version_info < (3, 10), reason="Python 3.9 does not list its standard library")
@pytest.mark.parametrize("layer", BELOW_POLICY)
def test_layers_below_policy_import_only_their_third_parties(layer: str):
    allowed = THIRD_PARTY[layer] | {"ding_ebm", "__future__"} | set(sys.stdlib_module_names)
    for path in (path for path in MODULES if layer_of(path) == layer):
        foreign = {name.split(".")[0] for name in imports_of(path)} - allowed
        assert not foreign, f"{path.relative_to(ROOT)} imports {sorted(foreign)}"


def test_policies_import_neither_data_sets_nor_environments():
    for path in (path for path in MODULES if layer_of(path) == "policy"):
        wrong = [name for name in imports_of(path) if NOT_FOR_POLICIES.match(name)]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_diffusion_holds_no_parameters():
    for path in (path for path in MODULES if layer_of(path) == "diffusion"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            bases = [ast.unparse(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
            assert not any(base.endswith("Module") for base in bases), f"{path.name}: {bases}"


def test_neither_the_host_parts_nor_the_base_policy_name_an_algorithm():
    for path in (path for path in MODULES if layer_of(path) == "host" or path == PACKAGE / "policy" / "base.py"):
        found = NAMES_ALGORITHM.search(path.read_text("utf-8"))
        assert not found, f"{path.relative_to(ROOT)} names {found[0]}"


def test_importing_the_package_is_quick_and_pulls_in_neither_torch_nor_the_host():
    code = (
        "import sys, time, json; start = time.process_time(); import ding_ebm;"
        "print(json.dumps([time.process_time() - start, sorted(sys.modules)]))"
    )
    seconds, modules = json.loads(run_python(code))
    assert seconds < 1.0
    assert not {"torch", "numpy", "ding"} & set(modules)


def test_layers_below_policy_import_without_the_host():
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in MODULES
        if layer_of(path) in BELOW_POLICY
    ]
    assert "ding_ebm.diffusion.schedules" in names
    run_python(
        f"""
import importlib, sys

class NoHost:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HOST!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked")

sys.meta_path.insert(0, NoHost())
for name in {names!r}:
    importlib.import_module(name)
"""
    )


def test_no_file_of_the_package_executes_code_from_a_file():
    found = {str(path.relative_to(ROOT)): dangerous_calls(path.read_text("utf-8")) for path in MODULES}
    assert not {path: calls for path, calls in found.items() if calls}


def test_a_config_is_executed_in_one_place_only():
    found = {str(path.relative_to(ROOT)) for path in MODULES if re.search(r"\bread_config\b", path.read_text("utf-8"))}
    assert found == RUNS_CONFIGS


def test_no_file_of_the_package_is_too_long():
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in MODULES}
    limits = {path: MAX_LINES_OF_A_POLICY if path.parent.name == "policy" else MAX_LINES for path in MODULES}
    assert not {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > limits[path]}


@pytest.mark.parametrize(
    "call",
    [
        "pickle.load(f)",
        "eval('1')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, **options)",
        "import numpy\nnumpy.load(path, allow_pickle=yes)",
        "np.lib.format.read_array(f, allow_pickle=True)",
        "yaml.load(f)",
        "yaml.load(f, Loader=yaml.FullLoader)",
        "yaml.unsafe_load(f)",
        "joblib.load(f)",
        "import pickle as p\np.loads(b)",
        "from pickle import Unpickler as U\nU(f)",
        "from torch import load\nload(path)",
        "import torch as t\nt.load(path, **options)",
        "torch.jit.load(path)",
        "torch.serialization.add_safe_globals([Policy])",
        "exec(text)",
        "from builtins import eval as e\ne(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "runpy.run_path(path)",
        "archive.extractall(folder)",
        "shutil.unpack_archive(path)",
    ],
)
def test_the_search_for_dangerous_calls_finds_them(call: str):
    assert dangerous_calls(call)


@pytest.mark.parametrize(
    "call",
    [
        "model.eval()",
        "torch.load(p, weights_only=True)",
        "np.load(p)",
        "np.save(p, a, allow_pickle=False)",
        "json.load(f)",
        "yaml.safe_load(f)",
        "yaml.load(f, Loader=yaml.SafeLoader)",
        "subprocess.run([name], shell=False)",
        "re.compile(text)",
    ],
)
def test_the_search_for_dangerous_calls_spares_the_others(call: str):
    assert not dangerous_calls(call)


def test_the_reader_of_imports_sees_every_form():
    source = "import a.b\nfrom c import d\ndef f():\n    from ..e import g\n    from . import h\n"
    assert imports(source, "ding_ebm.policy") == {"a.b", "c.d", "ding_ebm.e.g", "ding_ebm.policy.h"}
