"""``.pt2``: the graph that ``torch.export`` saves, or the same compiled by AOTInductor."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from zipfile import ZipFile

import torch
from torch.export import ExportedProgram

from dynamicvit.errors import InputError
from dynamicvit.export.description import KEY, Description
from dynamicvit.export.runner import Runner, only_fp32
from dynamicvit.utils.weights import first_line


def ready() -> None:
    """Saving a graph takes PyTorch alone."""


def ready_to_compile() -> None:
    """See to it that there is a C++ compiler.

    Raises:
        InputError: if there is none.
    """
    if not has_compiler():
        raise InputError(
            "AOTInductor needs a C++ compiler, and g++ is not installed; format torch needs none"
        )


def write(program: ExportedProgram, description: Description, path: Path) -> None:
    """Save the graph for any machine; the description lies in the extra file ``dynamicvit``.

    Args:
        program: the graph.
        description: of the model.
        path: where to.
    """
    torch.export.save(program, path, extra_files={KEY: description.to_json()})


def write_compiled(program: ExportedProgram, description: Description, path: Path) -> None:
    """Compile the graph for machines like this one; the description lies in its metadata.

    Args:
        program: the graph.
        description: of the model.
        path: where to.
    """
    metadata = {"aot_inductor.metadata": {KEY: description.to_json()}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs=metadata
        )


def has_compiler() -> bool:
    """Whether there is a C++ compiler that PyTorch would take."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return shutil.which(get_cpp_compiler()) is not None
    except Exception:  # torch's own class, InvalidCxxCompiler, which moves about
        return False


def read(path: Path, precision: str = "fp32") -> tuple[Runner, Description]:
    """The graph or the compiled code, whichever the file holds.

    Args:
        path: of the ``.pt2``.
        precision: "fp32", in which the graph is written.

    Raises:
        InputError: if PyTorch can't read it, or for another precision.
    """
    only_fp32(path, precision)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _read_compiled(path) if _is_compiled(path) else _read_graph(path)
        except InputError:
            raise
        except Exception as error:  # whatever unzipping and unpickling stumble over
            raise InputError(f"{path} can't be read by PyTorch ({first_line(error)})") from error


def _is_compiled(path: Path) -> bool:
    """Whether the archive holds compiled code."""
    with ZipFile(path) as archive:
        return any("/aotinductor/" in name for name in archive.namelist())


def _read_compiled(path: Path) -> tuple[Runner, Description]:
    compiled = torch._inductor.aoti_load_package(str(path))
    return compiled, Description.from_json(compiled.get_metadata().get(KEY), path)


def _read_graph(path: Path) -> tuple[Runner, Description]:
    extra_files = {KEY: ""}
    program = torch.export.load(path, extra_files=extra_files)
    module = program.module()
    # In a function of its own, or it would be taken for a part of the model that can be trained.
    return lambda images: module(images), Description.from_json(extra_files[KEY], path)
