"""Whatever files say, it is used or refused in one line: never a traceback, a hang, all memory.

``DYNAMICVIT_DRAWS=10000`` draws as many damaged inputs of each kind in place of a few.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynamicvit import InputError
from fuzzing import SUBJECTS

DRAWS = int(os.environ.get("DYNAMICVIT_DRAWS", "12"))
SECONDS = 20
LONGEST_MESSAGE = 1000


@pytest.mark.timeout(600 * max(1, DRAWS // 100))
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SUBJECTS)
def test_damage_is_refused_in_one_line_or_harmless(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "transformers" in name or name == "processor":
        pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    subject = SUBJECTS[name](tmp_path)
    refused = []

    @settings(
        max_examples=DRAWS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(random=st.randoms(use_true_random=False))
    def damage(random: Random) -> None:
        began = time.process_time()
        try:
            subject(random)
        except InputError as error:
            refused.append(str(error))
        assert len("".join(refused[-1:])) < LONGEST_MESSAGE
        assert time.process_time() - began < SECONDS

    damage()
    assert refused, "of so much damage some must be seen"
