"""What others rely on does not move by accident: exports, options, the schema."""

import inspect
from dataclasses import fields
from pathlib import Path

import intruscope
from intruscope.cli.main import app
from intruscope.spectra import records

SURFACE = Path(__file__).with_name("surface.txt")


def verbs(command, prefix=""):
    """Every command with its words, those of a group as well."""
    for name, sub in sorted(command.commands.items()):
        if hasattr(sub, "commands"):
            yield from verbs(sub, f"{prefix}{name} ")
        else:
            yield prefix + name, sub


def surface():
    lines = [f"export {name}" for name in sorted(intruscope.__all__)]
    for verb, sub in verbs(app):
        for one in sub.parameters:
            if one.option.positional:
                lines.append(f"cli {verb} {one.name}")
            else:
                short = f" {one.option.short}" if one.option.short else ""
                default = "required" if one.required else one.default_text or one.default
                lines.append(f"cli {verb} {one.flag}{short} = {default}")
    lines.append(f"schema {records.SCHEMA}")
    for name in ("ScanSettings", "MatrixReport", "SideReport", "UpdateReport", "GridCount", "NullCount"):
        lines += [f"record {name}.{field.name}" for field in fields(getattr(records, name))]
    return lines


def test_the_public_surface_is_the_one_written_down():
    """After a deliberate change: python tests/house/test_house_surface.py rewrites the list."""
    assert surface() == SURFACE.read_text().splitlines()


def test_exports_exist_and_are_documented():
    for name in intruscope.__all__:
        assert inspect.getdoc(getattr(intruscope, name))


if __name__ == "__main__":
    SURFACE.write_text("\n".join(surface()) + "\n")
