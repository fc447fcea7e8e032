"""The drawing of who may import whom covers the whole house: what nothing is said about may import anyone."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Not the product: tests see everything.
OUTSIDE = {"tests"}
# Folders that Django finds by their name. They are their package's own.
DJANGOS = {"migrations", "management", "commands", "templatetags"}


@pytest.fixture(scope="module")
def linter():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]


def packages(root):
    """Every folder of Python below the project's root, as it is imported."""
    found = set()
    for top in root.iterdir():
        is_environment = (top / "pyvenv.cfg").exists()
        if top.is_dir() and not top.name.startswith(".") and top.name not in OUTSIDE and not is_environment:
            found |= {".".join(path.parent.relative_to(root).parts) for path in top.rglob("*.py")}
    return {name for name in found if not DJANGOS & set(name.split("."))}


def named_by(linter):
    """What the contracts speak of by name."""
    named = set()
    for contract in linter["contracts"]:
        for key in ("source_modules", "forbidden_modules", "protected_modules", "modules"):
            named.update(contract.get(key, []))
        names = [name.strip(" ()") for layer in contract.get("layers", []) for name in layer.split("|")]
        for container in contract.get("containers", [""]):
            named.update(f"{container}.{name}".strip(".") for name in names)
    return named


def unnamed(linter, root=ROOT):
    """Packages that no contract names, nor one that they lie in. To be below an app is not enough: within it anyone
    could import them."""
    named, tops = named_by(linter), set(linter["root_packages"])

    def is_named(package):
        parts = package.split(".")
        above = {".".join(parts[:depth]) for depth in range(2, len(parts))}
        return parts[0] in tops and bool(named & (above | {package}))

    return {package for package in packages(root) if not is_named(package)}


def test_every_package_of_ours_is_named_by_a_contract(linter):
    assert {"tenants.users", "billing.usage", "chat", "config.stack"} <= packages(ROOT)
    assert unnamed(linter) == set(), (
        "Nothing in pyproject.toml says who may import these: add each to a contract, and a new app to root_packages."
    )


@pytest.mark.parametrize("package", ["notes", "billing/coupons", "chat/tools/web"])
def test_a_new_package_without_a_contract_is_seen(linter, tmp_path, package):
    (tmp_path / package).mkdir(parents=True)
    (tmp_path / package / "models.py").touch()
    assert package.replace("/", ".") in unnamed(linter, tmp_path)
