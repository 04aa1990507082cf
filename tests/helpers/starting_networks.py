"""Networks to start a run from: folders of single parts, and work directories on any mesh."""

import json

import jax
import numpy as np
from safetensors.numpy import save_file

from escherjax.devices import mesh
from escherjax.models import eschernet
from escherjax.train.state import create_state
from escherjax.weights import folder_configs, names, runs

FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "image_encoder": "model.safetensors",
}


def random_params(config, seed=0):
    """Parameters of which none is zero, as a trained network's."""
    shapes = eschernet.from_config(config).parameter_shapes(config.resolution)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)


def write_part(folder, part, config, tree):
    """One network's folder, as diffusers and transformers lay it out."""
    model, size = eschernet.from_config(config), config.resolution
    fields = {
        "unet": lambda: folder_configs.unet_fields(model.unet.config, model.latent_shape(size)[0]),
        "vae": lambda: folder_configs.vae_fields(model.codec.config, size),
        "image_encoder": lambda: folder_configs.encoder_fields(model.encoder.config),
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(fields[part]()))
    save_file(names.torch_from_tree(tree), folder / FILES[part])
    return folder


def write_pipeline(folder, config, params):
    for part in ("unet", "vae", "image_encoder"):
        write_part(folder / part, part, config, params[part])
    return folder


def mesh_of(config):
    """Of all eight devices, or of one where the config asks for no more."""
    if config.mesh.data == config.mesh.fsdp == 1:
        return mesh.single_device_mesh()
    return mesh.make_mesh(config.mesh)


def saved_run(workdir, config, params):
    """A work directory with a checkpoint at step 7, whose average is twice the parameters."""
    model = eschernet.from_config(config)
    state = create_state(model, mesh_of(config), config, params)
    state = state.replace(step=state.step + 7, ema=jax.tree.map(lambda x: 2 * x, state.ema))
    runs.prepare_workdir(workdir, config)
    with runs.open_manager(workdir) as manager:
        runs.save(manager, state.stored(), config)
    return workdir
