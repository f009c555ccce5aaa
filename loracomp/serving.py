"""A pipeline ready to serve: the database's base model and encoder, loaded and checked."""

from loracomp.config import Settings
from loracomp.db import Connection, connect, translated_errors
from loracomp.embedded import database_url
from loracomp.errors import NotFoundError, RefusedError
from loracomp.pipeline import Pipeline
from loracomp.queries import QUERIES
from loracomp.registry.base_models import RegisteredBaseModel, check_encoder, find_base_model
from loracomp.registry.models import BaseModel, Encoder, load_base_model, load_encoder, resolve_device
from loracomp.worker import Worker


def load_pipeline(settings: Settings, connection: Connection) -> Pipeline:
    """Load the base model that the settings name (or the default one) and the encoder, as the database knows them.

    Raises NotFoundError where the database has none, RefusedError where a source gives other weights than those
    registered.
    """
    device = resolve_device(settings.device)
    registered = find_base_model(connection, settings.base_model)
    base = _load_registered(registered, settings, device)
    return Pipeline(
        registered.name,
        base,
        _load_encoder(connection, device),
        token_budget=settings.token_budget,
        cache_bytes=settings.adapter_cache_mb << 20,
        diagnostics=settings.diagnostics,
    )


def _load_registered(registered: RegisteredBaseModel, settings: Settings, device: str) -> BaseModel:
    base = load_base_model(registered.source, device=device, dtype=settings.dtype, cache_dir=settings.home / "models")
    if base.fingerprint != registered.fingerprint:
        raise RefusedError(
            f"base model {registered.name}: {registered.source} holds other weights here (fingerprint "
            f"{base.fingerprint[:12]}) than those registered ({registered.fingerprint[:12]}); "
            "bring the registered ones, or register these under another name"
        )
    return base


def _load_encoder(connection: Connection, device: str) -> Encoder:
    with translated_errors():
        row = connection.execute(QUERIES["show_encoder"]).fetchone()
    if row is None:
        raise NotFoundError("the database has no encoder: set one with `loracomp encoder set SOURCE`")
    encoder = load_encoder(row["source"], revision=row["revision"], device=device)
    check_encoder(connection, name=encoder.name, fingerprint=encoder.fingerprint, dimensions=encoder.dimensions)
    return encoder


def open_worker(settings: Settings, *, drain: bool = False) -> Worker:
    """A worker on the settings' database, its models loaded; see `load_pipeline` for what it raises."""
    url = database_url(settings)
    with connect(url, application_name="loracomp worker start") as connection:
        pipeline = load_pipeline(settings, connection)
    return Worker(url, pipeline, base_model=pipeline.base_name, settings=settings, drain=drain)
