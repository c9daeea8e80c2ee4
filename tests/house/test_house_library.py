"""The library's front door: every verb is callable from it, whatever was imported before, and nothing is
heavy."""

import subprocess
import sys

import pytest

import intruscope

VERBS = (
    "chain",
    "extract",
    "forget",
    "guide",
    "merge",
    "plan",
    "profile",
    "repair",
    "scan",
    "sweep",
    "tune",
    "verify",
)
PACKAGES = {
    "repair": "repair.plan",
    "sweep": "sweep.measure",
    "extract": "extract.plan",
    "merge": "merge.plan",
    "verify": "verify.run",
}


@pytest.mark.parametrize("first", ["verb", "module"])
def test_verbs_that_are_packages_too_can_be_called_in_either_order_of_imports(first):
    modules = "; ".join(f"import intruscope.{module}" for module in PACKAGES.values())
    verbs = f"seen = [getattr(intruscope, verb) for verb in {tuple(PACKAGES)}]"
    steps = ["import intruscope", *([verbs, modules] if first == "verb" else [modules, verbs])]
    check = f"""
import inspect
from intruscope.repair import repair
for verb, module in zip({tuple(PACKAGES)}, {tuple(PACKAGES.values())}):
    given = getattr(intruscope, verb)
    assert given in seen, verb
    function = getattr(given, verb)
    assert inspect.isfunction(function) and function.__module__ == "intruscope." + module
    assert inspect.signature(given) == inspect.signature(function)
try:
    intruscope.repair("no-such-folder/x", strength=7.0)
except intruscope.IntruscopeError:
    print("refused")
"""
    code = "\n".join([*steps, check])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "refused"


def test_the_front_door_lists_what_it_holds_and_nothing_else():
    assert dir(intruscope) == sorted(intruscope.__all__)
    assert set(VERBS) <= set(intruscope.__all__)
    for verb in VERBS:
        assert callable(getattr(intruscope, verb))
    with pytest.raises(AttributeError, match="no attribute 'scam'"):
        intruscope.scam  # noqa: B018


def test_names_of_the_matrix_library_exist_and_come_without_torch():
    code = "import sys, intruscope; dir(intruscope.linalg); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    for name in intruscope.linalg.__all__:
        assert getattr(intruscope.linalg, name).__doc__
