"""Encode: a batch of jobs -> unit vectors."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from loracomp.model.encoder import Encoder
from loracomp.records import Job


def encode(encoder: Encoder, jobs: Sequence[Job]) -> npt.NDArray[np.float32]:
    """Unit vectors [len(jobs), dimensions] of what the encoder is shown of each job (`loracomp.model.encoding`)."""
    return encoder.encode([(job.prompt, job.choices) for job in jobs])
