"""trackio: a local database of figures, and a dashboard of it. Local unless the recipe names a Space."""

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout

from fledge.run.sinks.sink import SinkContext

REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID")
"""Variables of the environment that would send figures although the recipe names no Space."""


class Trackio:
    """Writes a run of a project into trackio's folder (`TRACKIO_DIR`); `trackio show --project NAME` shows it."""

    def __init__(self, context: SinkContext, *, project: str, space: str | None) -> None:
        """`space`: a Space of the Hugging Face hub that gets the figures; None: they stay on this machine."""
        with _without(REMOTE), redirect_stdout(io.StringIO()):
            import trackio

            self._run = trackio.init(
                project,
                name=f"{context.run}-{context.stage}",
                group=context.run,
                space_id=space,
                config=dict(context.recipe),
                resume="allow" if context.step else "never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the figures of a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Write what is waiting, and end the run."""
        from trackio import context_vars  # type: ignore[attr-defined]

        with redirect_stdout(io.StringIO()):
            self._run.finish()
            if context_vars.current_run.get() is self._run:  # else trackio ends it once more when the process ends
                context_vars.current_run.set(None)


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """Run without these variables of the environment."""
    removed = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(removed)
