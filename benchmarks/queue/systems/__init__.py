"""Does the same work in several queues: `python -m benchmarks.queue.systems.NAME install|insert|work URL [NUMBER]`.

Each system takes a job with a prompt, does nothing, and writes a result of the same size: loracomp writes into
loracomp.prediction, the other systems into a table `result`.
"""
