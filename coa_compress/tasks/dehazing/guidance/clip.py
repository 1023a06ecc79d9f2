"""CLIP of ``open_clip_torch`` as an image-text encoder; imported only when it is asked for."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from coa_compress.errors import SettingError, first_line

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
_SEPARATOR = ":"


class ClipEncoder:
    """A frozen CLIP.

    Args:
        name: Architecture and weights of ``open_clip``, such as ``ViT-B-32:laion2b_s34b_b79k``;
            the second may be a file.

    Raises:
        SettingError: If ``open_clip`` is not installed, or does not know the name.
    """

    def __init__(self, name: str) -> None:
        open_clip = _open_clip()
        architecture, _, weights = name.partition(_SEPARATOR)
        if not weights:
            message = (
                f"task.clip is {name!r}: name an architecture and its weights, "
                f"such as ViT-B-32:laion2b_s34b_b79k or ViT-B-32:FILE"
            )
            raise SettingError(message)
        try:
            model = open_clip.create_model(architecture, pretrained=weights)
        except (RuntimeError, OSError, ValueError) as error:
            message = f"open_clip cannot make {name!r}: {first_line(error)}: "
            message += "give another name in task.clip"
            raise SettingError(message) from None
        self._model: Any = model.eval().requires_grad_(requires_grad=False)
        self._tokenizer = open_clip.get_tokenizer(architecture)
        self._side = int(getattr(model.visual, "image_size", (224, 224))[0])
        self.width = int(model.token_embedding.weight.shape[1])

    def images(self, images: Tensor) -> Tensor:
        """Return embeddings, shape ``(batch, features)``, with gradient."""
        self._model.to(images.device)
        side = (self._side, self._side)
        small = functional.interpolate(
            images.clamp(0, 1), side, mode="bicubic", align_corners=False, antialias=True
        )
        mean, deviation = (images.new_tensor(v)[:, None, None] for v in (_MEAN, _DEVIATION))
        embedded: Tensor = self._model.encode_image((small - mean) / deviation)
        return embedded

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Return embeddings of sentences, shape ``(prompts, features)``."""
        device = self._model.token_embedding.weight.device
        embedded: Tensor = self._model.encode_text(self._tokenizer(list(prompts)).to(device))
        return embedded

    def tokens(self, contexts: Tensor) -> Tensor:
        """Return embeddings of learned sentences, shape ``(prompts, features)``, with gradient."""
        model = self._model
        embedding = model.token_embedding.weight
        # an empty sentence is its start and its end; the learned tokens go between
        empty = self._tokenizer([""]).to(embedding.device)
        end = int(empty.argmax(dim=1))
        frame = model.token_embedding(empty).expand(len(contexts), -1, -1)
        room = frame.shape[1] - 2
        inner = contexts[:, :room].to(embedding)
        rest = frame[:, end + 1 : frame.shape[1] - inner.shape[1]]
        sentence = torch.cat([frame[:, :1], inner, frame[:, end : end + 1], rest], dim=1)
        hidden = sentence + model.positional_embedding
        hidden = model.ln_final(model.transformer(hidden, attn_mask=model.attn_mask))
        embedded: Tensor = hidden[:, 1 + inner.shape[1]] @ model.text_projection
        return embedded


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError as error:
        message = (
            f"guidance by CLIP needs open_clip, which cannot be imported ({error}): "
            f"pip install 'coa-compress[clip]', or remove task.clip"
        )
        raise SettingError(message) from None
    return open_clip
