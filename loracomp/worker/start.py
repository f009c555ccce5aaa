"""Prepares a worker: loads the database's base model and encoder, and checks them."""

from loracomp.config import Settings
from loracomp.database.connections import Connection, connect
from loracomp.engine.engine import Engine
from loracomp.errors import RefusedError
from loracomp.model import cpu
from loracomp.model.loading import BaseModel, load_base_model, resolve_device
from loracomp.records import KnownBaseModel
from loracomp.registry.base_models import find_base_model
from loracomp.registry.embeddings import load_registered_encoder
from loracomp.worker.endpoint import DatabaseSample
from loracomp.worker.worker import Worker


def load_engine(settings: Settings, connection: Connection) -> Engine:
    """Load the base model that the settings name (or the default one) and the database's encoder.

    Raises NotFoundError if the database has none, and RefusedError if a source gives other weights than the registered
    ones.
    """
    cpu.keep_freed_memory()
    engine = cpu.in_a_passing_thread(lambda: _load_engine(settings, connection))
    cpu.freeze_objects()
    return engine


def _load_engine(settings: Settings, connection: Connection) -> Engine:
    device = resolve_device(settings.device, settings.device_map)
    registered = find_base_model(connection, settings.base_model)
    base = _load_registered(registered, settings, device)
    return Engine(
        registered.name,
        base,
        load_registered_encoder(connection, device),
        token_budget=settings.token_budget,
        cache_bytes=settings.adapter_cache_mb << 20,
    )


def _load_registered(registered: KnownBaseModel, settings: Settings, device: str) -> BaseModel:
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
            f"base model {registered.name}: {registered.source} has other weights, settings or another tokenizer here "
            f"(fingerprint {base.fingerprint[:12]}) than those registered ({registered.fingerprint[:12]}); "
            "provide the registered files, or register these under another name"
        )
    return base


def open_worker(url: str, settings: Settings, *, drain: bool = False, sample: DatabaseSample | None = None) -> Worker:
    """A worker for the database with this URL, with its models loaded. Raises what `load_engine` raises.

    `sample` receives the metrics of the database.
    """
    with connect(url, application_name="loracomp worker start") as connection:
        engine = load_engine(settings, connection)
    return Worker(
        url,
        engine,
        base_model=engine.base_name,
        settings=settings,
        device=engine.device,
        drain=drain,
        sample=sample,
    )
