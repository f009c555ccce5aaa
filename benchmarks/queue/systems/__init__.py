"""The same work in four queues: `python -m benchmarks.queue.systems.NAME install|insert|work URL [NUMBER]`.

Each takes a job with a prompt, does nothing, and writes a result of the same size. What others write is a row of
`result`; ours is a row of loracomp.prediction.
"""
