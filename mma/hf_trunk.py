"""`hf:<model or folder>` trunks: any vision model of transformers as the trunk of an MMA network; an optional extra.

A stored checkpoint carries the model's configuration (`MMAConfig.trunk_config`), so that it builds again without the
network or the folder it came from. Weights are read from safetensors alone and code that a model brings along is never
run. Imported only where a trunk is called `hf:`, since transformers takes seconds to import and may not be there.
"""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

MISSING = "hf: trunks need the transformers package: pip install 'mma-mrnnet[hf]'"

_NOT_STORED = frozenset(
    "_attn_implementation_autoset _commit_hash _name_or_path architectures dtype id2label label2id num_labels "
    "problem_type return_dict torch_dtype transformers_version use_return_dict".split()
)
"""Parts of a model's configuration that say nothing of its arithmetic in float32: where it came from, its old head."""


class HFTrunk(nn.Module):
    """A vision model of transformers without its head: float (N, 3, H, W) -> float32 (N, num_features).

    Pooled as the model itself does for convolutional networks, by the mean over all tokens for transformers: their own
    pooler is a layer of pretraining that published classifiers do not hold. Built on the CPU whatever the device
    context, because buffers outside the state dict (positions) get their values in the constructor alone. Draws from
    the global random state. Parameters that no feature depends on (poolers, mask tokens) are frozen: training them in
    several processes would fail, since they never get a gradient.
    """

    def __init__(self, trunk_config: Mapping[str, Any], crop_size_px: int = 112) -> None:
        """`trunk_config`: as `hf_start` gives it. `crop_size_px`: side of the crops to come.

        ValueError, in one line: transformers is missing, or this is no vision model that its version can build.
        """
        super().__init__()
        kind = str(trunk_config.get("model_type"))
        _refuse_foreign(trunk_config, f"the trunk's configuration ({kind})")
        with _failures(f"the trunk {kind} cannot be built"), torch.device("cpu"):
            transformers = _transformers()
            options = {name: value for name, value in trunk_config.items() if name != "model_type"}
            config = transformers.AutoConfig.for_model(kind, **options)
            self.model: nn.Module = transformers.AutoModel.from_config(config, trust_remote_code=False).float()
        self.input_size_px: tuple[int, int] | None = None
        """(height, width) to which crops are resized; None: the model takes them as they are."""
        features = self._probe(kind, crop_size_px, _size_px(getattr(config, "image_size", None)))
        self.num_features = features.shape[1]
        parameters = list(self.parameters())
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(features.sum(), parameters, allow_unused=True), strict=True
        ):
            parameter.requires_grad_(gradient is not None)
        self.train()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float (N, 3, H, W) -> float32 (N, num_features), also under autocast."""
        size_px = self.input_size_px
        if size_px is not None and tuple(x.shape[-2:]) != size_px:
            smaller = size_px[0] < x.shape[-2]
            x = nn.functional.interpolate(x.float(), size_px, mode="bilinear", align_corners=False, antialias=smaller)
        outputs = self.model(pixel_values=x)
        hidden = outputs.last_hidden_state
        if hidden.ndim == 3:  # (N, tokens, features)
            return hidden.float().mean(dim=1)
        pooled = getattr(outputs, "pooler_output", None)
        return hidden.float().mean(dim=(2, 3)) if pooled is None else pooled.float().flatten(1)

    @torch.inference_mode(False)
    @torch.enable_grad()
    def _probe(self, kind: str, crop_size_px: int, own_size_px: tuple[int, int] | None) -> torch.Tensor:
        """The features of one blank crop, (1, num_features). Sets `input_size_px` where the model takes no other."""
        self.eval()  # no statistics of a batch, no dropout
        x = torch.zeros(1, 3, crop_size_px, crop_size_px, device="cpu")
        untouched = copy.deepcopy(self.model)  # Swin, for one, shrinks its windows for good before it fails
        try:
            return self(x)
        except Exception:  # each model refuses another size in its own way; whether it was that shows at once
            self.model, self.input_size_px = untouched, own_size_px
        with _failures(f"the trunk {kind} gives no features for a face crop (is it a model of images?)"):
            return self(x)


class HFStart(NamedTuple):
    """A pretrained model of transformers, as the start of an MMA network's training."""

    trunk_config: dict[str, Any]
    """For `MMAConfig`: plain JSON."""
    state: dict[str, torch.Tensor]
    """For `network.trunk.load_state_dict`: float32 on the CPU, all of it."""
    pixel_mean: tuple[float, float, float]
    """For `MMAConfig`, of RGB bytes (0 to 255); the project's own default where the model names none."""
    pixel_std: tuple[float, float, float]
    """As `pixel_mean`."""


def hf_start(model: str, crop_size_px: int = 112) -> HFStart:
    """Fetches a pretrained vision model; torch's global random state is neither used nor moved.

    Args:
        model: what stands behind `hf:`: a model's name on the Hugging Face Hub, or a local folder of `save_pretrained`.
        crop_size_px: side of the face crops.

    Raises:
        ValueError: in one line, with the mend: transformers missing, nothing there, no connection, no safetensors,
            code of its own wanted, weights that do not fill the model, or no vision model.
    """
    if "://" in model:
        raise ValueError(f"hf:{model}: give a model's name on the Hub or a local folder; fetch the URI into one first")
    folder = Path(model).is_dir()
    if not folder and model.startswith(("/", ".", "~")):
        raise ValueError(f"hf:{model}: no such folder on this machine")
    if folder and not any(Path(model).glob("*.safetensors")):
        raise ValueError(
            f"hf:{model} holds no .safetensors file, and loading another form can run code: "
            "write it anew with transformers: model.save_pretrained(folder)"
        )
    with _failures(f"hf:{model} cannot be had"):
        transformers = _transformers()
        described, _ = transformers.PretrainedConfig.get_config_dict(model)
    _refuse_foreign(described, f"hf:{model}")
    if not isinstance(described.get("model_type"), str):
        raise ValueError(
            f"hf:{model} names no model_type in its config.json: give a model that transformers itself knows"
        )
    with _failures(f"hf:{model} cannot be had"), _own_random_state(0):
        config = transformers.AutoConfig.from_pretrained(model, trust_remote_code=False)
        loaded, told = transformers.AutoModel.from_pretrained(
            model, config=config, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        trunk_config = {name: value for name, value in config.to_dict().items() if name not in _NOT_STORED}
        trunk_config = json.loads(json.dumps(trunk_config, allow_nan=False))
        trunk = HFTrunk(trunk_config, crop_size_px)
        trunk.model.load_state_dict(loaded.float().state_dict())
        pixel_mean, pixel_std = _pixels(model)
    used = {name for name, parameter in trunk.model.named_parameters() if parameter.requires_grad}
    missing = sorted(used.intersection(told["missing_keys"]))
    if missing:
        raise ValueError(
            f"hf:{model} holds no weights for {missing[0]} ({len(missing)} of {len(used)} are missing): "
            "give a pretrained model of images"
        )
    state = {name: tensor.contiguous() for name, tensor in trunk.state_dict().items()}
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise ValueError(f"hf:{model} holds NaN or infinity in {broken[0]}: take another revision of it")
    return HFStart(trunk_config, state, pixel_mean, pixel_std)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "transformers"
        raise ValueError(MISSING if missing else f"transformers does not import ({_line(error)}): {MISSING}") from None
    return transformers


def _refuse_foreign(config: Mapping[str, Any], whose: str) -> None:
    """ValueError where building this model would run code of its author, or fetch another model."""
    if config.get("auto_map"):
        raise ValueError(f"{whose} wants code of its own to be run: give a model that transformers itself knows")
    if config.get("use_pretrained_backbone"):
        raise ValueError(f"{whose} wants another model fetched as its backbone: give that backbone itself")
    for part in config.values():
        if isinstance(part, Mapping):
            _refuse_foreign(part, whose)


def _size_px(image_size: Any) -> tuple[int, int] | None:
    if image_size is None:
        return None
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return int(height), int(width)


def _pixels(model: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """(mean, std) of RGB bytes that the model's preprocessor subtracts and divides by, a channel each."""
    from transformers.utils import cached_file

    path = cached_file(model, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    told = {} if path is None else json.loads(Path(path).read_text())
    if "image_mean" not in told or "image_std" not in told:
        return (127.5, 127.5, 127.5), (127.5, 127.5, 127.5)
    mean, std = [0.0] * 3, [1.0] * 3
    if told.get("do_normalize", True):
        mean, std = [float(each) for each in told["image_mean"]], [float(each) for each in told["image_std"]]
    factor = float(told.get("rescale_factor", 1 / 255)) if told.get("do_rescale", True) else 1.0
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or factor <= 0 or not math.isfinite(sum(mean + std)):
        raise ValueError("its preprocessor_config.json has no usable image_mean and image_std for three channels")
    return (mean[0] / factor, mean[1] / factor, mean[2] / factor), (std[0] / factor, std[1] / factor, std[2] / factor)


@contextmanager
def _own_random_state(seed: int) -> Iterator[None]:
    """Torch's random state on the CPU starts from a seed and is put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)  # not torch.manual_seed: it would move a GPU's state too
        yield


@contextmanager
def _failures(what: str) -> Iterator[None]:
    """Whatever transformers raises becomes a ValueError of one line with the mend; its chatter is kept away."""
    try:
        with _quiet():
            yield
    except ValueError as error:
        if str(error) == MISSING or str(error).startswith(("hf:", "the trunk")):
            raise
        raise ValueError(f"{what}: {_line(error)}{_mend(error)}") from error
    except Exception as error:  # OSError, RuntimeError, its own and its configuration checker's classes
        raise ValueError(f"{what}: {_line(error)}{_mend(error)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    try:
        from transformers.utils import logging as transformers_logging
    except ImportError:  # told by who needs it
        yield
        return
    hub = logging.getLogger("huggingface_hub")
    verbosity, hub_level = transformers_logging.get_verbosity(), hub.level
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    hub.setLevel(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        hub.setLevel(hub_level)
        if bars:
            transformers_logging.enable_progress_bar()


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}…"


def _mend(error: BaseException) -> str:
    text = str(error).lower()
    if "trust_remote_code" in text or "custom code" in text:
        return " -- code of its own is never run: give a model that transformers itself knows"
    if any(word in text for word in ("connect", "offline", "resolve", "timed out", "timeout")):
        return " -- without a connection, fetch it elsewhere (hf download MODEL --local-dir FOLDER) and give hf:FOLDER"
    if "safetensors" in text:
        return " -- only safetensors are read: give a model that has them"
    if "not a valid model identifier" in text or "not a local folder" in text:
        return " -- check its name; for a private model, hf auth login"
    return ""
