"""Where a run's first parameters come from, other than random numbers."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from escherjax.errors import UserError
from escherjax.models.eschernet import EscherNet, Params
from escherjax.models.vae import VAE
from escherjax.weights.pytorch import read_pipeline_folder


def initial_params(config: ConfigDict, model: EscherNet) -> Params | None:
    """All parameters that `config.init` names, as host arrays; None where it names nothing.

    Raises UserError if the folder cannot be read or its networks have other sizes than `model`.
    """
    if not config.init.pipeline:
        return None
    folder = read_pipeline_folder(Path(config.init.pipeline))
    wanted = {
        "unet": (folder.unet, model.unet.config),
        "encoder": (folder.image_encoder, model.encoder.config),
        "latents.vae": (folder.vae, model.codec.config if isinstance(model.codec, VAE) else None),
    }
    misfits = [
        f"  config.{name}: the folder has {found}, the config asks for {needed}"
        for name, (found, needed) in wanted.items()
        if found != needed
    ]
    if misfits:
        raise UserError(
            f"config.init.pipeline = {config.init.pipeline} holds networks of other sizes:\n"
            + "\n".join(misfits)
        )
    return folder.params
