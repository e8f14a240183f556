"""A dry run where PyTorch says that there is a GPU (`tests/support/fake_cuda`): what the plan tells of micro-batches."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fake_cuda import stub

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from pathlib import Path
from tests.support.fake_cuda import stub
stub.load(Path(sys.argv[1]))
stub.pretend((9, 0))
from fledge.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_a_gpu_takes_the_rows_of_a_preset_s_update_at_once_and_those_of_the_recipe_as_written(tmp_path: Path) -> None:
    if (reason := stub.missing()) is not None:
        pytest.skip(reason)
    (tmp_path / "corpus.txt").write_text("\n\n".join(f"{number} cats see the bird under a tree. " * 9 for number in range(600)))
    recipe, library, notes = tmp_path / "recipe.yaml", str(stub.build(tmp_path)), []
    recipe.write_text(
        f"{{name: x, preset: 104m, output: {tmp_path / 'runs'}, tokenizer: {{vocab_size: 300}}, "
        f"stages: {{pretrain: {{data: {{train: {tmp_path / 'corpus.txt'}}}, schedule: {{warmup: 1}}}}}}}}"
    )
    for own in ([], ["--stages.pretrain.batch.micro_batch_size", "32"]):
        arguments = ["train", str(recipe), "--dry-run", *own]
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, library, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert "effective batch 64 rows" in done.stdout
        notes.append([line for line in done.stdout.splitlines() if "micro-batches" in line])
    (merged,), written = notes
    assert "micro-batches of 64 rows instead of 32, 1 per step" in merged
    assert "of 63.00 GiB, and 45,056 tokens fill this GPU (132 multiprocessors)" in merged
    assert not written
