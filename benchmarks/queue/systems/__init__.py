"""The same work in several queues: `python -m benchmarks.queue.systems.NAME install|insert|work URL [NUMBER]`.

Each system takes a job with a prompt, does nothing, and writes a result of the same size: ours into
loracomp.prediction, the others into a table `result`.
"""
