"""Every field once: its default, its meaning and its rule. Variants change a few defaults.

The values are those of EscherNet's recipe (arXiv 2402.03908, section 4 and appendix; marked
"paper"), at the size of Stable Diffusion 1.5. `NAME:smoke` shrinks any config to a network that
trains in a minute on a CPU, on procedural scenes.

`resumable` fields may change when a run continues: they say how long it runs, what it reports, on
what and how fast, and not what a step computes (beyond rounding). `adjustable` ones change what a
step computes and nothing in the shape of what is saved: a run that broke is mended by them, so they
may change too, which is logged. What fields must be together, `escherjax/train/checks.py` says.
"""

import functools

from ml_collections import ConfigDict

from escherjax.config import field, group
from escherjax.errors import UserError

_DTYPES = ("bfloat16", "float32")

count = functools.partial(field, at_least=1)

FIELDS = group(
    "a training run",
    seed=field(42, "of every random number: data, noise, initial parameters (released code)"),
    num_steps=count(100_000, "optimizer updates (paper)", resumable=True),
    batch_size=count(672, "scenes an update, over all devices (paper: 6 GPUs x 112)"),
    accumulation_steps=count(1, "micro-batches an update", resumable=True),
    resolution=count(256, "pixels, square (paper)"),
    num_references=count(3, "N, reference views a scene (paper)"),
    min_references=field(0, "fewest references of a scene, at random; 0: always N", at_least=0),
    num_targets=count(3, "M, target views a scene (paper)"),
    cape=field("6dof", "camera encoding: 6dof, 4dof, 4dof_paper, none"),
    dtype=field("bfloat16", "compute (paper); parameters have their own", choices=_DTYPES),
    param_dtype=field("float32", "of parameters, EMA and optimizer state", choices=_DTYPES),
    remat=field(False, "recompute activations backwards, to save memory", resumable=True),
    attention=field("auto", "kernel: auto, xla, cudnn (GPU), splash (TPU)", resumable=True),
    attention_gather=field("all", "of the keys of mesh.view: all at once, or ring", resumable=True),
    conditioning_dropout=field(0.1, "share of scenes without references", at_least=0, at_most=1),
    guidance_scale=field(3.0, "classifier-free, of samples while training", resumable=True),
    log_every_steps=count(10, "updates between two lines of figures", resumable=True),
    checkpoint_every_steps=count(2000, "(released code)", resumable=True),
    sample_every_steps=field(2000, "picture of samples; 0: never", at_least=0, resumable=True),
    eval_every_steps=field(2000, "PSNR on held-out scenes; 0: never", at_least=0, resumable=True),
    keep_checkpoints=count(3, "newest checkpoints to keep", resumable=True),
    keep_every_steps=field(0, "these stay for good; 0: none", at_least=0, resumable=True),
    stall_seconds=field(900.0, "a stall shows stacks; 0: never", at_least=0, resumable=True),
    unet=group(
        "Stable Diffusion 1.5's U-Net, 859.5M parameters",
        block_channels=count((320, 640, 1280, 1280), "width of each level", may_be_empty=False),
        attention=field((True, True, True, False), "which levels attend", may_be_empty=False),
        layers_per_block=count(2, "residual blocks a level"),
        num_heads=count(8, "attention heads"),
        norm_groups=count(32, "groups of a group norm"),
    ),
    encoder=group(
        "ConvNeXtV2-tiny, 27.9M parameters; its last width feeds the U-Net",
        depths=count((3, 3, 9, 3), "blocks of each stage", may_be_empty=False),
        widths=count((96, 192, 384, 768), "of each stage", may_be_empty=False),
        patch_size=count(4, "pixels"),
        image_size=count(224, "references are resized to this, bicubic"),
    ),
    latents=group(
        "what noise is added to",
        kind=field("vae", "frozen autoencoder, or space-to-depth", choices=("vae", "pixels")),
        patch=count(2, "pixels only: side of the block behind one latent position"),
        vae=group(
            "Stable Diffusion's autoencoder",
            latent_channels=count(4, "of a latent"),
            block_channels=count((128, 256, 512, 512), "width of each level", may_be_empty=False),
            layers_per_block=count(2, "residual blocks a level"),
            norm_groups=count(32, "groups of a group norm"),
            scaling_factor=field(0.18215, "latents are multiplied by this"),
        ),
    ),
    diffusion=group(
        "Stable Diffusion's schedule",
        num_train_timesteps=count(1000, "noise levels"),
        beta_schedule=field("scaled_linear", "how betas grow: scaled_linear or linear"),
        beta_start=field(0.00085, "the first beta"),
        beta_end=field(0.012, "the last beta"),
        prediction_type=field("epsilon", "the network predicts epsilon, v_prediction or sample"),
        timestep_spacing=field("leading", "of DDIM: leading (released code) or trailing"),
        rescale_betas_zero_snr=field(False, "no signal at the end; v_prediction or sample only"),
    ),
    optimizer=group(
        "AdamW with a joint gradient clip",
        adjustable=True,
        peak_lr=field(1e-4, "(paper)"),
        initial_lr=field(1e-5, "where the warm-up starts (released code)"),
        final_lr=field(1e-5, "where the cosine ends (paper)"),
        warmup_steps=field(1000, "(paper)"),
        decay_steps=field(100_000, "length of the cosine, from step 0 (released code)"),
        first_update_at_peak=field(False, "the released code's first update runs at peak_lr"),
        b1=field(0.9, "decay of the mean gradient"),
        b2=field(0.999, "decay of the mean squared gradient"),
        eps=field(1e-8, "added to the root of the latter"),
        weight_decay=field(0.01, "on every parameter (paper)"),
        max_grad_norm=field(0.5, "of U-Net and encoder together (released code)"),
    ),
    ema=group(
        "average of everything trained",
        enabled=field(True, "samples and exports use the average"),
        decay=field(0.9999, "upper limit; early on it is (1 + step) / (10 + step)"),
    ),
    data=group(
        "scenes and how batches are made of them",
        source=field("", 'folder of shards, "procedural" (rendered at start), or several: A,B'),
        weights=field((), "share of each of several sources; (): by number of scenes"),
        split=field("train", "of the shards"),
        heldout_split=field("heldout", "of the first source, for eval", resumable=True),
        buckets=field((), "((N, M, weight), ...): one a step; (): num_references, num_targets"),
        with_replacement=field(True, "a scene's N + M views may repeat (paper)"),
        background=field("zero123", "zero123 (alpha 0: white, as released), white, black, random"),
        latents=field(False, "take targets' moments from the shards (data_prep.latents)"),
        zoom=field((), "(low, high), log-uniform factor on the focal length: crops; pads if < 1"),
        shift=field(0.0, "how far off centre a crop may lie, in sides of the picture"),
        augment_views=field(False, "zoom and shift differ by view, not only by scene"),
        on_bad_record=field("stop", "stop, or skip: leave the scene out", adjustable=True),
        num_workers=field(-1, "reading; -1: cores - 2; 0: threads", at_least=-1, resumable=True),
        num_threads=count(16, "that read without processes", resumable=True),
        prefetch=field(16, "batches made ahead, on each host", at_least=0, resumable=True),
        num_scenes=count(1024, "procedural only"),
        num_views=count(12, "procedural only: views rendered of each scene"),
    ),
    mesh=group(
        "devices along each axis; -1: the rest",
        resumable=True,
        data=field(1, "replicas of the parameters"),
        dcn_data=field(1, "of these, TPU slices (or hosts) that only a slow network joins"),
        fsdp=field(-1, "shards of parameters and optimizer; the batch is split over data x fsdp"),
        model=field(1, "shards of attention heads and of channels inside units"),
        view=field(1, "shards of the target views of a scene, which attend to each other"),
    ),
    eval=group(
        "while training, on fixed scenes",
        resumable=True,
        num_scenes=count(16, "held-out scenes"),
        num_references=count((1, 3), "N values, a row of figures each", may_be_empty=False),
        num_targets=count(4, "M"),
        num_sampling_steps=count(50, "of DDIM"),
        batch_size=count(16, "scenes sampled at once"),
    ),
    profile=group(
        "updates written for a profiler to WORKDIR/profile",
        resumable=True,
        start_step=field(0, "the first of them, counted from 1; 0: none", at_least=0),
        num_steps=count(5, "how many"),
    ),
    wandb=group(
        "metrics to wandb too (pip install 'escherjax[logs]')",
        resumable=True,
        project=field("", 'where to; "": nowhere'),
    ),
    init=group(
        'what a new run starts from; "": nothing. Folders, or hub ids owner/name',
        pipeline=field("", "EscherNet, a pipeline folder of PyTorch weights: all parts"),
        workdir=field("", "a work directory or a checkpoint in it, of any mesh: all parts"),
        unet=field("", "only the U-Net, as Stable Diffusion 1.5's; before the two above"),
        encoder=field("", "only the image encoder: a ConvNeXtV2 folder as transformers writes it"),
        vae=field("", "only the VAE, such as Stable Diffusion 1.5's"),
        workdir_weights=field("", 'of it; "": ema where kept', choices=("", "ema", "raw")),
        allow_partial=field(False, "leave what does not fit at initialisation"),
    ),
)
RESUMABLE_FIELDS, ADJUSTABLE_FIELDS = FIELDS.marked("resumable"), FIELDS.marked("adjustable")


def get_config(arg: str = "") -> ConfigDict:
    """The config of all defaults; `arg` "smoke" shrinks it."""
    config = FIELDS.config()
    if arg == "smoke":
        return smoke(config)
    if arg:
        raise UserError(f"--config: the variant behind the colon must be 'smoke', got {arg!r}.")
    return config


def smoke(c: ConfigDict) -> ConfigDict:
    c.num_steps, c.batch_size, c.resolution = 20, 8, 32
    c.dtype = "float32"
    c.log_every_steps, c.checkpoint_every_steps = 5, 10
    c.sample_every_steps = c.eval_every_steps = 20
    c.unet.block_channels, c.unet.attention = (32, 64), (False, True)
    c.unet.layers_per_block, c.unet.num_heads, c.unet.norm_groups = 1, 4, 8
    c.encoder.depths, c.encoder.widths = (1, 1, 1), (16, 32, 64)
    c.encoder.patch_size, c.encoder.image_size = 2, 32
    c.latents.kind, c.latents.patch = "pixels", 2
    c.optimizer.warmup_steps, c.optimizer.peak_lr = 5, 1e-3
    c.data.source, c.data.num_scenes = "procedural", 64
    c.data.num_threads, c.data.prefetch = 2, 4
    c.eval.num_scenes, c.eval.batch_size, c.eval.num_sampling_steps = 8, 8, 5
    c.eval.num_references = (c.num_references,)
    return c
