"""What `import dynamicvit` and the command load: no more than is asked for."""

from __future__ import annotations

import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

import dynamicvit
from dynamicvit.errors import InputError
from dynamicvit_command import COMMANDS, app
from families import DEIT

EXTRAS = {
    *("matplotlib", "tensorboard", "sklearn", "scipy", "transformers", "datasets", "webdataset"),
    *("onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "av", "gradio"),
}
"""What the plain install does not bring."""


def run(code: str, *options: str) -> str:
    """Run code in its own Python; gives standard error."""
    words = [sys.executable, *options, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_the_import_loads_what_a_model_needs_and_gives_no_warning() -> None:
    """Neither does another, after timm has the models; and no module needs the extras.

    Those of transformers aside, which are imported for its models only. The bundled pictures are
    read from scikit-learn's files without importing it.

    The timer is imported later, and quietly: it looks for a compiler of CUDA's, and logs without
    one.
    """
    late = {*EXTRAS, "accelerate", "pydantic", "typer", "rich"}
    said = run(
        "import sys, dynamicvit\n"
        f"assert not {late} & sys.modules.keys(), {late} & sys.modules.keys()\n"
        "import timm\n"
        "small = dict(depth=2, embed_dim=16, num_heads=2, stages=[1])\n"
        "timm.create_model('dynamicvit_deit_tiny_patch16_224', **small)\n"
        f"assert not {late} & sys.modules.keys(), {late} & sys.modules.keys()\n"
        "from dynamicvit.data.samples import digits, photographs\n"
        "digits('demo'), photographs('demo')\n"
        f"assert not {EXTRAS} & sys.modules.keys(), {EXTRAS} & sys.modules.keys()\n"
        "import pkgutil, warnings\n"
        "from importlib import import_module\n"
        "warnings.simplefilter('ignore')\n"
        f"sys.modules.update(dict.fromkeys({EXTRAS}))\n"
        "for module in pkgutil.walk_packages(dynamicvit.__path__, 'dynamicvit.'):\n"
        "    if '.hf' not in module.name and '.transformers' not in module.name:\n"
        "        if not module.name.endswith('__main__'): import_module(module.name)\n"
        "assert 'torch.utils.benchmark' not in sys.modules\n"
        "from dynamicvit.evaluation.bench.timer import timer_class\n"
        "timer_class()\n",
        *("-W", "error"),
    )
    assert "CUDA" not in said


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_types_in_plain_words_and_an_example_that_parses(name: str) -> None:
    said = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"}).output
    assert "--debug" in said
    assert not re.findall(r"<\w+>|\b(?:TEXT|INTEGER|FLOAT|BOOLEAN)\b", said), "types of Python"
    [example] = re.findall(r"Example: (.+?) *$", said, re.M)
    program, called, *words = shlex.split(example)
    assert (program, called) == ("dynamicvit", name)
    command = typer.main.get_command(app)
    command.commands[name].make_context(name, words)  # parses them, and runs nothing


def test_the_command_answers_before_torch_is_loaded() -> None:
    run(
        "import sys\n"
        "from dynamicvit_command import main\n"
        "for words, code in ((['--help'], 0), ([], 2), (['--version'], 0), (['trian'], 2)):\n"
        "    sys.argv = ['dynamicvit', *words]\n"
        "    try: main()\n"
        "    except SystemExit as exit: assert exit.code == code, (words, exit.code)\n"
        "assert not {'torch', 'timm', 'dynamicvit'} & sys.modules.keys()"
    )


def test_a_mistyped_command(command: Callable[..., int], capsys: pytest.CaptureFixture) -> None:
    assert command("trian") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("dynamicvit: ")
    assert "'train'" in line


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_where_the_list_says(
    command: Callable[..., int], name: str, capsys: pytest.CaptureFixture
) -> None:
    assert command(name, "--help") == 0
    assert f"dynamicvit {name}" in capsys.readouterr().out


def test_public_names() -> None:
    for name in dynamicvit.__all__:
        assert getattr(dynamicvit, name) is not None
    assert {*dynamicvit.__all__} <= {*dir(dynamicvit)}
    modules = {module.name for module in pkgutil.iter_modules(dynamicvit.__path__)}
    assert not modules & {*dynamicvit.__all__}, "a module takes the place of a function"


@pytest.mark.parametrize(("old", "new"), dynamicvit._RENAMED.items())
def test_an_old_name_says_the_new_one(old: str, new: str) -> None:
    with pytest.raises(ImportError, match=rf"{old} is now {new}"):
        import_module(f"dynamicvit.{old}")
    if new != "dynamicvit.load":
        import_module(new)
    if old not in dynamicvit.__all__:
        with pytest.raises(ImportError, match=new):
            getattr(dynamicvit, old)


@pytest.mark.parametrize("name", ["dropped", "sampler", "leave", "stem"])
def test_an_old_attribute_says_the_new_one(name: str) -> None:
    """Read or set: a value that nothing looks at would change nothing, and say nothing."""
    model = dynamicvit.sparsify(DEIT.backbone(), method="dynamicvit")
    with pytest.raises(InputError, match=f"{name} is now"):
        getattr(model, name)
    with pytest.raises(InputError, match=f"{name} is now"):
        setattr(model, name, "merged")


@torch.no_grad()
def test_old_outputs_and_arguments_say_the_new_ones(tmp_path: Path) -> None:
    backbone = DEIT.backbone()
    model = dynamicvit.sparsify(backbone, method="evit")
    pruned, masked = model.forward_pruned(DEIT.images()), model.train()(DEIT.images())
    with pytest.raises(InputError, match="survived is now kept"):
        pruned.survived  # noqa: B018
    with pytest.raises(InputError, match="log_odds is now keep_scores"):
        masked.log_odds  # noqa: B018
    with pytest.raises(InputError, match=r'sparsify.dropped=. is now policy="removed"'):
        dynamicvit.sparsify(backbone, dropped="gone", method="dynamicvit")  # pyright: ignore[reportCallIssue]
    with pytest.raises(InputError, match=r"export.check_on=. is now validation="):
        dynamicvit.export(model, tmp_path / "a.onnx", check_on="photos")


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        dynamicvit.nothing  # noqa: B018
