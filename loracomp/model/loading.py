"""Describes, fingerprints and loads base models from any source; resolves the device and dtype that they run in."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from loracomp.errors import LoracompError, RefusedError, UsageError
from loracomp.model.forward import keys_and_values_suffice
from loracomp.model.longrope import length_limits
from loracomp.model.scoring import shares_prompts
from loracomp.model.sources import absolute_source, converted_folder, full_fingerprint, resolve_source
from loracomp.records import BaseModelDescription

CAUSAL = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
"""Maps a config's model_type to the class or classes that generate text."""
LENGTHS = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len", "max_sequence_length")
"""Names that model configs use for the context length, in tokens."""
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class BaseModel(BaseModelDescription):
    """A base model ready to serve: in eval mode, without gradients."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    shares_prompts: bool
    """Whether choices are branches of one prompt (`scoring.shares_prompts`), and texts share what they begin with."""

    @property
    def length_limits(self) -> tuple[int, ...]:
        """See `longrope.length_limits`."""
        return length_limits(self.model)

    @property
    def shares_prefixes(self) -> bool:
        """Whether rows whose choices are scored can continue tokens that were read in another pass. With rotary
        frequencies that depend on a row's length they can't, because the keys of these tokens depend on it too."""
        return self.shares_prompts and keys_and_values_suffice(self.model) and not self.length_limits


def load_base_model(
    source: str,
    *,
    revision: str | None = None,
    device: str = "cpu",
    device_map: str | None = None,
    dtype: torch.dtype | str = "auto",
    cache_dir: Path,
) -> BaseModel:
    """Load a causal language model and its tokenizer from a hub id, a folder, a GGUF file or a package.

    The model is put on `device`, or spread over all GPUs as transformers' `device_map` says. dtype 'auto' means
    bfloat16 on CUDA and on processors with bfloat16 instructions, otherwise float32. A GGUF file is dequantised once
    into `cache_dir` (`model.sources`). Raises NotFoundError, UsageError or RefusedError, which name the source;
    RefusedError also if the GPUs can't hold the model (`check_spread`).
    """
    folder, description = _describe(source, revision, cache_dir)
    with quiet_transformers(), readable(source):
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=resolve_dtype(dtype, device),
            device_map=device_map,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        # transformers would fill missing weights with random numbers and go on.
        if lacking := sorted(found["missing_keys"]):
            raise RefusedError(
                f"model source {source!r}: its files lack {len(lacking)} weights of {type(model).__name__}, such as "
                f"{lacking[0]}: use a complete copy of the model"
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if device_map is None:
        model.to(device)
    else:
        check_spread(model.hf_device_map, device_map)
    model.eval().requires_grad_(False)
    known = vars(description) | {"has_chat_template": tokenizer.chat_template is not None}
    return BaseModel(**known, model=model, tokenizer=tokenizer, shares_prompts=shares_prompts(model))


def describe_base_model(source: str, *, revision: str | None = None, cache_dir: Path) -> BaseModelDescription:
    """Describe a base model without loading its weights (they are read once, for the fingerprint)."""
    folder, description = _describe(source, revision, cache_dir)
    with quiet_transformers(), contextlib.suppress(Exception):  # loading the model later reports a missing tokenizer
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return replace(description, has_chat_template=tokenizer.chat_template is not None)
    return description


def base_model_folder(source: str, *, revision: str | None = None, cache_dir: Path) -> Path:
    """The folder that `load_base_model` loads from: safetensors, config and tokenizer, as transformers reads them.

    A GGUF file is dequantised into `cache_dir` first, if that has not been done. Raises the same errors.
    """
    return _describe(source, revision, cache_dir)[0]


def resolve_device(device: str, device_map: str | None = None) -> str:
    """The torch device to use; 'auto' means a GPU if there is one, and with a device_map the first GPU.

    Raises UsageError for a device that this machine lacks, for a device_map without GPUs, and for a device_map together
    with a device other than auto or cuda.
    """
    if device_map is not None:
        if device not in ("auto", "cuda"):
            raise UsageError(
                f"device_map {device_map!r} spreads a model over all GPUs: leave device out, not {device!r}"
            )
        if not torch.cuda.is_available():
            raise UsageError(
                f"device_map {device_map!r} spreads a model over GPUs, and there is none here: leave it out"
            )
        return "cuda"
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise UsageError(f"device {device!r} is not available here: {str(error).splitlines()[0]}") from None
    return device


def check_spread(placed: Mapping[str, object], device_map: str) -> None:
    """Raise RefusedError if any part of a model is not on a GPU; `placed` maps each part to its device."""
    left = {part: str(device) for part, device in placed.items() if str(device) in ("cpu", "disk", "meta")}
    if left:
        raise RefusedError(
            f"device_map {device_map!r} leaves {len(left)} parts of the base model off the GPUs, such as "
            f"{next(iter(left))} on {next(iter(left.values()))}: every pass would copy them to a GPU; "
            "use more or larger GPUs, or a smaller model"
        )


def resolve_dtype(dtype: torch.dtype | str, device: str) -> torch.dtype:
    """The torch dtype for a name ('bfloat16', 'float32', ...); for 'auto' the best one on the device."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.bfloat16 if has_bf16(device) else torch.float32
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is not one of auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within this context, transformers shows no progress bars and no advice."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _describe(source: str, revision: str | None, cache_dir: Path) -> tuple[Path, BaseModelDescription]:
    resolved = resolve_source(source, revision)
    digest = full_fingerprint(resolved)
    with quiet_transformers(), readable(source):
        folder = converted_folder(resolved.path, digest, cache_dir) if resolved.is_gguf else resolved.path
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        _check_causal(config, source)
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config)
    description = BaseModelDescription(
        name=resolved.name,
        source=absolute_source(source),
        revision=resolved.revision,
        fingerprint=digest,
        architecture=type(skeleton).__name__,
        context_length=_context_length(config.get_text_config(), source),
        parameter_count=sum(parameter.numel() for parameter in skeleton.parameters()),
        modules=adaptable_modules(skeleton),
        has_chat_template=False,  # the tokenizer knows
    )
    return folder, description


def _check_causal(config: PreTrainedConfig, source: str) -> None:
    """Raise RefusedError if the config's architecture is no causal language model, such as BERT or T5."""
    classes = {name for names in CAUSAL.values() for name in ([names] if isinstance(names, str) else names)}
    named = config.architectures or []
    if config.model_type not in CAUSAL or (named and not classes & set(named)):
        raise RefusedError(
            f"model source {source!r}: {', '.join(named) or config.model_type} is no causal language model, which "
            "continues a text: name one, such as a Llama or a Qwen"
        )


def _context_length(config: PreTrainedConfig, source: str) -> int:
    """The context length: the first setting of LENGTHS that the config has. Raises RefusedError if it has none."""
    for name in LENGTHS:
        if isinstance(length := getattr(config, name, None), int) and length > 0:
            return length
    raise RefusedError(
        f"model source {source!r}: its config.json gives no context length (models without position embeddings need "
        f'none); add the number of tokens that it was trained on to that file, such as "{LENGTHS[0]}": 2048'
    )


def adaptable_modules(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """Modules that LoRA may change: name -> (d_out, d_in).

    These are all linear layers, the output head included (also GPT-2's Conv1D, which stores its weight transposed), and
    the token embedding, whose d_in is the vocabulary size. Experts of a mixture are left out: one expert gets tokens of
    many rows, which may run under different adapters.
    """
    shapes = {}
    for name, module in model.named_modules():
        if ".experts." in name:
            continue
        if isinstance(module, torch.nn.Linear):
            shapes[name] = module.out_features, module.in_features
        elif isinstance(module, Conv1D):
            shapes[name] = module.nf, module.nx
        elif module is model.get_input_embeddings() and isinstance(module, torch.nn.Embedding):
            shapes[name] = module.embedding_dim, module.num_embeddings
    return shapes


@contextlib.contextmanager
def readable(source: str) -> Iterator[None]:
    """Turn any error of transformers or safetensors on unreadable files into a RefusedError naming the source."""
    try:
        yield
    except LoracompError:
        raise
    except Exception as error:  # a broken file makes these libraries raise almost any exception
        first_line = str(error).strip().partition("\n")[0]
        raise RefusedError(f"model source {source!r} cannot be loaded: {type(error).__name__}: {first_line}") from error


def has_bf16(device: str) -> bool:
    """Whether the device has instructions for bfloat16."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    # With AVX512-BF16 instructions, bfloat16 is 8 times faster than float32; without them it is slower.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(present for name, present in capabilities.items() if "bf16" in name)
