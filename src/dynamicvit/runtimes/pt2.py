"""``.pt2`` files: the graph that ``torch.export`` saves, or the graph compiled by AOTInductor."""

from __future__ import annotations

import io
from pathlib import Path
from zipfile import ZipFile

import torch
from torch.export import ExportedProgram

from dynamicvit.errors import InputError
from dynamicvit.runtimes.base import Format
from dynamicvit.runtimes.description import KEY, Description
from dynamicvit.runtimes.exported import Runner
from dynamicvit.runtimes.pytorch import has_compiler
from dynamicvit.utils.optional import quiet
from dynamicvit.utils.words import first_line


class TorchExport(Format):
    """The graph, for any machine; needs PyTorch alone."""

    name = "torch"
    suffix = ".pt2"
    precisions = ("fp32",)

    def write(self, program: ExportedProgram, description: Description, path: Path) -> None:
        """The description is the extra file ``dynamicvit``."""
        file = io.BytesIO()  # on a full disk torch's own writer ends the process
        torch.export.save(program, file, extra_files={KEY: description.to_json()})
        path.write_bytes(file.getbuffer())

    def read(self, path: Path, precision: str) -> tuple[Runner, Description]:
        """The graph or the compiled code, whichever the file holds."""
        try:
            with quiet("torch"):
                return _read_compiled(path) if _is_compiled(path) else _read_graph(path)
        except InputError:
            raise
        except Exception as error:  # of unzipping and unpickling
            raise InputError(f"{path} can't be read by PyTorch ({first_line(error)})") from error


class AOTInductor(TorchExport):
    """The graph compiled, for machines like this one."""

    name = "aotinductor"

    def ready(self, precision: str = "fp32") -> None:
        """Check that there is a C++ compiler."""
        if not has_compiler():
            raise InputError("AOTInductor needs a C++ compiler: install g++, or use format torch")

    def write(self, program: ExportedProgram, description: Description, path: Path) -> None:
        """The description is part of the package's metadata."""
        metadata = {"aot_inductor.metadata": {KEY: description.to_json()}}
        file = io.BytesIO()  # as above
        with quiet("torch"):
            torch._inductor.aoti_compile_and_package(
                program, package_path=file, inductor_configs=metadata
            )
        path.write_bytes(file.getbuffer())


def _is_compiled(path: Path) -> bool:
    with ZipFile(path) as archive:
        return any("/aotinductor/" in name for name in archive.namelist())


def _read_compiled(path: Path) -> tuple[Runner, Description]:
    compiled = torch._inductor.aoti_load_package(str(path))
    return compiled, Description.from_json(compiled.get_metadata().get(KEY), path)


def _read_graph(path: Path) -> tuple[Runner, Description]:
    extra_files = {KEY: ""}
    program = torch.export.load(path, extra_files=extra_files)
    module = program.module()
    # In a function, or it would become a submodule of the ExportedModel.
    return lambda images: module(images), Description.from_json(extra_files[KEY], path)
