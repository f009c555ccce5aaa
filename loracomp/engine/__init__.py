"""From a claimed job to its answer: schedule, run, postprocess."""
