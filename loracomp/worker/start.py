"""A pipeline ready to serve: the database's base model and encoder, loaded and checked."""

import ctypes
import gc
import platform
from concurrent.futures import ThreadPoolExecutor

from loracomp.config import Settings
from loracomp.database.connections import Connection, connect
from loracomp.database.embedded import database_url
from loracomp.errors import RefusedError
from loracomp.model.loading import BaseModel, load_base_model, resolve_device
from loracomp.pipeline import Pipeline
from loracomp.registry.base_models import RegisteredBaseModel, find_base_model, load_registered_encoder
from loracomp.worker.endpoint import DatabaseSample
from loracomp.worker.loop import Worker

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Names of glibc's malloc.h."""


def load_pipeline(settings: Settings, connection: Connection) -> Pipeline:
    """Load the base model that the settings name (or the default one) and the encoder, as the database knows them.

    Raises NotFoundError where the database has none, RefusedError where a source gives other weights than those
    registered.
    """
    _keep_freed_memory()
    # In a thread that ends: torch keeps helpers for every thread that has computed, and where they outnumber the
    # processors they sleep between operations; a lone job's pass took 139 ms instead of 95.
    with ThreadPoolExecutor(1) as loading:
        pipeline = loading.submit(_load_pipeline, settings, connection).result()
    # Modules and models stay: of their half a million objects a full collection, in the midst of a batch, takes 0.3 s.
    gc.collect()
    gc.freeze()
    return pipeline


def _load_pipeline(settings: Settings, connection: Connection) -> Pipeline:
    device = resolve_device(settings.device, settings.device_map)
    registered = find_base_model(connection, settings.base_model)
    base = _load_registered(registered, settings, device)
    return Pipeline(
        registered.name,
        base,
        load_registered_encoder(connection, device),
        token_budget=settings.token_budget,
        cache_bytes=settings.adapter_cache_mb << 20,
        diagnostics=settings.diagnostics,
    )


def _keep_freed_memory() -> None:
    """Let glibc keep what one pass frees for the next: given back, each 4 kB of it costs a page fault every time."""
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, nbytes in ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, 1 << 30), (M_TOP_PAD, 64 << 20)):
            mallopt(parameter, nbytes)


def _load_registered(registered: RegisteredBaseModel, settings: Settings, device: str) -> BaseModel:
    base = load_base_model(
        registered.source,
        revision=registered.revision,
        device=device,
        device_map=settings.device_map,
        dtype=settings.dtype,
        cache_dir=settings.home / "models",
    )
    if base.fingerprint != registered.fingerprint:
        raise RefusedError(
            f"base model {registered.name}: {registered.source} holds other weights here (fingerprint "
            f"{base.fingerprint[:12]}) than those registered ({registered.fingerprint[:12]}); "
            "bring the registered ones, or register these under another name"
        )
    return base


def open_worker(settings: Settings, *, drain: bool = False, sample: DatabaseSample | None = None) -> Worker:
    """A worker on the settings' database, its models loaded; see `load_pipeline` for what it raises.

    `sample` gets the database's numbers for metrics.
    """
    url = database_url(settings)
    with connect(url, application_name="loracomp worker start") as connection:
        pipeline = load_pipeline(settings, connection)
    return Worker(
        url,
        pipeline,
        base_model=pipeline.base_name,
        settings=settings,
        device=pipeline.device,
        drain=drain,
        sample=sample,
    )
