"""Runs the same search by pgvector, as its documentation shows it, and by ChromaDB, both without rights, weights and
traces."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec

import numpy as np

from loracomp.database import connections as db

from .made_up import Library, Vectors

K = 30
"""Number of nearest examples to find, which is k in the policy default."""
Search = Callable[[Vectors], Sequence[Sequence[int]]]
"""A function that returns the ids of the nearest examples of each vector."""


def pgvector(connection: db.Connection, library: Library) -> Search:
    """Make a table of vectors with an index that has pgvector's default settings; each query is a statement."""
    connection.execute(f"CREATE TABLE public.items (id bigint, embedding vector({library.vectors.shape[1]}))")
    with connection.cursor() as cursor, cursor.copy("COPY public.items FROM STDIN WITH (FORMAT BINARY)") as copy:
        copy.set_types(["int8", "vector"])
        for id_, vector in zip(library.example_ids, library.vectors, strict=True):
            copy.write_row((int(id_), vector.astype(np.float32)))
    connection.execute("CREATE INDEX ON public.items USING hnsw (embedding vector_cosine_ops)")
    connection.execute("VACUUM ANALYZE public.items")

    def search(vectors: Vectors) -> list[list[int]]:
        statement = f"SELECT id FROM public.items ORDER BY embedding <=> %b LIMIT {K}"
        return [[row["id"] for row in connection.execute(statement, [vector])] for vector in vectors]

    return search


def chromadb(_: db.Connection, library: Library) -> Search:
    """Make a collection in memory, which is queried in batches."""
    import chromadb as chroma  # noqa: PLC0415  of an extra, which no other part needs

    client = chroma.EphemeralClient(chroma.Settings(anonymized_telemetry=False))
    with suppress(Exception):
        client.delete_collection("items")
    items = client.create_collection("items", configuration={"hnsw": {"space": "cosine"}})
    for start in range(0, len(library.vectors), 4096):
        part = slice(start, start + 4096)
        items.add([str(id_) for id_ in library.example_ids[part]], embeddings=library.vectors[part].astype(np.float32))

    def search(vectors: Vectors) -> list[list[int]]:
        found = items.query(query_embeddings=vectors, n_results=K, include=[])
        return [[int(id_) for id_ in ids] for ids in found["ids"]]

    return search


SYSTEMS: dict[str, Callable[[db.Connection, Library], Search]] = {"pgvector": pgvector}
if find_spec("chromadb"):
    SYSTEMS["ChromaDB"] = chromadb
