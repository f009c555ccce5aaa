"""What a row's choices would score on any text of the table, learnt from other rows without their right answers.

A mix that was not trained on a task usually favours one choice whatever the text says. The rows of a table differ only
in their text, so what is common to their scores is such a preference (docs/routing.md, "Rows of the same table").
Batch Calibration (arXiv 2309.17249) does the same with the rows of a batch.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from loracomp.composition.cache import ByteLimitedCache
from loracomp.records import Job, Routed

KEPT_BYTES = 16 << 20
"""Memory for the scores of earlier jobs."""
LATEST = 64
"""How many of the latest jobs of a series count. Sorted tables have long runs of rows with the same answer."""
SHARE = 0.5
"""Which share of the other rows' mean score is taken off. Where most rows have the same answer, the mean also contains
what is right about them, so taking all of it off would do harm."""

Scores = npt.NDArray[np.float64]


class SeriesScores:
    """The scores of the latest jobs of each series, before anything was added to them."""

    def __init__(self) -> None:
        self._latest: ByteLimitedCache[bytes, Scores] = ByteLimitedCache(KEPT_BYTES)

    def add(self, series: bytes, scores: Sequence[float]) -> None:
        """Note the scores of a job's choices."""
        earlier, new = self._latest.get(series), np.array([scores])
        latest = new if earlier is None else np.concatenate([earlier, new])[-LATEST:]
        self._latest.put(series, latest, latest.nbytes + 200)

    def biases(self, series: bytes, scores: Sequence[float]) -> tuple[float, ...]:
        """What to add to the scores of a job that was added before; empty if its series has no other jobs.

        It is minus half of the other jobs' mean scores, shifted by the same number for each choice, so that the biases
        add up to 0.
        """
        latest = self._latest.get(series)
        if latest is None or len(latest) < 2:
            return ()
        mean = (latest.sum(axis=0) - scores) / (len(latest) - 1)
        return tuple((SHARE * (mean.mean() - mean)).tolist())


def series_of(job: Job, routed: Routed) -> bytes | None:
    """Identifies the jobs that differ from this one only in their text; None if the job doesn't say which part that is.

    Jobs with described choices have no series, because the descriptions say better what is meant. A series has jobs of
    only one submitter, so that nobody can shift the scores of another submitter's rows. (Many series of somebody else
    can push it out of the memory, as a restart of the worker does.) It has only jobs whose scores can be compared,
    because policies may normalise scores differently or put the prompt into a chat. The identifier is a digest, because
    a worker keeps no text of a job that may be erased.
    """
    if job.text_at is None or job.choices is None or job.descriptions is not None:
        return None
    around = (job.prompt[: job.text_at[0]], job.prompt[job.text_at[1] :])
    scale = (routed.normalization, routed.chat_template)
    return hashlib.sha256(repr((job.submitted_by, around, job.choices, job.system_text, scale)).encode()).digest()
