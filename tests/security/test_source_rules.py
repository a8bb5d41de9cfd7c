"""Rules about our own source, read as syntax trees: no shell, no pickle, no code from data, no YAML that builds objects."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("flows", "tasks", "spark_jobs", "training", "benchmarks", "examples", "infra", ".ci")
# A private memory dump for pytorch.org/memory_viz is written, never read.
SAFE_LOADERS = {"BaseLoader", "CBaseLoader", "SafeLoader", "CSafeLoader"}


def sources() -> list[Path]:
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(found) > 200
    return found


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Dotted name of what is called, and the call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(entry.value) for entry in call.keywords if entry.arg == name), None)


def faults(source: str) -> list[str]:
    """What is wrong with a module's text, in words."""
    tree = ast.parse(source)
    safe = SAFE_LOADERS | {
        node.name for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).split(".")[-1] in SAFE_LOADERS for base in node.bases)
    }  # fmt: skip
    found = []
    for name, call in calls(tree):
        last = name.split(".")[-1]
        if keyword(call, "shell") not in (None, "False"):
            found.append(f"line {call.lineno}: shell")
        if name in (
            "os.system",
            "os.popen",
            "subprocess.getoutput",
            "subprocess.getstatusoutput",
            "eval",
            "exec",
            "tempfile.mktemp",
        ):
            found.append(f"line {call.lineno}: {name}")
        if name.startswith("subprocess.") and call.args and isinstance(call.args[0], ast.Constant | ast.JoinedStr):
            found.append(f"line {call.lineno}: a command as one text")
        if name.split(".")[0] in ("pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib") and last in (
            "load",
            "loads",
            "open",
        ):
            found.append(f"line {call.lineno}: {name}")
        if name == "torch.load" and keyword(call, "weights_only") != "True":
            found.append(f"line {call.lineno}: torch.load without weights_only=True")
        if name in ("np.load", "numpy.load") and keyword(call, "allow_pickle") not in (None, "False"):
            found.append(f"line {call.lineno}: numpy.load with pickle")
        if keyword(call, "trust_remote_code") not in (None, "False"):
            found.append(f"line {call.lineno}: trust_remote_code")
        if keyword(call, "verify") == "False":
            found.append(f"line {call.lineno}: TLS not verified")
        if name in ("yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all"):
            found.append(f"line {call.lineno}: {name}")
        if name == "yaml.load":
            named = {node.id if isinstance(node, ast.Name) else node.attr
                     for node in ast.walk(next(entry.value for entry in call.keywords if entry.arg == "Loader"))
                     if isinstance(node, ast.Name | ast.Attribute)} - {"yaml", "getattr"}  # fmt: skip
            if not named or not named <= safe:
                found.append(f"line {call.lineno}: yaml.load with {named}")
    return found


def test_our_source_keeps_the_rules():
    wrong = {str(path.relative_to(ROOT)): told for path in sources() if (told := faults(path.read_text()))}
    assert wrong == {}


@pytest.mark.parametrize(
    "source",
    [
        "subprocess.run(command, shell=True)",
        "subprocess.run(f'ls {x}')",
        "os.system('ls')",
        "eval(text)",
        "pickle.load(file)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "yaml.unsafe_load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "httpx.get(url, verify=False)",
    ],
)
def test_rules_find_what_they_are_for(source):
    assert faults(source)


def test_a_loader_derived_from_the_safe_one_is_safe():
    assert faults("class Tags(yaml.SafeLoader): pass\nyaml.load(text, Loader=Tags)") == []
    assert faults("yaml.load(text, Loader=getattr(yaml, 'CBaseLoader', yaml.BaseLoader))") == []


def test_weights_are_written_as_safetensors_only():
    """No `torch.save` outside of scratch files that the same step reads back with weights_only."""
    saving = {
        str(path.relative_to(ROOT)) for path in sources() if path.parts[len(ROOT.parts)] == "training"
        for name, _ in calls(ast.parse(path.read_text())) if name == "torch.save"
    }  # fmt: skip
    reading = {
        str(path.relative_to(ROOT)) for path in sources() if path.parts[len(ROOT.parts)] == "training"
        for name, _ in calls(ast.parse(path.read_text())) if name == "torch.load"
    }  # fmt: skip
    assert saving == reading
